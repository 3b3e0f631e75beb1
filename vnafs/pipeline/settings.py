"""What tiering is told by whoever starts it: folders, limits and targets. Plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vnafs.domain.copies import Capabilities
from vnafs.domain.locks import Lock
from vnafs.targets.port import Target


@dataclasses.dataclass(frozen=True, slots=True)
class TieringSettings:
    """Folders and limits of tiering."""

    archive_id: bytes
    spool_folder: str
    packs_folder: str
    staging_folder: str
    recall_cache_folder: str
    frozen_folder: str
    quarantine_folder: str
    quiet_seconds: float
    unprotected_seconds_max: float
    hold_seconds_max: float
    pack_target_bytes: int
    pack_age_seconds_max: float
    compression_level: int
    encode_seconds_per_gigabyte_max: float
    attempts_file: str
    """Where it stands what is being encoded, should that kill the process."""
    workers: int
    waiting_bytes_max: int
    recall_cache_bytes_max: int
    recall_parts_bytes_max: int
    high_watermark_percent: float
    low_watermark_percent: float
    reserve_bytes: int
    lean_seconds_max: float
    quarantine_bytes_max: int
    quarantine_kept_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A target as configured."""

    open: Callable[[Capabilities | None], Target]
    """Makes the target, given what its last probe found."""
    url: str
    transfers_max: int
    lock: Lock | None = None
    """What the target gives to each object that is put there."""
    storage_seconds_min: float = 0.0
    """What it charges for at least for each object: one that goes earlier costs as much."""
