"""Clients that never make bytes come back, through a real Samba and a server with several clients."""

from __future__ import annotations

import ipaddress
import os
import re
import socket

import pytest

from tests.servers.samba import samba
from tests.system.archives import an_archive
from vnafs.domain.errors import RecallForbidden
from vnafs.fs.caller import Caller
from vnafs.fuse.admission import Admission
from vnafs.fuse.clients import hosts_of

pytestmark = pytest.mark.system

LOOPBACK = ipaddress.ip_address("127.0.0.1")
OTHER = ipaddress.ip_address("127.0.0.2")


def test_a_named_client_of_samba_reads_what_is_local_and_brings_nothing_back(tmp_path):
    settings = """
[file_system]
quiet_seconds = 0.3

[packs]
age_seconds_max = 0.5

[recall]
never_hosts = ["127.0.0.0/8"]
"""
    with an_archive(tmp_path, settings=settings) as archive:
        (archive.share / "stub").write_bytes(b"far away" * 1000)
        (archive.share / "local").write_bytes(b"here" * 1000)
        archive.wait()
        archive.evict(archive.share / "stub")
        with samba(tmp_path / "samba", archive.share) as server:
            told = server.ask(f"get stub {tmp_path}/a")
            assert "ACCESS_DENIED" in told, told
            assert archive.state(archive.share / "stub") == "stub"
            told = server.ask(f"get local {tmp_path}/b")
            assert (tmp_path / "b").read_bytes() == b"here" * 1000, told
        assert (archive.share / "stub").read_bytes() == b"far away" * 1000, "a program of this machine is no client"


def listening(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")
    return server, server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_the_other_ends_of_accepted_connections_are_found_and_no_others(host):
    before = hosts_of(os.getpid())
    peer = {"127.0.0.1": LOOPBACK, "::1": ipaddress.ip_address("::1"), "::": LOOPBACK}[host]
    server, port = listening(host)
    with server, socket.create_connection((str(peer), port)):
        assert hosts_of(os.getpid()) == before, "nobody took it yet"
        accepted, _ = server.accept()
        with accepted:
            assert hosts_of(os.getpid()) == before | {peer}


def test_a_server_of_several_clients_is_refused_when_all_of_them_are(tmp_path):
    server, port = listening("127.0.0.1")
    caller = Caller(0, 0, os.getpid())
    with (
        server,
        socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.1", 0)),
        socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)),
    ):
        first, second = server.accept()[0], server.accept()[0]
        with first, second:
            assert hosts_of(os.getpid()) >= {LOOPBACK, OTHER}
            Admission(never_hosts=["127.0.0.1"]).check(caller)
            with pytest.raises(RecallForbidden, match=re.escape("host 127.0.0.1, 127.0.0.2: recall.never_hosts")):
                Admission(never_hosts=["127.0.0.0/30"]).check(caller)


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
def test_of_a_process_that_nobody_can_see_no_host_is_known(pid):
    assert hosts_of(pid) == set()
    Admission(never_hosts=["0.0.0.0/0", "::/0"]).check(Caller(0, 0, pid))
