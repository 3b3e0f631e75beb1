"""Which manifests on one target bring an archive back: a snapshot, and the segments that follow it without a hole.

Reads and decides; loads nothing. What cannot be followed is named as a problem, and an older snapshot is looked for.
One thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator

from vnafs.content import keyring, manifest
from vnafs.content.keyring import Unlocked
from vnafs.content.manifest import ABOUT, Header, Kind, Operation, Row, Run
from vnafs.domain.errors import Damaged, FormatUnknown, KeyMissing, NotFound, ObjectMissing
from vnafs.domain.ids import (
    ObjectName,
    Sha256,
)
from vnafs.targets.port import Target
from vnafs.upkeep.ledger import digest_of

log = logging.getLogger(__name__)

OBJECT_BYTES_MAX = 300 * 1024 * 1024
UNUSABLE = (Damaged, FormatUnknown, KeyMissing, ObjectMissing)
"""What keeps one object from being used, and not the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to load: a snapshot, and the segments that bring it to one state."""

    header: Header
    runs: tuple[Run, ...]
    segments: tuple[int, ...]
    digest: Sha256
    """Of the last of them."""
    head: int
    problems: tuple[str, ...]


class Source:
    """The manifests on one target, looked at with distrust."""

    def __init__(self, target: Target, secrets: manifest.Keys | None) -> None:
        self._target = target
        self._secrets = secrets

    def read(self, name: ObjectName) -> tuple[Header, Iterator[Row]]:
        """What an object says. Raises as `get` and `decode` do."""
        return self.decode(self.get(name))

    def decode(self, data: bytes) -> tuple[Header, Iterator[Row]]:
        """See manifest.decode."""
        return manifest.decode(data, self._secrets)

    def get(self, name: ObjectName) -> bytes:
        """A whole object. Raises ObjectMissing, Damaged, TargetUnavailable, TargetRefused."""
        data = bytearray()
        for block in self._target.get(name):
            data += block
            if len(data) > OBJECT_BYTES_MAX:
                raise Damaged(what=f"Object {name} on target {self._target.name}")
        return bytes(data)

    def plan(self, archive: bytes | None = None, *, below: int | None = None) -> Plan:
        """What can be restored, the newest state first; *below* a snapshot's number, only from older ones.

        Raises NotFound when there is nothing.
        """
        problems: list[str] = []
        numbers = sorted(self._numbers(manifest.SNAPSHOTS), reverse=True)
        there = set(self._numbers(manifest.SEGMENTS))
        head = max(there, default=0)
        for number in numbers:
            if below is not None and number >= below:
                continue
            try:
                plan = self._plan_from(number, there, archive)
            except UNUSABLE as problem:
                problems.append(f"snapshot {number} cannot be used: {problem}")
                continue
            if plan is not None:
                last = plan.segments[-1] if plan.segments else number
                if last < head:
                    problems.append(
                        f"segments {last + 1} to {head} are incomplete, damaged or forged; what they tell is not used"
                    )
                return dataclasses.replace(plan, head=head, problems=tuple(problems))
            problems.append(f"snapshot {number} cannot be used: segments that it needs are missing or do not follow")
        raise NotFound(what="A usable manifest" + "".join(f"; {problem}" for problem in problems))

    def _numbers(self, prefix: str) -> Iterator[int]:
        for name in self._target.list(prefix):
            number = manifest.number_in(name)
            if number is not None:
                yield number

    def _plan_from(self, number: int, there: set[int], archive: bytes | None) -> Plan | None:
        header, rows = self.read(manifest.snapshot_name(number))
        if header.kind is not Kind.SNAPSHOT or header.number != number or archive not in {None, header.archive}:
            raise Damaged(what=f"snapshot {number}")
        begin, runs = number, []
        for row in rows:
            if row.operation is Operation.RUN:
                runs.append(manifest.run_of(row))
            elif row.key == ABOUT + b"from":
                begin = int(row.value)
        digest: Sha256 | None = None
        whole: list[int] = []
        digest_whole = header.previous
        pending: list[int] = []
        for at in itertools.count(begin + 1):
            segment = self._segment(at, header.archive) if at in there else None
            if segment is None:
                break
            data, its = segment
            if digest is not None and its.previous != digest:
                break
            digest = digest_of(data)
            if at == number and digest != header.previous:
                return None
            pending.append(at)
            if not its.more:
                whole += pending
                pending.clear()
                digest_whole = digest
        if number > begin and (not whole or whole[-1] < number):
            return None
        return Plan(header, tuple(runs), tuple(whole), digest_whole, 0, ())

    def _segment(self, number: int, archive: bytes) -> tuple[bytes, Header] | None:
        try:
            data = self.get(manifest.segment_name(number))
            header, _ = self.decode(data)
        except UNUSABLE as problem:
            log.warning("restore.segment", extra={"number": number, "why": str(problem)})
            return None
        usable = header.kind is Kind.SEGMENT and header.number == number and header.archive == archive
        return (data, header) if usable else None


def secrets_of(unlocked: Unlocked) -> manifest.Keys:
    """What reads the manifests of an archive whose keyring is open."""
    known = unlocked.every()
    latest = [key.id for key in unlocked.keyring.keys if key.repository == keyring.MANIFESTS][-1]
    return manifest.Keys(known[latest], known)
