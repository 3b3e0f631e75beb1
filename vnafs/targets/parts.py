"""How a large object is cut for upload, and how the uploads of its parts end together."""

from __future__ import annotations

import concurrent.futures
from typing import TypeVar

from vnafs.targets.limits import MEBIBYTE

_T = TypeVar("_T")


def cut(size_bytes: int, part_bytes: int, parts_max: int) -> list[tuple[int, int]]:
    """(offset, length) of each part in order, all but the last equal; parts grow when there would be too many."""
    needed = -(-size_bytes // parts_max)
    if needed > part_bytes:
        part_bytes = -(-needed // MEBIBYTE) * MEBIBYTE
    return [(offset, min(part_bytes, size_bytes - offset)) for offset in range(0, size_bytes, part_bytes)]


def all_or_first_failure(futures: list[concurrent.futures.Future[_T]]) -> list[_T]:
    """Results in order; at the first failure the rest is cancelled or waited for, so that none outlives the upload."""
    concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        future.cancel()
    concurrent.futures.wait(futures)
    failed = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]
