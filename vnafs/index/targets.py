"""Targets as the store knows them: a number for each name, what it can do, and whether it still counts.

Numbers are never used twice, so a target that is removed and added again starts without copies.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import TargetName
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class TargetRow:
    """One G row."""

    number: int
    name: TargetName
    url: str
    """Without credentials."""
    capabilities: Capabilities | None = None
    """None until it was probed."""
    removed: bool = False


def put(tx: Transaction, row: TargetRow) -> None:
    """Store a target's row, new or changed."""
    body = {
        "name": row.name,
        "url": row.url,
        "capabilities": None if row.capabilities is None else dataclasses.asdict(row.capabilities),
        "removed": row.removed,
    }
    tx.put(keys.target(row.number), bytes([_VERSION]) + json.dumps(body).encode())


def every(reader: Reader) -> Iterator[TargetRow]:
    """All targets there ever were, in order of number."""
    for key, row in reader.scan(keys.TARGETS, prefix_stop(keys.TARGETS)):
        if row[0] > _VERSION:
            raise FormatUnknown(what="a target record", found=row[0], known=_VERSION)
        body = json.loads(row[1:])
        known = body["capabilities"]
        yield TargetRow(
            keys.number_of(key),
            TargetName(body["name"]),
            body["url"],
            None if known is None else Capabilities(**known),
            body["removed"],
        )


def current(reader: Reader) -> dict[int, TargetRow]:
    """The targets that count, by number."""
    return {row.number: row for row in every(reader) if not row.removed}
