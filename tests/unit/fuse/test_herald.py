"""Notices go out by a process of their own, which ends with whoever it tells for."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from vnafs.fuse.kernel.herald import Herald


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of what stands for /dev/fuse."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_notice_is_told_as_it_is(kernel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = kernel
    herald = Herald(ours.fileno())
    herald.tell(b"forget this")
    herald.tell(b"and that")
    herald.close()
    assert [theirs.recv(100), theirs.recv(100)] == [b"forget this", b"and that"]


def test_the_kernels_refusal_is_raised() -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    herald = Herald(read_only)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        herald.tell(b"forget this")
    herald.close()
    os.close(read_only)


def test_one_that_the_kernel_makes_wait_holds_nobody_up_and_ends_later(
    kernel: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = kernel
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    herald, failed = Herald(ours.fileno()), threading.Event()

    def tell() -> None:
        try:
            while True:
                herald.tell(bytes(2000))
        except OSError:
            failed.set()

    threading.Thread(target=tell, daemon=True).start()
    assert not failed.wait(0.5)
    process = herald._process
    herald.close()
    theirs.close()  # the kernel lets go
    assert failed.wait(10)
    os.waitpid(process.pid, 0)
