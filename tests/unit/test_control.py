import logging
import os
import pwd
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from appliance.cli.actors import said
from appliance.cli.main import _sudo_uid
from appliance.control import peers, wire
from appliance.control.client import ControlClient
from appliance.control.server import ControlServer, Method
from vnafs.domain.errors import ArchiveBusy, DaemonUnreachable, NotFound, RequestInvalid


def serving(path, **calls):
    server = ControlServer(str(path), [Method(name.replace("_", "."), call) for name, call in calls.items()])
    server.start()
    return server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "test.sock"


def auditing(path):
    """One method that says who asked."""
    server = ControlServer(
        str(path), [Method("test.deed", lambda params, asker: asker.who.shown(), audit="t:deed:done")]
    )
    server.start()
    return server


def raw(path, **request):
    """One answer to a request of any shape."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(wire.encode({"v": wire.VERSION, "method": "test.deed", "params": {}, **request}))
        return wire.decode(connection.makefile("rb").readline())


ME = {"by": "command", "uid": os.geteuid(), "login": pwd.getpwuid(os.geteuid()).pw_name}


def test_who_asks_is_who_the_kernel_says_whatever_the_request_says(path):
    server = auditing(path)
    other = {"uid": 4242, "login": "mallory", "who": {"uid": 4242}, "by": "system"}
    assert raw(path, **other, params=other) == {"result": ME}
    server.close()


def test_on_whose_behalf_is_noted_as_a_claim_beside_who_it_was(path):
    server = auditing(path)
    claimed = raw(path, on_behalf_of=4242)["result"]
    assert claimed == {**ME, "on_behalf_of": {"uid": 4242, "claimed": True}}
    client = ControlClient(str(path), "test", on_behalf_of=4242)
    assert client.call("test.deed") == claimed
    assert ControlClient(str(path), "test", on_behalf_of=os.geteuid()).call("test.deed") == ME
    for wrong in (-1, 2**32 - 1, True, "4242", 1.5, {"uid": 1}, [1]):
        assert raw(path, on_behalf_of=wrong)["error"]["code"] == "RequestInvalid"
    server.close()


def asking_as(uid, path):
    """Another user connects, and prints what comes."""
    path.parent.chmod(0o755)
    path.chmod(0o666)
    code = (
        "import os, socket, sys; os.chdir(sys.argv[1]); os.setuid(int(sys.argv[3])); "
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2]); print(s.recv(1))"
    )
    return subprocess.Popen([sys.executable, "-c", code, path.parent, path.name, str(uid)], stdout=subprocess.PIPE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_is_recognised_and_refused(path, tmp_path, caplog):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "open.sock"))
        listener.listen()
        child = asking_as(4242, tmp_path / "open.sock")
        connection, _ = listener.accept()
        assert peers.uid_of(connection) == 4242
        connection.close()
        assert child.wait(30) == 0
    server = serving(path, test_who=lambda params, emit: "me")
    child = asking_as(4242, path)
    assert child.communicate(timeout=30)[0].strip() == b"b''", "the connection was closed"
    [record] = [record for record in caplog.records if record.message == "control.peer_refused"]
    assert record.uid == 4242
    server.close()


def test_each_audited_request_leaves_one_line_that_says_who_and_what_became_of_it(path, caplog):
    def refuse(params, asker):
        raise NotFound(what="inode 7")

    methods = [
        Method("test.refuse", refuse, role="administrator", audit="t:deed:refused"),
        Method("test.deed", lambda params, asker: 1, audit="t:deed:done"),
        Method("test.look", lambda params, asker: 1, role="viewer"),
    ]
    server = ControlServer(str(path), methods)
    server.start()
    client = ControlClient(str(path), "test", on_behalf_of=4242)
    with caplog.at_level(logging.INFO):
        client.call("test.look")
        client.call("test.deed")
        with pytest.raises(NotFound):
            client.call("test.refuse")
    done, refused = [record for record in caplog.records if record.message == "control.audited"]
    assert (done.deed, done.outcome, done.levelname) == ("t:deed:done", "done", "INFO")
    assert (refused.deed, refused.outcome, refused.levelname) == ("t:deed:refused", "NotFound", "WARNING")
    assert done.who == refused.who == {**ME, "on_behalf_of": {"uid": 4242, "claimed": True}}
    server.close()


@pytest.mark.parametrize(
    ("environ", "uid"),
    [
        ({}, None),
        ({"SUDO_UID": "1000"}, 1000),
        ({"SUDO_UID": "0"}, 0),
        ({"SUDO_UID": "", "SUDO_USER": "jane"}, None),
        ({"SUDO_UID": "-1"}, None),
        ({"SUDO_UID": "4294967295"}, None),
        ({"SUDO_UID": "9" * 5000}, None),
        ({"SUDO_UID": "²"}, None),
    ],
)
def test_what_sudo_says_is_taken_only_where_it_is_the_number_of_a_user(environ, uid):
    assert _sudo_uid(environ) == uid


def test_people_are_told_what_is_known_and_what_is_claimed():
    assert said({"by": "command", "uid": 0, "login": "root"}) == "root (0)"
    jane = {"uid": 1000, "login": "jane", "claimed": True}
    assert said({"by": "command", "uid": 7, "on_behalf_of": jane}) == "7, claims to act for jane (1000)"
    assert said({"by": "mount", "uid": 1001}) == "1001 through the mount"
    assert said({"by": "system"}) == "the system"
    assert said({"by": "unknown"}) == said(None) == ""


def test_a_result_and_its_events_arrive_in_order(path):
    def count(params, emit):
        for number in range(params["upto"]):
            emit({"number": number})
        return "done"

    server = serving(path, test_count=count)
    seen = []
    assert ControlClient(str(path), "test").call("test.count", upto=3, on_event=seen.append) == "done"
    assert seen == [{"number": 0}, {"number": 1}, {"number": 2}]
    server.close()


def test_a_refusal_is_raised_as_the_same_error(path):
    def refuse(params, emit):
        raise NotFound(what="inode 7")

    server = serving(path, test_refuse=refuse)
    with pytest.raises(NotFound, match="inode 7 does not exist"):
        ControlClient(str(path), "test").call("test.refuse")
    server.close()


def test_an_unknown_method_names_the_known_ones(path):
    server = serving(path, test_known=lambda params, emit: None)
    with pytest.raises(RequestInvalid, match=r"test\.known"):
        ControlClient(str(path), "test").call("test.other")
    server.close()


def test_a_missing_parameter_is_a_request_error_not_a_dead_daemon(path):
    server = serving(path, test_needs=lambda params, emit: params["thing"])
    client = ControlClient(str(path), "test")
    for _ in range(2):
        with pytest.raises(RequestInvalid):
            client.call("test.needs")
    server.close()


def test_a_client_finds_a_restarted_daemon_again(path):
    server = serving(path, test_who=lambda params, emit: "first")
    client = ControlClient(str(path), "test")
    assert client.call("test.who") == "first"
    server.close()
    server = serving(path, test_who=lambda params, emit: "second")
    assert client.call("test.who") == "second"
    server.close()


def test_nobody_there_is_said_with_what_to_do(path):
    with pytest.raises(DaemonUnreachable, match="vna serve"):
        ControlClient(str(path), "test").call("test.who")


def test_a_second_server_on_the_same_socket_is_refused(path):
    server = serving(path, test_who=lambda params, emit: "first")
    with pytest.raises(ArchiveBusy):
        serving(path)
    server.close()


def test_a_daemon_that_takes_too_long_is_not_asked_twice(path):
    asked = []

    def slow(params, emit):
        asked.append(1)
        time.sleep(0.5)

    server = serving(path, test_slow=slow, test_quick=lambda params, emit: "here")
    client = ControlClient(str(path), "test", timeout_seconds=0.2)
    client.call("test.quick")
    with pytest.raises(DaemonUnreachable, match=r"within 0\.2 s"):
        client.call("test.slow")
    time.sleep(0.5)
    assert len(asked) == 1
    server.close()


def test_running_out_of_descriptors_passes(path):
    server = serving(path, test_who=lambda params, emit: "me")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = ControlClient(str(path), "test")
    waiting = socket.socket(socket.AF_UNIX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
    try:
        waiting.connect(str(path))
        time.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting.close()
    assert client.call("test.who") == "me"
    server.close()


def test_the_socket_is_for_its_owner_only(path):
    server = serving(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    server.close()


def test_any_path_length_and_any_name_byte_travels(tmp_path):
    path = tmp_path / ("d" * 60) / ("e" * 60) / "test.sock"
    path.parent.parent.mkdir()
    server = serving(path, test_echo=lambda params, emit: params["name"])
    odd = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    assert wire.name(ControlClient(str(path), "test").call("test.echo", name=wire.text(odd))) == odd
    server.close()


def test_clients_in_many_threads_each_get_their_own_answer(path):
    server = serving(path, test_echo=lambda params, emit: params["n"])
    client = ControlClient(str(path), "test")
    wrong = []

    def ask(number):
        for _ in range(50):
            if client.call("test.echo", n=number) != number:
                wrong.append(number)
        client.close()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    server.close()
