"""The hosts that a process serves, as the kernel knows them: the other ends of connections that it accepted.

A file server opens files for its clients, and a file system is told the server's process alone. Samba has a process for
each connection, so that one names its client; where a process serves several hosts, all of them are named. Nothing is
known of connections that the kernel itself serves (knfsd), of processes in other namespaces, and of those whose
descriptors we may not look at. Reads proc(5); any thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

ESTABLISHED, LISTEN = 0x01, 0x0A
"""TCP_ESTABLISHED and TCP_LISTEN, include/net/tcp_states.h."""
_SOCKET = "socket:["

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Connection(NamedTuple):
    """A line of /proc/PID/net/tcp or tcp6, proc_pid_net(5)."""

    port: int
    """Ours."""
    peer: str
    state: int
    socket: str
    """The number of its inode."""


def hosts_of(pid: int, proc: str = "/proc") -> set[Address]:
    """Who has a connection to *pid*, the number of a process; empty where nothing is known."""
    folder = os.path.join(proc, str(pid))
    found: set[Address] = set()
    with contextlib.suppress(OSError):
        sockets = set(_sockets(folder))
        for name in ("tcp", "tcp6") if sockets else ():
            found |= set(_peers(os.path.join(folder, "net", name), sockets))
    return found


def _sockets(folder: str) -> Iterator[str]:
    with os.scandir(os.path.join(folder, "fd")) as descriptors:
        for one in descriptors:
            with contextlib.suppress(OSError):
                target = os.readlink(one.path)
                if target.startswith(_SOCKET):
                    yield target[len(_SOCKET) : -1]


def _peers(path: str, sockets: set[str]) -> Iterator[Address]:
    """The other ends of those *sockets* that belong to a port on which somebody listens."""
    with open(path, encoding="ascii") as file:
        next(file, None)
        connections = [_connection(line.split()) for line in file]
    served = {one.port for one in connections if one.state == LISTEN}
    for one in connections:
        if one.state == ESTABLISHED and one.socket in sockets and one.port in served:
            yield _address(one.peer)


def _connection(fields: list[str]) -> _Connection:
    return _Connection(
        int(fields[1].rpartition(":")[2], 16), fields[2].partition(":")[0], int(fields[3], 16), fields[9]
    )


def _address(text: str) -> Address:
    """Words of 32 bits in the machine's order; an IPv4 address that came in by IPv6 is an IPv4 address."""
    words = (int(text[begin : begin + 8], 16) for begin in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    found = ipaddress.IPv6Address(packed)
    return found.ipv4_mapped or found
