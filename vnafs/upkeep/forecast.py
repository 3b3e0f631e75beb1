"""Forecast: what collecting would come to, for whoever asks before. Reads rows, a few packs in one view."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.ids import PackNumber
from vnafs.index import condemned, packs
from vnafs.index.condemned import Stage
from vnafs.index.engine import Engine
from vnafs.upkeep.needs import Needs

PACKS_AT_ONCE = 256


@dataclasses.dataclass(slots=True)
class Forecast:
    """Sizes in bytes."""

    packs: int = 0
    """All there are."""
    condemned: int = 0
    dead: int = 0
    dead_bytes: int = 0
    """Of packs that no file needs, condemned ones included."""
    thin: int = 0
    thin_bytes: int = 0
    """Of packs that would be packed again."""
    thin_live_bytes: int = 0
    """What is needed of them, decoded: it is read from a target where the pack is not here."""
    removable_ns: int = 0
    """When the first condemned pack may be removed; 0: none is condemned."""
    early: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """By target: packs that it charges for longer than they are there already, and their byte-seconds left."""
    frozen: tuple[str, ...] = ()
    """Repositories that lose nothing now."""


def forecast(
    store: Engine,
    needs: Needs,
    *,
    after_seconds: float,
    live_percent_min: float,
    storage_seconds_min: Mapping[int, float],
    clock: Clock,
) -> Forecast:
    """Takes as long as there are packs; *storage_seconds_min* is what targets charge for at least, by number."""
    found, rules, now = Forecast(), needs.rules(), clock.now()
    found.frozen = tuple(sorted(rule.name for rule in rules.values() if rule.loses_nothing))
    after = PackNumber(0)
    while True:
        with store.read() as reader:
            batch = []
            for pack in packs.every(reader, after=after):
                batch.append((pack, needs.of(reader, pack, rules)))
                if len(batch) == PACKS_AT_ONCE:
                    break
        if not batch:
            break
        after = batch[-1][0].number
        for pack, need in batch:
            found.packs += 1
            if need is None or not (need.is_dead or need.is_below(live_percent_min)):
                continue
            if need.is_dead:
                found.dead, found.dead_bytes = found.dead + 1, found.dead_bytes + pack.size_bytes
            else:
                found.thin, found.thin_bytes = found.thin + 1, found.thin_bytes + pack.size_bytes
                found.thin_live_bytes += need.live_bytes
            for target, seconds in storage_seconds_min.items():
                left_seconds = (pack.closed - now) / NANOSECONDS + seconds
                if left_seconds > 0:
                    count, byte_seconds = found.early.get(target, (0, 0))
                    found.early[target] = count + 1, byte_seconds + int(left_seconds * pack.size_bytes)
    first = 0
    for _, row in condemned.rows(store, Stage.CONDEMNED):
        found.condemned += 1
        first = min(first or row.since, row.since)
    found.removable_ns = first and first + int(after_seconds * NANOSECONDS)
    return found
