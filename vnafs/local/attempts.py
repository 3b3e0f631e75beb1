"""What was being tried when the process died: a small file, so that a codec that kills does it once to each piece.

Decoders and encoders of images are C libraries; one that crashes takes tierd with it, and the same piece would come
again after each start. So a digest of a piece is noted before it is tried and taken away afterwards. What is still
noted when the file is opened was being tried when the process died: it is deadly from then on, the newest RING of such.
Someone else's kill -9 looks the same and costs that piece a few percent of space. The file is mapped and never synced:
it must survive the process, not the power, whose loss is no codec's fault. Any thread.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
from collections.abc import Iterator

from vnafs.local.spool import local_error

log = logging.getLogger(__name__)

DIGEST_BYTES = 16
RING = 256
"""Deadly pieces that are remembered."""
SLOTS = 64
"""Pieces that are tried at once; more wait for nothing, they go unnoted."""
FILE_BYTES = (RING + SLOTS) * DIGEST_BYTES
_NONE = bytes(DIGEST_BYTES)


class AttemptsFile:
    """The file at *path*, made if need be. Raises StorageFailed, NoSpace. For one process."""

    def __init__(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Every block is there before it is mapped: a full disk is an error here, not a SIGBUS later.
                os.truncate(descriptor, min(os.fstat(descriptor).st_size, FILE_BYTES))
                os.posix_fallocate(descriptor, 0, FILE_BYTES)
                self._map = mmap.mmap(descriptor, FILE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise local_error(error, "opening the list of what was tried") from error
        self._lock = threading.Lock()
        self._free = list(range(RING, RING + SLOTS))
        died = [digest for slot in self._free if (digest := self._read(slot)) != _NONE]
        kept = [digest for slot in range(RING) if (digest := self._read(slot)) != _NONE and digest not in died]
        deadly = [*died, *kept][:RING]
        for slot in range(RING + SLOTS):
            self._write(slot, deadly[slot] if slot < len(deadly) else _NONE)
        self._deadly = frozenset(deadly)
        if died:
            log.warning("attempts.died", extra={"pieces": len(died)})

    def is_deadly(self, digest: bytes) -> bool:
        """Whether the process died while it tried this before."""
        return digest in self._deadly

    @contextlib.contextmanager
    def under_way(self, digest: bytes) -> Iterator[None]:
        """It is tried from now on to the end of the context."""
        with self._lock:
            slot = self._free.pop() if self._free else None
        if slot is None:
            yield
            return
        self._write(slot, digest)
        try:
            yield
        finally:
            self._write(slot, _NONE)
            with self._lock:
                self._free.append(slot)

    def _read(self, slot: int) -> bytes:
        return self._map[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES]

    def _write(self, slot: int, digest: bytes) -> None:
        self._map[slot * DIGEST_BYTES : (slot + 1) * DIGEST_BYTES] = digest
