"""A stage: bytes gathered before any of them leave, in memory while they are few, else in a file, with room for it.

What is sent to a plain mirror is compared first and cannot change meanwhile. One thread for each stage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from types import TracebackType

from vnafs.domain.ids import Sha256
from vnafs.local.spool import local_error
from vnafs.targets.body import BytesBody, FileBody
from vnafs.targets.port import Body

MEMORY_BYTES_MAX = 8 * 1024 * 1024
"""Of one stage."""
ROOM_BYTES = 64 * 1024 * 1024
"""Taken of the local disk at a time, where it is not known how much will come."""


class Stage:
    """A context manager; its body lives as long as it does. Raises NoSpace, StorageFailed."""

    def __init__(self, path: str, taking_room: Callable[[int], contextlib.AbstractContextManager[None]]) -> None:
        self._path = path
        self._taking_room = taking_room
        self._digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._file = -1
        self._room_bytes = 0
        self._stack = contextlib.ExitStack()
        self.size_bytes = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._stack.close()

    def add(self, block: bytes) -> None:
        """Some more bytes."""
        self._digest.update(block)
        self.size_bytes += len(block)
        if self._file < 0 and self.size_bytes <= MEMORY_BYTES_MAX:
            self._parts.append(block)
            return
        while self._room_bytes < self.size_bytes:
            self._stack.enter_context(self._taking_room(ROOM_BYTES))
            self._room_bytes += ROOM_BYTES
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            for part in (*self._parts, block):
                view = memoryview(part)
                while view:
                    view = view[os.write(self._file, view) :]
            self._parts.clear()
        except OSError as problem:
            raise local_error(problem, "staging bytes for a mirror") from problem

    @property
    def sha256(self) -> Sha256:
        """Of all there is so far."""
        return Sha256(self._digest.digest())

    def body(self) -> Body:
        """All there is."""
        if self._file < 0:
            return BytesBody(b"".join(self._parts))
        return FileBody(self._path, self.size_bytes, self.sha256)
