"""Trim: remove manifests from a target that no restore needs any more.

Kept are the newest snapshot that is old enough, all that came after it, and the runs that any snapshot kept there
names: so each state of the time that is kept can be had again. What is older goes, segments first. It is asked of one
target after the other, only when all that was recorded is there and nobody else has written to it: the caller sees to
that. A crash leaves less than there was, and the next time goes on.

What this archive did not name stays; what an earlier life of it left goes with the rest once it is old enough.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator

from vnafs.content import manifest
from vnafs.content.manifest import ABOUT, Operation
from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, FormatUnknown, KeyMissing, ObjectLocked, ObjectMissing
from vnafs.domain.ids import ObjectName, Sha256, Span
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

RUNS = "manifests/runs/"
UNUSABLE = (Damaged, FormatUnknown, KeyMissing, ObjectMissing)


@dataclasses.dataclass(frozen=True, slots=True)
class Trimmed:
    """What became of it."""

    oldest: int
    """The lowest number of a segment or snapshot that is left."""
    removed: int = 0
    locked: int = 0
    """Objects that should have gone, and are locked."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Snapshot:
    number: int
    created: Instant
    begin: int
    """Segments past this one bring it up to date."""
    runs: frozenset[Sha256]


class Trim:
    """One target. *secrets* read the manifests of an encrypted archive; *going_on* raises when it is to end."""

    def __init__(
        self, target: Target, archive: bytes, secrets: manifest.Keys | None, going_on: Callable[[], None]
    ) -> None:
        self._target = target
        self._archive = archive
        self._secrets = secrets
        self._going_on = going_on

    def trim(self, before: Instant, *, base_min: int = 0) -> Trimmed | None:
        """Remove what no state from *before* on needs; None when there is no snapshot to go by.

        *base_min*: the number that snapshot must have at least. Raises TargetUnavailable, TargetRefused.
        """
        numbers = sorted(self._numbers(manifest.SNAPSHOTS))
        kept: list[_Snapshot] = []
        for number in reversed(numbers):
            found = self._snapshot(number)
            if found is None:
                continue
            kept.append(found)
            if found.created <= before:
                break
        else:
            return None
        base = kept[-1]
        if base.number < base_min:
            return None
        removed = locked = 0
        for name in self._needless(base, {one.number for one in kept}, frozenset().union(*(one.runs for one in kept))):
            self._going_on()
            try:
                self._target.delete(name)
                removed += 1
            except ObjectLocked:
                locked += 1
        left = (*self._numbers(manifest.SEGMENTS), *self._numbers(manifest.SNAPSHOTS))
        if removed:
            log.info("manifest.trimmed", extra={"target": self._target.name, "removed": removed, "locked": locked})
        return Trimmed(min(left, default=0), removed, locked)

    def _needless(self, base: _Snapshot, snapshots: set[int], runs: frozenset[Sha256]) -> Iterator[ObjectName]:
        """In an order in which what is left can be used at any time."""
        for number in sorted(self._numbers(manifest.SNAPSHOTS)):
            if number < base.number and number not in snapshots:
                yield manifest.snapshot_name(number)
        for number in sorted(self._numbers(manifest.SEGMENTS)):
            if number <= base.begin:
                yield manifest.segment_name(number)
        needed = {manifest.run_name(sha256) for sha256 in runs}
        for name in self._target.list(RUNS):
            if name.endswith(".run") and name not in needed:
                yield name

    def _numbers(self, prefix: str) -> Iterator[int]:
        for name in self._target.list(prefix):
            number = manifest.number_in(name)
            if number is not None:
                yield number

    def _snapshot(self, number: int) -> _Snapshot | None:
        """What a snapshot there says; None for one that cannot be used, or is not this archive's."""
        name = manifest.snapshot_name(number)
        try:
            header = manifest.decode_header(b"".join(self._target.get(name, Span(0, manifest.HEADER_BYTES))))
            if header.archive != self._archive or header.number != number:
                return None
            _, rows = manifest.decode(b"".join(self._target.get(name)), self._secrets)
            begin, runs = number, set()
            for row in rows:
                if row.operation is Operation.RUN:
                    runs.add(manifest.run_of(row).sha256)
                elif row.key == ABOUT + b"from":
                    begin = int(row.value)
        except UNUSABLE as problem:
            log.warning("manifest.not_trimmed_by", extra={"target": self._target.name, "why": str(problem)})
            return None
        return _Snapshot(number, header.created, begin, frozenset(runs))
