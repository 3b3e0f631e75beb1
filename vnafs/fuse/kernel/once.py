"""Each request is done once: what the process before did and did not answer is answered, and not done again.

A change says in the index for which request it was made, in the same transaction; what it is answered is in the estate
before anybody waits or answers. So of a request that the kernel sends again it is known that it was done, even where
its process died between the two. What may be done twice is: reads and writes at an offset, opening, syncing, setting a
size. One thread.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import struct
from collections.abc import Callable
from typing import TypeVar

from vnafs.domain.errors import NotFound
from vnafs.domain.ids import Inode
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.estate import Estate, KeptAnswer
from vnafs.fuse.kernel.replies import Answer, Handler, Later, Replies

_LOG = logging.getLogger(__name__)
_Found = TypeVar("_Found")

DEATHS_MAX = 3
"""So many processes may die over one request; then it is answered with EIO."""
_MAKING = frozenset({wire.MKDIR, wire.MKNOD, wire.SYMLINK, wire.LINK})
_NOTED = _MAKING | {wire.UNLINK, wire.RMDIR, wire.RENAME, wire.RENAME2, wire.SETXATTR, wire.REMOVEXATTR, wire.SETATTR}
_MARKED = _NOTED | {wire.CREATE}
_ASIDE = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT})
"""May be read before what is sent again; all else comes after it (fuse_resend in fs/fuse/dev.c)."""
_NAME_AT = {wire.MKDIR: wire.MKDIR_IN.size, wire.MKNOD: wire.MKNOD_IN.size, wire.LINK: wire.LINK_IN.size}
_NUMBER = struct.Struct("=Q")


def number_of(unique: int) -> int:
    """A request's number, the same when it is sent again."""
    return unique & ~wire.RESENT


class Once:
    """Between the loop and its handlers."""

    def __init__(self, filesystem: Filesystem, estate: Estate, replies: Replies) -> None:
        self._fs = filesystem
        self._replies = replies
        self.estate = estate
        self._left: dict[int, KeptAnswer] = {}
        self._deadly = 0

    def adopt(self) -> None:
        """Learn what the process before did. Before the first change for a request."""
        estate = self.estate
        self._left = estate.answers()
        last = self._fs.succession.last_asked()
        if last[: len(estate.asker)] == estate.asker:
            [request] = _NUMBER.unpack(last[len(estate.asker) :])
            if request not in self._left:
                estate.answer(request, None)  # the next change says that it was made for another
                self._left[request] = KeptAnswer(None)
        request, deaths = estate.outlived()
        if deaths >= DEATHS_MAX:
            _LOG.error("fuse.request_deadly", extra={"deaths": deaths})
            self._deadly = request

    def serve(self, request: wire.Request, handler: Handler) -> Answer:
        """The handler's answer, or what the process before had for this request."""
        number, opcode, estate = number_of(request.unique), request.opcode, self.estate
        if request.unique & wire.RESENT:
            answer = self._again(request, number)
            if answer is not None:
                return answer
        elif self._left and opcode not in _ASIDE:
            for known in self._left:
                estate.answered(known)  # it was, or it would have come before
            self._left.clear()
        estate.serve(number)
        try:
            answer = handler(request) if opcode not in _MARKED else self.marked(request, lambda: handler(request))()
        finally:
            estate.serve(0)
        if opcode in _NOTED:
            payload = answer.payload if isinstance(answer, Later) else answer
            if isinstance(payload, bytes):
                estate.answer(number, payload)
        return answer

    def marked(self, request: wire.Request, call: Callable[[], _Found]) -> Callable[[], _Found]:
        """A call for a request that is made later."""
        return functools.partial(self._marked, self.estate.asker + _NUMBER.pack(number_of(request.unique)), call)

    def _marked(self, mark: bytes, call: Callable[[], _Found]) -> _Found:
        self._fs.succession.asks(mark)
        try:
            return call()
        finally:
            self._fs.succession.asks(b"")

    def answered(self, opcode: int, unique: int) -> None:
        """The kernel has its answer."""
        if opcode in _MARKED:
            self.estate.answered(number_of(unique))

    def _again(self, request: wire.Request, number: int) -> Answer | None:
        """The answer to what was done before; None: do it."""
        if number == self._deadly:
            raise OSError(errno.EIO, "processes die over this request")
        known = self._left.pop(number, None)
        if known is None:
            return None
        payload = known.payload
        if payload is None:
            payload = self._looked_up(request)
        return None if payload is None else self._replies.synced(request.node, payload)

    def _looked_up(self, request: wire.Request) -> bytes | None:
        opcode, node = request.opcode, Inode(request.node)
        if opcode in _MAKING:
            name = request.names(2)[0] if opcode == wire.SYMLINK else request.name(_NAME_AT[opcode])
            found = self._fs.find(node, name)
            if found is None:
                raise NotFound(what="What was just made")
            return self._replies.entry(found)
        if opcode == wire.SETATTR:
            [valid] = struct.unpack_from("=I", request.body)
            return None if valid & wire.FATTR_SIZE else self._replies.attributes(self._fs.getattr(node))
        if opcode == wire.CREATE:  # it is there, and was not answered: now it is opened
            flags, *more = wire.CREATE_IN.unpack_from(request.body)
            head = wire.CREATE_IN.pack(flags & ~(os.O_EXCL | os.O_TRUNC), *more)
            request.body = memoryview(head + bytes(request.body[wire.CREATE_IN.size :]))
            return None
        return b"" if opcode in _NOTED else None
