"""A repository: one owner's top-level directory and the rules for what is in it."""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.ids import RepositoryId

VERSIONS_KEPT_SECONDS = 30 * 86400


class Acknowledgement(enum.Enum):
    """What success of close, fsync and COMMIT means."""

    WRITTEN = "written"
    """What ext4 would mean: survives kill -9 of vnafs at once, and loss of power after fsync."""
    DURABLE = "durable"
    """Bytes and names are on stable storage before the answer, for close and for every change of the tree."""


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """One repository's rules. Its name is the directory's name in the root of the mount."""

    id: RepositoryId
    name: str
    acknowledgement: Acknowledgement = Acknowledgement.DURABLE
    copies_min: int = 1
    """Verified copies before a file counts as replicated and may lose its local bytes."""
    retention_class: int = 0
    """Written into packs; files of different classes never share a pack."""
    versions_kept_seconds: int = VERSIONS_KEPT_SECONDS
    """How long overwritten and deleted contents, and what names led to, are kept; 0 keeps nothing."""
