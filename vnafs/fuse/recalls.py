"""Requests that need bytes which are only on targets, or whose writers are held: who may wait, and how many.

Shared by the engines: it knows no protocol. Trio, one thread; whoever awaits here holds up nobody else.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from vnafs.domain.errors import RecallFailed, RecallRefused, TooManyWaiting
from vnafs.fs.caller import Caller
from vnafs.fs.fences import WritersHeld
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fuse.recaller import Recaller
from vnafs.fuse.serving import MountOptions

RECALLS_PER_OPEN_MAX = 3
HELD_LOOK_SECONDS = 0.01
"""Between two tries of a writer that is held."""
_R = TypeVar("_R")


class Recalls:
    """What an engine awaits for a stub."""

    def __init__(self, filesystem: Filesystem, recaller: Recaller, options: MountOptions) -> None:
        self._fs = filesystem
        self._recaller = recaller
        self._options = options
        self._waiting = 0

    async def with_bytes(self, call: Callable[[], _R], caller: Caller) -> _R:
        """The result of a call that may need all bytes of a stub first."""
        for _ in range(RECALLS_PER_OPEN_MAX):
            try:
                return await self.let_through(call)
            except RecallNeeded as needed:
                self._admit(caller)
                await self._waiting_for(functools.partial(self._recaller.recall, needed.inode, needed.version))
                what = needed.inode
        raise RecallFailed(what=f"inode {what}", why="it was evicted again each time")

    def _admit(self, caller: Caller) -> None:
        admission = self._options.admission
        admission.counted(lambda: admission.check(caller))

    def admitted(self, handle: Handle, caller: Caller) -> Handle:
        """A handle; of a stub that is read by range only for who may make bytes come back."""
        if handle.file.descriptor < 0:
            try:
                self._admit(caller)
            except BaseException:
                self._fs.release(handle)
                raise
        return handle

    async def let_through(self, call: Callable[[], _R]) -> _R:
        """The result of a call that may find writers held. The tree sees to it that they are not for long."""
        while True:
            try:
                return call()
            except WritersHeld as held:
                await trio.sleep(min(held.seconds, HELD_LOOK_SECONDS))

    async def _waiting_for(self, bring: Callable[[], Awaitable[_R]]) -> _R:
        if self._waiting >= self._options.recalls_waiting_max:
            raise TooManyWaiting(limit=self._options.recalls_waiting_max)
        self._waiting += 1
        try:
            return await bring()
        except RecallRefused as refused:
            self._options.admission.note(refused)
            raise
        finally:
            self._waiting -= 1

    async def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """As `Filesystem.read`, with the bytes of a large stub brought here first."""
        failed: Exception | None = None
        for _ in range(RECALLS_PER_OPEN_MAX):
            try:
                return self._fs.read(handle, offset, length)
            except RangeNeeded as needed:
                if isinstance(failed, RecallFailed):
                    raise failed from None
                bring = functools.partial(
                    self._recaller.fetch_range, needed.inode, needed.version, needed.offset, needed.length
                )
                try:
                    return _pread(await self._waiting_for(bring), needed)
                except (FileNotFoundError, RecallFailed) as error:
                    failed = error  # forgotten meanwhile, or no stub any more: then the bytes are here
        raise RecallFailed(what="A part of a file", why="it was forgotten again each time")


def _pread(path: str, needed: RangeNeeded) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, needed.length, needed.offset)
    finally:
        os.close(descriptor)
