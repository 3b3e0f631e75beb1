import resource
import socket
import threading
import time

import pytest

from appliance.control import wire
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
