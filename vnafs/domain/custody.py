"""What an archive can vouch for of one file, and whether its sender may delete it. Plain values and a pure decision."""

from __future__ import annotations

import dataclasses

from vnafs.domain.clock import Instant
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.eviction import YES, Decision
from vnafs.domain.files import FileState
from vnafs.domain.ids import Sha256, TargetName
from vnafs.domain.recipes import EMPTY
from vnafs.domain.repositories import Repository

NAME_NOT_RECORDED = "its name is not recorded yet on any target that has its bytes"


@dataclasses.dataclass(frozen=True, slots=True)
class CustodyCopy:
    """One target that holds every byte of a file verified."""

    target: TargetName
    verified: Instant
    """Every byte was verified then or later: the oldest of the times of its packs."""
    verified_by: tuple[VerifiedBy, ...]
    """Each way in which some of its packs were verified, once."""
    names_recorded: bool
    """The target's manifests lead to this file: they are enough to find it when nothing else is left."""


@dataclasses.dataclass(frozen=True, slots=True)
class Custody:
    """One file at one moment."""

    path: bytes
    """Below the mount; begins with the name of the repository."""
    repository: Repository
    size_bytes: int
    mtime_ns: int
    state: FileState
    sha256: Sha256 | None
    """None while its bytes are not fixed."""
    copies: tuple[CustodyCopy, ...]
    trouble: str = ""
    """Why nothing can be said for sure: it changed while it was looked at, or its local bytes are not those sealed."""
    holds: tuple[str, ...] = ()
    """What keeps it from being removed or changed here: retention and legal holds."""


def may_delete(file: Custody) -> Decision:
    """Whether the sender may delete its own file: it is here for good, whatever single place is lost."""
    wanted = max(1, file.repository.copies_min)
    held = ", ".join(copy.target for copy in file.copies) or "none"
    if file.trouble:
        why = file.trouble
    elif file.state is FileState.OPEN or file.sha256 is None:
        why = "it is open, or was written to moments ago: its bytes are not fixed yet"
    elif file.state is FileState.SEALED:
        why = "its bytes are fixed and not in a closed pack yet"
    elif file.sha256 == EMPTY:
        return YES  # nothing of it could be lost but its name
    elif len(file.copies) < wanted:
        why = f"{wanted} verified copies are asked for and there are {len(file.copies)} ({held})"
    elif file.state is FileState.PACKED:
        why = "its copies are verified and it is not called replicated yet"
    elif not any(copy.names_recorded for copy in file.copies):
        why = NAME_NOT_RECORDED
    else:
        return YES
    return Decision(yes=False, why=why)
