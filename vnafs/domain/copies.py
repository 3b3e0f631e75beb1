"""What a target says about an object, and what that is worth."""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.clock import Instant
from vnafs.domain.ids import Sha256, TargetName


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What one target was seen to do when it was probed, once; remembered in the index."""

    exclusive_create: bool
    """A put to a name that exists is refused by the target itself."""
    exclusive_create_multipart: bool
    """The same when a multipart upload is completed."""
    checksum_sha256: bool
    """The target computes SHA-256 over what it received: it refused a wrong one."""
    checksum_md5: bool
    """It refused a wrong Content-MD5: guards the transfer, too weak to count as verification."""
    multipart: bool
    versioning: bool = False
    object_lock: bool = False
    list_consistent: bool = True
    identity: str = ""
    """Which place was probed: for a directory the random id in its marker, so that an unmounted disk or another
    one in its place is noticed; empty where the provider's own names are unique."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What a target vouches for about one object, without us reading its bytes."""

    size_bytes: int
    sha256: Sha256 | None
    """Computed by the target over all the bytes it stored; None when it cannot."""
    etag: str = ""


class CopyState(enum.IntEnum):
    """One pack on one target. The numbers are stored in the index."""

    WAITING = 1
    UPLOADED = 2
    """The target said yes; counts for nothing."""
    VERIFIED = 3
    """The target's own SHA-256, or every byte read back, equals ours."""
    DAMAGED = 4
    """Was read back different; never served, to be healed."""


class VerifiedBy(enum.IntEnum):
    """How a copy was verified."""

    NOTHING = 0
    TARGET_CHECKSUM = 1
    READ_BACK = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """A verified copy as `user.vna.copies` and `vna status` show it."""

    target: TargetName
    verified: Instant
