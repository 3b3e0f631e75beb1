"""Requests about open files, as calls on Filesystem, and which of them the kernel need not ask any more.

A file with local bytes is handed to the kernel when it is opened, if the tree allows it (`may_pass`): from then on
neither reads nor writes come here. What the tree must know of its writes it was told before the answer: it is open for
write. One thread.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from vnafs.domain.errors import BadHandle, Busy
from vnafs.domain.ids import Inode
from vnafs.fs.asof import BASE
from vnafs.fs.attributes import Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.fences import WritersHeld
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.estate import KeptHandle
from vnafs.fuse.kernel.once import Once, number_of
from vnafs.fuse.kernel.passthrough import THROUGH_US, Backings
from vnafs.fuse.kernel.replies import Answer, Handler, Later, Replies
from vnafs.fuse.recalls import Recalls


class _Asked(NamedTuple):
    """Of a request that opens, what is needed until it is answered."""

    flags: int
    caller: Caller
    request: int


class FileRequests:
    """Handlers by opcode. Without *backings* every read and write comes here."""

    def __init__(
        self, filesystem: Filesystem, recalls: Recalls, replies: Replies, backings: Backings | None = None
    ) -> None:
        self._fs = filesystem
        self._recalls = recalls
        self._replies = replies
        self.backings = backings
        self.once: Once | None = None
        """Where what is opened is noted for the process after this one."""
        self._opened_before: dict[int, KeptHandle] = {}

    def adopt(self) -> None:
        """Go on with the handles of the process before, which the tree took over. Raises Busy."""
        assert self.once is not None  # noqa: S101 - there is nothing to adopt without
        estate = self.once.estate
        opens: collections.Counter[Inode] = collections.Counter()
        unseen: dict[Inode, int] = {}
        for kept in estate.handles():
            try:
                handle = self._fs.handle(kept.number)
            except BadHandle:
                estate.closed(kept.number)  # it was being closed
                continue
            self._opened_before[kept.request] = kept
            opens[handle.file.inode] += 1
            if handle.is_unseen:
                unseen[handle.file.inode] = handle.file.descriptor
        if self.backings is not None:
            self.backings.adopt(opens, unseen.keys(), unseen.__getitem__)
        elif unseen:
            raise Busy(what="A file", why="the kernel reads and writes it, and nobody knows how")

    def _known(self, request: wire.Request) -> tuple[Handle, bytes] | None:
        """What the process before opened for this request, and how it is answered."""
        if not request.unique & wire.RESENT:
            return None
        kept = self._opened_before.pop(number_of(request.unique), None)
        if kept is None:
            return None
        handle = self._fs.handle(kept.number)
        way = THROUGH_US
        if kept.flags & wire.FOPEN_PASSTHROUGH and self.backings is not None:
            way = self.backings.way_of(handle.file.inode)
        return handle, wire.OPEN_OUT.pack(kept.number, kept.flags, way)

    def handlers(self) -> dict[int, Handler]:
        """Opcode to handler."""
        return {
            wire.OPEN: self.open,
            wire.CREATE: self.create,
            wire.READ: self.read,
            wire.WRITE: self.write,
            wire.FLUSH: self.flush,
            wire.FSYNC: self.fsync,
            wire.RELEASE: self.release,
            wire.FALLOCATE: self.fallocate,
            wire.LSEEK: self.lseek,
            wire.COPY_FILE_RANGE: self.copy_file_range,
        }

    # -- open and close -------------------------------------------------------------------------------------

    def open(self, request: wire.Request) -> Answer:
        """OPEN; a stub is brought back first, which only its opener waits for."""
        flags, _ = wire.OPEN_IN.unpack_from(request.body)
        asked = _Asked(flags, request.caller, number_of(request.unique))
        if (known := self._known(request)) is not None:
            return self._synced(known[0], known[0].file.inode, known[1], asked)
        call = functools.partial(self._fs.open, Inode(request.node), flags, asked.caller)
        try:
            handle = call()
        except (RecallNeeded, WritersHeld):
            return Later(functools.partial(self._open_later, call, asked), may_be_interrupted=True)
        return self._opened(handle, asked)

    async def _open_later(self, call: Callable[[], Handle], asked: _Asked) -> bytes:
        return await _now(self._opened(await self._recalls.with_bytes(call, asked.caller), asked))

    def _opened(self, handle: Handle, asked: _Asked) -> Answer:
        self._recalls.admitted(handle, asked.caller)
        payload = self._way(handle, asked.request)
        if not asked.flags & (os.O_ACCMODE | os.O_TRUNC):
            return payload
        return self._synced(handle, handle.file.inode, payload, asked)

    def create(self, request: wire.Request) -> Answer:
        """CREATE: make and open, or open what is there."""
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.body)
        name, parent = request.name(wire.CREATE_IN.size), Inode(request.node)
        asked = _Asked(flags, request.caller, number_of(request.unique))
        if (known := self._known(request)) is not None:
            entry = self._replies.entry(self._fs.getattr(known[0].file.inode))
            return self._synced(known[0], parent, entry + known[1], asked)
        call: Callable[[], tuple[Handle, Attributes]]
        call = functools.partial(self._fs.create, parent, name, mode, flags, asked.caller, umask)
        try:
            handle, made = call()
        except (RecallNeeded, WritersHeld):
            call = call if self.once is None else self.once.marked(request, call)
            return Later(functools.partial(self._create_later, call, parent, asked), may_be_interrupted=True)
        return self._created(handle, made, parent, asked)

    async def _create_later(self, call: Callable[[], tuple[Handle, Attributes]], parent: Inode, asked: _Asked) -> bytes:
        handle, made = await self._recalls.with_bytes(call, asked.caller)
        return await _now(self._created(handle, made, parent, asked))

    def _created(self, handle: Handle, made: Attributes, parent: Inode, asked: _Asked) -> Answer:
        self._recalls.admitted(handle, asked.caller)
        payload = self._way(handle, asked.request)
        return self._synced(handle, parent, self._replies.entry(made) + payload, asked)

    def _way(self, handle: Handle, request: int) -> bytes:
        """fuse_open_out: how the kernel reads and writes. The handle is released when that fails."""
        is_chosen = False
        try:
            flags, number = self._choose(handle)
            is_chosen = True
            if not self._fs.unseen.flush_matters(handle):
                flags |= wire.FOPEN_NOFLUSH
            if self.once is not None and handle.file.inode < BASE:
                self.once.estate.opened(_kept(handle, request, flags))
        except BaseException:
            self._fs.release(handle)
            if is_chosen and self.backings is not None:
                self.backings.drop(handle.file.inode)
            raise
        return wire.OPEN_OUT.pack(handle.number, flags, number)

    def _choose(self, handle: Handle) -> tuple[int, int]:
        backings, file = self.backings, handle.file
        if backings is None:
            return wire.FOPEN_KEEP_CACHE, THROUGH_US
        wanted = not backings.is_open(file.inode) and self._fs.unseen.may_pass(handle)
        number = backings.take(file.inode, file.descriptor, wanted=wanted)
        if number == THROUGH_US:
            # pages that were read before the kernel went past us are old; of a stub's version there are no others
            return 0 if file.descriptor >= 0 else wire.FOPEN_KEEP_CACHE, THROUGH_US
        try:
            self._fs.unseen.pass_by(handle)
        except BaseException:
            backings.drop(file.inode)
            raise
        return wire.FOPEN_PASSTHROUGH, number

    def _synced(self, handle: Handle, inode: Inode, payload: bytes, asked: _Asked) -> Answer:
        """The answer to who opened, once that may be given."""
        if asked.flags & os.O_DSYNC and handle.is_unseen and handle.writable:
            # no write of it will be told to us: each syncs its bytes, and here is the name that leads to them
            answer = self._replies.settled(self._fs.fsync(handle), payload)
        else:
            answer = self._replies.synced(inode, payload)
        return Later(functools.partial(self._open_until, handle, answer)) if isinstance(answer, Later) else answer

    async def _open_until(self, handle: Handle, answer: Later) -> bytes:
        try:
            return await answer.work()
        except BaseException:
            self._let_go(handle)
            raise

    def forget_open(self, payload: bytes) -> None:
        """Nobody took the answer of OPEN or CREATE: no RELEASE will come."""
        number, _, _ = wire.OPEN_OUT.unpack(payload[-wire.OPEN_OUT.size :])
        self._let_go(self._fs.handle(number))

    def release(self, request: wire.Request) -> Answer:
        """RELEASE."""
        number, *_ = wire.RELEASE_IN.unpack_from(request.body)
        try:
            handle = self._fs.handle(number)
        except BadHandle:
            if request.unique & wire.RESENT:
                return b""  # the process before did it
            raise
        self._let_go(handle)
        return b""

    def _let_go(self, handle: Handle) -> None:
        # in this order: who dies in between leaves a backing id without handles, which is given back
        self._fs.release(handle)
        if self.once is not None:
            self.once.estate.closed(handle.number)
        if self.backings is not None:
            self.backings.drop(handle.file.inode)

    # -- bytes ----------------------------------------------------------------------------------------------

    def read(self, request: wire.Request) -> Answer:
        """READ."""
        number, offset, size, *_ = wire.READ_IN.unpack_from(request.body)
        handle = self._fs.handle(number)
        try:
            return self._fs.read(handle, offset, size)
        except RangeNeeded:
            return Later(functools.partial(self._recalls.read, handle, offset, size), may_be_interrupted=True)

    def write(self, request: wire.Request) -> Answer:
        """WRITE."""
        number, offset, size, *_ = wire.WRITE_IN.unpack_from(request.body)
        data = request.body[wire.WRITE_IN.size :]
        if len(data) != size:
            raise wire.Malformed
        handle = self._fs.handle(number)
        try:
            done = self._fs.write(handle, offset, data)
        except WritersHeld:
            return Later(functools.partial(self._write_later, handle, offset, bytes(data)), may_be_interrupted=True)
        return wire.WRITE_OUT.pack(done, 0)

    async def _write_later(self, handle: Handle, offset: int, data: bytes) -> bytes:
        done = await self._recalls.let_through(functools.partial(self._fs.write, handle, offset, data))
        return wire.WRITE_OUT.pack(done, 0)

    def fallocate(self, request: wire.Request) -> Answer:
        """FALLOCATE."""
        number, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(request.body)
        call = functools.partial(self._fs.extents.allocate, self._fs.handle(number), mode, offset, length)
        try:
            call()
        except WritersHeld:
            return Later(functools.partial(self._allocate_later, call), may_be_interrupted=True)
        return b""

    async def _allocate_later(self, call: functools.partial[None]) -> bytes:
        await self._recalls.let_through(call)
        return b""

    def lseek(self, request: wire.Request) -> Answer:
        """LSEEK: only for data and holes; the kernel knows the rest."""
        number, offset, whence, _ = wire.LSEEK_IN.unpack_from(request.body)
        return wire.LSEEK_OUT.pack(self._fs.extents.seek(self._fs.handle(number), offset, whence))

    def copy_file_range(self, request: wire.Request) -> Answer:
        """COPY_FILE_RANGE."""
        number, offset, _, into, at, length, _ = wire.COPY_IN.unpack_from(request.body)
        source, target = self._fs.handle(number), self._fs.handle(into)
        call = functools.partial(self._fs.extents.copy, source, offset, target, at, length)
        try:
            done = call()
        except WritersHeld:
            return Later(functools.partial(self._copy_later, call), may_be_interrupted=True)
        return wire.WRITE_OUT.pack(done, 0)

    async def _copy_later(self, call: functools.partial[int]) -> bytes:
        return wire.WRITE_OUT.pack(await self._recalls.let_through(call), 0)

    def flush(self, request: wire.Request) -> Answer:
        """FLUSH: comes at each close of each duplicate."""
        number, *_ = wire.FLUSH_IN.unpack_from(request.body)
        return self._replies.settled(self._fs.flush(self._fs.handle(number)))

    def fsync(self, request: wire.Request) -> Answer:
        """FSYNC."""
        number, *_ = wire.FSYNC_IN.unpack_from(request.body)
        return self._replies.settled(self._fs.fsync(self._fs.handle(number)))


def _kept(handle: Handle, request: int, flags: int) -> KeptHandle:
    return KeptHandle(
        handle.number,
        request,
        handle.file.inode,
        flags,
        readable=handle.readable,
        writable=handle.writable,
        privileged=handle.privileged,
        unseen=handle.is_unseen,
    )


async def _now(answer: Answer) -> bytes:
    """An answer's payload, awaited if it must be."""
    if isinstance(answer, Later):
        return await answer.work()
    assert isinstance(answer, bytes)  # noqa: S101 - of an open file there always is one
    return answer
