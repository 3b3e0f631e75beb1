"""The kernel engine against a kernel of the test's own: requests as bytes, over a socket that keeps their borders."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.semantics.trees import Tree
from vnafs.domain.errors import Refused
from vnafs.domain.ids import Inode, Version
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.channel import Channel
from vnafs.fuse.kernel.engine import KernelEngine
from vnafs.fuse.recaller import NoRecaller
from vnafs.fuse.serving import MountOptions
from vnafs.fuse.syncing import Syncing

OFFERED = wire.INIT_EXT | wire.ATOMIC_O_TRUNC | wire.SETXATTR_EXT
INIT = struct.pack("=IIIII44x", 7, 45, 1 << 17, OFFERED, 0)


class Kernel:
    """The other side of /dev/fuse."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.far = ours
        self.near = trio.socket.from_stdlib_socket(theirs)
        self._unique = 0

    async def send(self, opcode: int, node: int, body: bytes = b"", *, length: int | None = None) -> int:
        self._unique += 2
        size = 40 + len(body) if length is None else length
        await self.near.send(wire.HEADER.pack(size, opcode, self._unique, node, 0, 0, 0, 0, 0) + body)
        return self._unique

    async def heard(self) -> tuple[int, int, bytes]:
        """Unique, errno and payload of the next reply."""
        with trio.fail_after(10):
            data = await self.near.recv(2 << 20)
        length, error, unique = wire.OUT.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[wire.OUT.size :]

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        unique = await self.send(opcode, node, body)
        heard, number, payload = await self.heard()
        assert heard == unique
        return number, payload


Talk = Callable[[Kernel], Awaitable[None]]


class SlowRecaller(NoRecaller):
    """Brings nothing back, and takes for ever."""

    async def recall(self, inode: Inode, version: Version) -> None:
        del inode, version
        await trio.sleep_forever()


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., None]:
    """Runs an engine for the length of a conversation, which begins after INIT."""

    def run(conversation: Talk, *, init: bytes = INIT) -> None:
        async def main() -> None:
            tree = Tree(tmp_path)
            kernel = Kernel(tree)
            syncing = Syncing(tree.fs)
            channel = Channel(kernel.far.fileno())
            engine = KernelEngine(tree.fs, SlowRecaller(), syncing, channel, MountOptions())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(syncing.run)
                nursery.start_soon(engine.run)
                number, answer = await kernel.ask(wire.INIT, 0, init)
                assert (number, struct.unpack_from("=II", answer)) == (0, (7, 45))
                await conversation(kernel)
                nursery.cancel_scope.cancel()

        trio.run(main)

    return run


def inode_of(entry: bytes) -> int:
    return int(wire.ENTRY.unpack_from(entry)[0])


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, 0])
def test_p79_who_opens_to_write_in_sync_is_answered_when_the_name_is_synced(
    talk: Callable[..., None], monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 1)  # a kernel that writes local files itself
    high = wire.PASSTHROUGH >> 32
    init = struct.pack("=IIIII44x", 7, 45, 1 << 17, OFFERED, high)

    async def conversation(kernel: Kernel) -> None:
        engine, node = kernel.tree.engine, kernel.tree.r
        body = wire.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT | flag, 0o644, 0, 0) + b"f\0"
        number, answer = await kernel.ask(wire.CREATE, node, body)
        assert (number, wire.OPEN_OUT.unpack(answer[-wire.OPEN_OUT.size :])[1] & wire.FOPEN_PASSTHROUGH > 0) == (
            0,
            True,
        )
        assert (engine.synced >= engine.position) == bool(flag)
        engine.synced_to = engine.position
        kernel.tree.file(b"g")
        body = wire.OPEN_IN.pack(os.O_WRONLY | flag, 0)
        number, _ = await kernel.ask(wire.OPEN, inode_of(answer), body)
        assert (number, engine.synced >= engine.position) == (0, bool(flag))

    talk(conversation, init=init)


def test_an_opcode_that_nobody_knows_is_answered_with_enosys(talk: Callable[[Talk], None]) -> None:
    async def conversation(kernel: Kernel) -> None:
        for opcode in (31, 40, 51, 4096, 2**32 - 1):
            assert await kernel.ask(opcode, 1, b"anything") == (errno.ENOSYS, b"")
        assert (await kernel.ask(wire.GETATTR, 1, bytes(16)))[0] == 0

    talk(conversation)


def test_a_request_that_is_cut_short_is_refused_and_the_next_one_served(talk: Callable[[Talk], None]) -> None:
    async def conversation(kernel: Kernel) -> None:
        for opcode in (wire.LOOKUP, wire.OPEN, wire.CREATE, wire.SETATTR, wire.WRITE, wire.READ, wire.RENAME2):
            for body in (b"", b"x", bytes(7)):
                assert (await kernel.ask(opcode, kernel.tree.r, body))[0] in (errno.EINVAL, errno.EBADF)
        await kernel.near.send(b"no header")
        await kernel.send(wire.LOOKUP, kernel.tree.r, b"name\0", length=4000)
        assert (await kernel.ask(wire.SETXATTR, 1, wire.SETXATTR_IN.pack(9, 0, 0, 0) + b"user.a\0short"))[0] == 22
        assert (await kernel.ask(wire.WRITE, 1, wire.WRITE_IN.pack(1, 0, 9, 0, 0, 0, 0) + b"short"))[0] == 22
        assert (await kernel.ask(wire.GETATTR, 1, bytes(16)))[0] == 0

    talk(conversation)


def test_a_handler_that_fails_is_eio_and_the_loop_goes_on(
    talk: Callable[[Talk], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(kernel: Kernel) -> None:
        def broken() -> None:
            raise ZeroDivisionError

        kernel.tree.fs.statfs = broken  # type: ignore[method-assign, assignment] # nothing else fails on demand
        assert await kernel.ask(wire.STATFS, 1) == (errno.EIO, b"")
        assert "fuse.unexpected" in caplog.messages
        assert (await kernel.ask(wire.GETATTR, 1, bytes(16)))[0] == 0

    talk(conversation)


def test_a_file_is_made_written_read_and_closed(talk: Callable[[Talk], None]) -> None:
    async def conversation(kernel: Kernel) -> None:
        asked = wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, stat.S_IFREG | 0o640, 0, 0) + b"f\0"
        number, made = await kernel.ask(wire.CREATE, kernel.tree.r, asked)
        assert number == 0
        handle, flags, backing = wire.OPEN_OUT.unpack(made[-16:])
        assert (backing, flags & wire.FOPEN_PASSTHROUGH) == (0, 0)  # this kernel offered none
        inode = inode_of(made)
        number, done = await kernel.ask(wire.WRITE, inode, wire.WRITE_IN.pack(handle, 3, 5, 0, 0, 0, 0) + b"bytes")
        assert (number, wire.WRITE_OUT.unpack(done)) == (0, (5, 0))
        assert await kernel.ask(wire.READ, inode, wire.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0)) == (0, b"\0\0\0bytes")
        _, shown = await kernel.ask(wire.GETATTR, inode, bytes(16))
        found = wire.ATTR.unpack_from(shown, wire.ATTR_OUT.size)
        assert (found[0], found[1], found[9]) == (inode, 8, stat.S_IFREG | 0o640)
        assert await kernel.ask(wire.FLUSH, inode, wire.FLUSH_IN.pack(handle, 0, 0, 0)) == (0, b"")
        assert await kernel.ask(wire.RELEASE, inode, wire.RELEASE_IN.pack(handle, 0, 0, 0)) == (0, b"")
        assert kernel.tree.fs.handles_open == 0
        assert (await kernel.ask(wire.READ, inode, wire.READ_IN.pack(handle, 0, 9, 0, 0, 0, 0)))[0] == errno.EBADF

    talk(conversation)


def test_an_inode_that_is_gone_is_stale_and_a_name_that_is_not_there_may_be_kept(talk: Callable[[Talk], None]) -> None:
    async def conversation(kernel: Kernel) -> None:
        assert (await kernel.ask(wire.GETATTR, 999_999, bytes(16)))[0] == errno.ESTALE
        assert (await kernel.ask(wire.OPEN, 999_999, bytes(8)))[0] == errno.ESTALE
        number, missing = await kernel.ask(wire.LOOKUP, kernel.tree.r, b"nothing\0")
        assert (number, inode_of(missing), wire.ENTRY.unpack_from(missing)[2]) == (0, 0, 3600)

    talk(conversation)


def test_listings_fit_the_room_and_go_on_where_they_stopped(talk: Callable[[Talk], None]) -> None:
    async def conversation(kernel: Kernel) -> None:
        for number in range(100):
            await kernel.ask(wire.MKDIR, kernel.tree.r, wire.MKDIR_IN.pack(0o755, 0) + b"name-%d\0" % number)
        for opcode, head in ((wire.READDIR, 0), (wire.READDIRPLUS, 128)):
            names: list[bytes] = []
            cookie = 0
            while True:
                number, data = await kernel.ask(opcode, kernel.tree.r, wire.READ_IN.pack(0, cookie, 1024, 0, 0, 0, 0))
                assert (number, len(data) <= 1024) == (0, True)
                if not data:
                    break
                at = 0
                while at < len(data):
                    _, cookie, length, _ = wire.DIRENT.unpack_from(data, at + head)
                    names.append(data[at + head + 24 : at + head + 24 + length])
                    at += head + 24 + length + -length % 8
            assert sorted(names) == sorted([b".", b"..", *(b"name-%d" % number for number in range(100))])

    talk(conversation)


def test_an_open_that_waits_for_a_recall_holds_nobody_and_ends_when_it_is_interrupted(
    talk: Callable[[Talk], None],
) -> None:
    async def conversation(kernel: Kernel) -> None:
        stub = kernel.tree.stub(b"stub", b"bytes")
        waiting = await kernel.send(wire.OPEN, stub, wire.OPEN_IN.pack(os.O_RDONLY, 0))
        assert (await kernel.ask(wire.GETATTR, 1, bytes(16)))[0] == 0
        await kernel.send(wire.INTERRUPT, 0, wire.INTERRUPT_IN.pack(waiting + 1000))  # of a request that is gone
        await kernel.send(wire.INTERRUPT, 0, wire.INTERRUPT_IN.pack(waiting))
        assert await kernel.heard() == (waiting, errno.EINTR, b"")
        assert kernel.tree.fs.handles_open == 0

    talk(conversation)


def test_a_kernel_that_speaks_an_old_protocol_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        kernel = Kernel(tree)
        engine = KernelEngine(tree.fs, NoRecaller(), Syncing(tree.fs), Channel(kernel.far.fileno()), MountOptions())
        await kernel.send(wire.INIT, 0, struct.pack("=IIIII", 7, 31, 0, 0, 0))
        with pytest.raises(ExceptionGroup) as ended:
            await engine.run()
        assert isinstance(ended.value.exceptions[0], Refused)
        assert (await kernel.heard())[1] == errno.EPROTO

    trio.run(main)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("HEADER", 40), ("OUT", 16), ("INIT_OUT", 64), ("ATTR", 88), ("ENTRY", 40), ("ATTR_OUT", 16), ("OPEN_OUT", 16),
        ("READ_IN", 40), ("WRITE_IN", 40), ("SETATTR_IN", 88), ("STATX_IN", 24), ("STATX_OUT", 32), ("STATX", 256),
        ("KSTATFS", 80), ("DIRENT", 24), ("FALLOCATE_IN", 32), ("LSEEK_IN", 24), ("COPY_IN", 56), ("RENAME2_IN", 16),
        ("RELEASE_IN", 24), ("INVAL_INODE", 24), ("INVAL_ENTRY", 16), ("BACKING_MAP", 16),
    ],
)  # fmt: skip
def test_structures_have_the_sizes_of_the_header(name: str, size: int) -> None:
    assert getattr(wire, name).size == size
