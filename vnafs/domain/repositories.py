"""A repository: one owner's top-level directory and the rules for what is in it."""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode

VERSIONS_KEPT_SECONDS = 30 * 86400
TRIPWIRE_PER_MINUTE = 5000


class OnTrip(enum.Enum):
    """What happens when very much is overwritten, renamed and deleted."""

    OFF = "off"
    ALERT = "alert"
    """It is said, and nothing that is kept expires any more."""
    READ_ONLY = "readonly"
    """As well, clients may change nothing."""


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
    tripwire: OnTrip = OnTrip.ALERT
    tripwire_per_minute: int = TRIPWIRE_PER_MINUTE
    """So many contents that are kept may be overwritten, renamed or deleted within a minute."""
    encrypted: bool = False
    """Its packs are encrypted, since it was made."""
    recall_bytes_per_day: int = 0
    """Brought back from targets in a day (UTC); 0 for no limit."""
    recall_requests_per_day: int = 0
    """Asked of targets for it in a day; 0 for no limit."""
    quota_bytes: int = 0
    """Its files may have so many bytes together, as their sizes say; 0 for no limit."""
    quota_files: int = 0
    """It may have so many files, directories, links and nodes, its own directory included; 0 for no limit."""
    retention: RetentionMode = RetentionMode.OFF
    """Whether files are committed in it, and how firmly they are retained then."""
    retention_seconds: int = 0
    """How long a file is retained that is committed without a date of its own."""
    autocommit_seconds: int = 0
    """A file is committed by itself after so long without a change; 0: never."""
    rolling_to_ns: int = 0
    """No rule, but where it stands: a rollback to this moment is under way (nanoseconds since 1970 UTC); 0: none."""
    rolling_since_ns: int = 0
    """When the last rollback began."""
    limbo: Inode = Inode(0)
    """Likewise: a directory without a name, where what a rollback took out of the tree waits to be copied; 0: none."""

    tripped_ns: int = 0
    """Likewise: when the tripwire was touched; 0: not since it was reset."""
    tripped_why: str = ""
    was_guarded: bool = False
    """Likewise: something in it is or was retained or held, so that it must be asked of each file."""

    @property
    def is_guarded(self) -> bool:
        """Whether something in it may be retained or held."""
        return self.was_guarded or self.retention is not RetentionMode.OFF

    @property
    def is_frozen(self) -> bool:
        """Whether clients may change nothing in it now."""
        return self.rolling_to_ns != 0 or (self.tripped_ns != 0 and self.tripwire is OnTrip.READ_ONLY)

    @property
    def loses_nothing(self) -> bool:
        """Whether something is wrong with it, or on its way: then all that it had is needed."""
        return bool(self.tripped_ns or self.rolling_to_ns or self.limbo)

    @property
    def why_frozen(self) -> str:
        """For whoever is refused."""
        if self.rolling_to_ns:
            return "it is being rolled back"
        return f"its tripwire was touched ({self.tripped_why}); see `vna status`"
