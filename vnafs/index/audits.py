"""Audit: what was done about retention, holds and what else protects files, by whom and why.

Rows are JSON; they are added and never changed.

Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop


def add(tx: Transaction, what: Mapping[str, Any]) -> int:
    """Note one thing; its number."""
    last = next(iter(tx.scan(keys.AUDITS, prefix_stop(keys.AUDITS), reverse=True)), None)
    number = 1 if last is None else keys.number_of(bytes(last[0])) + 1
    tx.put(keys.audit(number), json.dumps(what, ensure_ascii=True, separators=(",", ":")).encode())
    return number


def every(reader: Reader, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """What was noted past *after*, in order; lazily."""
    for key, raw in reader.scan(keys.audit(after + 1), prefix_stop(keys.AUDITS)):
        yield keys.number_of(bytes(key)), json.loads(bytes(raw))
