"""What tierd answers about packs that no file needs: what removing them comes to, and have it done now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from appliance.control.server import Emit, Method
from vnafs.domain.errors import TargetError
from vnafs.domain.ids import pack_object_name
from vnafs.index import condemned, packs
from vnafs.index.condemned import Stage
from vnafs.index.engine import Engine
from vnafs.pipeline.replicate import Replicator
from vnafs.pipeline.runner import Tiering
from vnafs.upkeep.collect import Collector

NAMES_AT_ONCE = 1000


def collection_methods(
    collector: Collector, tiering: Tiering, store: Engine, prices: Mapping[str, float], *, enabled: bool
) -> list[Method]:
    """Their declarations; *prices* for a GB and month, by target."""

    def plan(params: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
        """What collecting would come to; with *strays* targets are listed, which costs requests."""
        found = dataclasses.asdict(collector.forecast())
        early = found.pop("early")
        rows = []
        for target in tiering.replicators():
            early_packs, byte_seconds = early.get(target.number, (0, 0))
            rows.append(
                {
                    "name": target.name,
                    "removals_waiting": _waiting(store, target),
                    "early_packs": early_packs,
                    "early_byte_seconds": byte_seconds,
                    "price_per_gigabyte_month": prices.get(target.name, 0.0),
                    "strays": _strays(store, target, emit) if params.get("strays") else None,
                }
            )
        return {**found, "enabled": enabled, "targets": rows}

    def hurry(_: Mapping[str, Any], __: Emit) -> None:
        """Look at all packs now."""
        collector.hurry()

    return [
        Method("collect.plan", plan, role="viewer"),
        Method("collect.hurry", hurry, role="administrator", audit="collection:packs:looked at"),
    ]


def _waiting(store: Engine, target: Replicator) -> int:
    """Objects that this target still has of packs whose rows are gone."""
    return sum(not row.is_gone_from(target.number) for _, row in condemned.rows(store, Stage.REMOVED))


def _strays(store: Engine, target: Replicator, emit: Emit) -> int | None:
    """Packs there that this index has no row of; None where the target does not answer."""
    with store.read() as reader:
        known = {pack_object_name(pack.id) for pack in packs.every(reader)}
    known |= {pack_object_name(row.id) for _, row in condemned.rows(store, *Stage)}
    strays = 0
    try:
        for done, name in enumerate(target.target.list("packs/"), 1):
            strays += name not in known
            if done % NAMES_AT_ONCE == 0:
                emit({"done": done})
    except TargetError:
        return None
    return strays
