"""A file's bytes through their life, and the one table of legal moves.

`OPEN → SEALED → PACKED → REPLICATED → STUB`; recall goes back; a write to sealed bytes begins a new version.
"""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version


class FileState(enum.IntEnum):
    """Where the bytes of one version are. The numbers are stored in the index and never change meaning."""

    OPEN = 1
    """Being written, or not yet looked at since."""
    SEALED = 2
    """Fixed: the SHA-256 is known and equals the local bytes of the recorded fingerprint."""
    PACKED = 3
    """Its pieces are in closed, synced packs on the local disk or on targets."""
    REPLICATED = 4
    """As many targets as the repository asks for have a verified copy."""
    STUB = 5
    """The bytes are only on targets; opening the file recalls them."""

    @property
    def label(self) -> str:
        """As `user.vna.state` shows it."""
        return self.name.lower()


TRANSITIONS: frozenset[tuple[FileState, FileState]] = frozenset(
    {
        (FileState.OPEN, FileState.SEALED),
        (FileState.SEALED, FileState.PACKED),
        (FileState.PACKED, FileState.REPLICATED),
        (FileState.REPLICATED, FileState.STUB),
        # recall brings local bytes back
        (FileState.STUB, FileState.REPLICATED),
        # a copy was lost or a target removed
        (FileState.REPLICATED, FileState.PACKED),
        # its pack was given up before any target had it: the local bytes are packed again
        (FileState.PACKED, FileState.SEALED),
        # a write, or bytes that no longer carry the recorded fingerprint
        (FileState.SEALED, FileState.OPEN),
        (FileState.PACKED, FileState.OPEN),
        (FileState.REPLICATED, FileState.OPEN),
        (FileState.STUB, FileState.OPEN),
    }
)


def may_advance(now: FileState, wanted: FileState) -> bool:
    """Whether tiering may move a version from *now* to *wanted*, several steps at once included."""
    if now is wanted:
        return True
    if FileState.OPEN <= now < wanted <= FileState.REPLICATED:
        return all((FileState(s), FileState(s + 1)) in TRANSITIONS for s in range(now, wanted))
    if FileState.SEALED <= wanted < now <= FileState.REPLICATED:
        return all((FileState(s + 1), FileState(s)) in TRANSITIONS for s in range(wanted, now))
    return False


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the local file system says of a local file; equal before and after means nobody wrote between."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Seal:
    """What sealing learned of one version: the identity of its bytes and the fingerprint they were read under."""

    sha256: Sha256
    fingerprint: Fingerprint
    is_noise: bool = dataclasses.field(default=False, compare=False)
    """The bytes look encrypted; told once, when they are sealed, and not stored."""


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A row of the work queue: a version that waits in *state* until *due*."""

    inode: Inode
    version: Version
    state: FileState
    due: Instant


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """Tiering asks the tree to move (inode, version) to *state*; the tree does so only if that still holds."""

    inode: Inode
    version: Version
    state: FileState
    seal: Seal | None = None
    """Needed to leave OPEN."""
    sha256: Sha256 | None = None
    """Without a seal: only if the version was sealed with these bytes. A version that is OPEN may be sealed more than
    once, so news of bytes that it had before must not be taken for news of those it has."""

    @property
    def content(self) -> Sha256 | None:
        """The bytes that this is about, where it says so."""
        return self.sha256 if self.seal is None else self.seal.sha256


class Verdict(enum.Enum):
    """The tree's answer to one proposal."""

    DONE = "done"
    GONE = "gone"
    """No such inode or another version: forget the work."""
    KEPT = "kept"
    """It is not the file's version any more, but its bytes are kept: forget the work, not the content."""
    CHANGED = "changed"
    """The local bytes are not those that were sealed: the file is OPEN again and will come back as a candidate."""
    BUSY = "busy"
    """Somebody has it open; ask again later."""
    UNHELD = "unheld"
    """Linux itself writes for somebody who has it open, whom nobody can hold."""
    ILLEGAL = "illegal"
    """No such move from the state it is in."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileFacts:
    """What a decision about one file's bytes needs to know."""

    inode: Inode
    version: Version
    repository: RepositoryId
    state: FileState
    size_bytes: int
    sha256: Sha256 | None
    fingerprint: Fingerprint | None
    """Of the local bytes at seal or recall; None while OPEN or STUB."""
    handles_open: int
    mtime_ns: int
    path_hint: bytes
    """One current path below the mount, empty when the file has no name."""
    is_suspect: bool = False
    """The local disk did not keep all bytes of this version: it must not be sealed."""
