"""Seal: fix the bytes of one version, or say why not yet.

Reads local files and nothing else; knows no pack and no target. Blocks on the local disk, so it runs in worker
threads. A sealed version's bytes were read under one fingerprint, after everything written reached the disk and
while nobody could still write: neither a handle nor a shared writable mapping, which outlives close(2) and shows
only as a refused lease (fcntl(2), F_SETLEASE).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator

from vnafs.content.noise import HEAD_BYTES, is_noise
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Seal
from vnafs.domain.ids import Sha256
from vnafs.local.spool import fingerprint_of
from vnafs.local.syncing import Synced, sync_bytes

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024 * 1024
"""A file up to this is looked at as a whole; a larger one in windows of this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Later:
    """Not yet: the reason, and when to look again."""

    why: str
    due: Instant


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """The version is no longer the file's, is sealed already, or must not be: there is nothing to do."""


class Reading:
    """One version's bytes while they are being sealed. Use once, in order, in one thread."""

    def __init__(self, candidate: Candidate, facts: FileFacts, descriptor: int, faults: Faults) -> None:
        self.candidate = candidate
        self.facts = facts
        self.descriptor = descriptor
        self._faults = faults
        self._digest = hashlib.sha256()
        self._offset = 0
        self._head = b""
        self.fingerprint = fingerprint_of(os.fstat(descriptor))

    @property
    def size_bytes(self) -> int:
        """What the file had when reading began."""
        return self.fingerprint.size_bytes

    def whole(self) -> bytes:
        """All bytes of a file no larger than WINDOW_BYTES."""
        return self.read(self.size_bytes)

    def read(self, length_bytes: int) -> bytes:
        """The next bytes, fewer only where the file ends; they count into the digest."""
        parts = []
        while length_bytes > 0:
            part = os.pread(self.descriptor, length_bytes, self._offset)
            if not part:
                break
            self._offset += len(part)
            length_bytes -= len(part)
            parts.append(part)
        block = parts[0] if len(parts) == 1 else b"".join(parts)
        self._digest.update(block)
        self._head = self._head or bytes(block[:HEAD_BYTES])
        return block

    def finish(self) -> Seal | None:
        """The seal, or None when somebody changed the file while it was read."""
        self._faults.reach("seal.hashed")
        if fingerprint_of(os.fstat(self.descriptor)) != self.fingerprint or self._offset != self.size_bytes:
            return None
        return Seal(Sha256(self._digest.digest()), self.fingerprint, is_noise(self._head))


@contextlib.contextmanager
def reading(
    candidate: Candidate,
    facts: FileFacts,
    local_path: str,
    *,
    quiet_seconds: float,
    synced: Synced,
    clock: Clock,
    faults: Faults,
) -> Iterator[Reading | Later | Gone]:
    """Begin to seal one version; yields a Reading when its bytes may be read now.

    What *synced* covers is known to be on stable storage. Raises Suspect when the disk does not keep the rest.
    """
    if facts.version != candidate.version or facts.state is not candidate.state or facts.is_suspect:
        yield Gone()
        return
    now = clock.now()
    soon = Instant(now + int(quiet_seconds * NANOSECONDS))
    if facts.state is FileState.OPEN and candidate.due > now:
        # Taken up before its time because the clock was set back. Whoever opens the file for write meanwhile changes
        # the due time, so the file was quiet when this one comes.
        yield Later("the clock was set back", soon)
        return
    if facts.handles_open:
        yield Later("open for writing", soon)
        return
    try:
        descriptor = os.open(local_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        # A new version is just beginning and takes the file along; the queue will say.
        yield Later("local bytes are elsewhere", soon)
        return
    try:
        if not leasable(descriptor):
            yield Later("mapped or open for writing", soon)
            return
        touched = fingerprint_of(os.fstat(descriptor)).ctime_ns
        # After the clock was set back a change may lie in the future; the due time saw to it that the file was quiet.
        if 0 <= now - touched < quiet_seconds * NANOSECONDS:
            yield Later("not quiet yet", Instant(touched + int(quiet_seconds * NANOSECONDS)))
            return
        if not synced.covers(touched):
            sync_bytes(descriptor, f"inode {candidate.inode}")
        faults.reach("seal.leased")
        yield Reading(candidate, facts, descriptor, faults)
    finally:
        os.close(descriptor)


def leasable(descriptor: int) -> bool:
    """Whether nobody holds the file for writing, by handle or by mapping.

    The lease is given back at once: an opener would wait for it. The fingerprint guards the time after.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
