"""Drills: what the last rehearsals came to, as one named value of the store. Reads and changes in a transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vnafs.index import meta
from vnafs.index.engine import Reader, Transaction

NAME = "drills"
KEPT_MAX = 50


def every(reader: Reader) -> list[dict[str, Any]]:
    """The last ones, youngest last; each as `upkeep.drill.Drill` has it, and `passed`."""
    known = meta.get_bytes(reader, NAME)
    return [] if known is None else list(json.loads(known))


def add(tx: Transaction, drill: Mapping[str, Any]) -> None:
    """Remember one more."""
    held = [*every(tx), dict(drill)][-KEPT_MAX:]
    meta.set_bytes(tx, NAME, json.dumps(held).encode())
