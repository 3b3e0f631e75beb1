"""Locks on objects: until when a target itself refuses to let go of them, whoever asks."""

from __future__ import annotations

import dataclasses
import enum
import time

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.errors import ObjectLocked
from vnafs.domain.ids import ObjectName, TargetName

FOR_EVER = Instant(0)
"""Of a lock that ends when somebody lifts it, and of one whose end nobody can tell."""


class LockMode(enum.StrEnum):
    """How firm a lock is. The names are those of S3 Object Lock."""

    GOVERNANCE = "governance"
    """Whoever has the right to bypass it can."""
    COMPLIANCE = "compliance"
    """Nobody can, the owner of the account included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """What a target is asked to do with each object that is put."""

    seconds: int
    mode: LockMode = LockMode.GOVERNANCE

    def until(self, now: Instant) -> Instant:
        """When the lock of an object that is put, or renewed, *now* runs out; in whole seconds, as targets keep it."""
        return Instant((now // NANOSECONDS + 1 + self.seconds) * NANOSECONDS)

    def is_worn(self, until: Instant | None, now: Instant) -> bool:
        """Whether less than half of it is left: time to renew it, while there is time for a target that is away."""
        return until is None or until - now < self.seconds * NANOSECONDS // 2


def locked(target: TargetName, name: ObjectName, until: Instant) -> ObjectLocked:
    """The refusal to delete an object; `fields["until_ns"]` has the time for programs."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(until // NANOSECONDS)) if until else "somebody lifts it"
    return ObjectLocked(target=target, name=name, until=shown, until_ns=until)


@dataclasses.dataclass(frozen=True, slots=True)
class Powers:
    """What the credential in daily use can do to objects that are there. None: nobody could tell, or none is needed."""

    can_delete: bool | None = None
    """Make an object go, or hide it where the target keeps versions."""
    can_remove_versions: bool | None = None
    """Remove the bytes for good where the target keeps versions."""
    can_lock: bool | None = None
    """Put a lock on an object, and extend it."""
    can_shorten: bool | None = None
    """Shorten a lock in governance mode, or remove what it keeps."""
    can_configure: bool | None = None
    """Change what the bucket does with versions and locks."""
    default_retention: str = ""
    """The lock that the target itself gives to each object, as it says; empty for none or unknown."""

    def warnings(self, *, locks: bool, versioning: bool) -> list[str]:
        """What an administrator should know, in plain words with the fix. *locks*: the target has Object Lock."""
        found = []
        if self.can_delete and versioning and not self.can_remove_versions:
            found.append(
                "The daily credential can hide objects behind delete markers. The bytes stay, and are still read. Fix: "
                "take s3:DeleteObject from it, and name another credential with removal_credentials_file"
            )
        elif self.can_delete or self.can_remove_versions:
            found.append(
                "The daily credential can delete: whoever steals it can destroy these copies. Fix: take the right to "
                "delete from it, and name another credential with removal_credentials_file"
            )
        if self.can_shorten:
            found.append(
                "The daily credential can bypass governance locks: it can shorten them and delete what they keep. Fix: "
                'deny it s3:BypassGovernanceRetention, or use lock_mode = "compliance"'
            )
        if self.can_configure:
            found.append(
                "The daily credential can change versioning or the default lock of the bucket. Fix: deny it "
                "s3:PutBucketVersioning and s3:PutBucketObjectLockConfiguration"
            )
        if locks and self.can_lock is False:
            found.append(
                "The daily credential cannot lock objects. Fix: grant it s3:PutObjectRetention and "
                "s3:GetObjectRetention, or set lock_seconds = 0"
            )
        return found
