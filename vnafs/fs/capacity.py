"""What statfs(2) shows: how much a repository may still take, as whoever is about to send it wants to know.

Of a repository with a quota that is the quota. Without one it is what its targets take, where that is known: the local
disk is a cache, which empties itself into them. It never promises what writers would not get: nothing is free while
the local disk has no room, and where local bytes cannot go anywhere the local disk is all there is.

Pure functions. Knows no target but by its room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vnafs.domain.repositories import Repository
from vnafs.index.counts import Count
from vnafs.local.space import Room

Targets = Sequence[Room | None]
"""The room on each target; None where it has no end, or nobody knows it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """What statfs(2) shows, in bytes and files."""

    total_bytes: int
    free_bytes: int
    files_total: int
    files_free: int


def of_disk(disk: Room, reserve_bytes: int) -> Statistics:
    """The local disk without what writers never get."""
    return Statistics(
        max(disk.total_bytes - reserve_bytes, 0),
        max(disk.free_bytes - reserve_bytes, 0),
        disk.files_total,
        disk.files_free,
    )


def of_repository(local: Statistics, rules: Repository, used: Count, targets: Targets | None) -> Statistics:
    """One repository; *targets* is None where it is not known which there are."""
    bounds: list[tuple[int, int]] = []  # total and free, the one that counts for the total first
    if rules.quota_bytes:
        bounds.append((rules.quota_bytes, max(rules.quota_bytes - used.size_bytes, 0)))
    if targets is not None:
        if len(targets) < rules.copies_min:
            bounds.append((local.total_bytes, local.free_bytes))
        elif (room := _for_copies(targets, rules.copies_min)) is not None:
            bounds.append((room.total_bytes, room.free_bytes))
    total_bytes = bounds[0][0] if bounds else local.total_bytes
    free_bytes = min((free for _, free in bounds), default=local.free_bytes)
    files_total, files_free = local.files_total, local.files_free
    if rules.quota_files:
        has_inodes = local.files_free > 0 or not local.files_total  # some file systems do not count them
        files_total = rules.quota_files
        files_free = max(rules.quota_files - used.rows, 0) if has_inodes else 0
    return Statistics(total_bytes, free_bytes if local.free_bytes else 0, files_total, files_free)


def _for_copies(targets: Targets, copies: int) -> Room | None:
    """The room for what must be on so many targets: each file goes to those that have the most."""
    known = sorted((room for room in targets if room is not None), key=lambda room: room.free_bytes, reverse=True)
    endless = len(targets) - len(known)
    return None if endless >= copies else known[copies - endless - 1]
