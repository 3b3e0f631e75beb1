"""The work queue (Q rows): which version waits in which state until when.

Rows sort by (state, due, inode), so that "what is due" is one scan that ends at the first row of the future. A
file that is open for write stays in the queue at DUE_NEVER: it is counted, never due. It knows nothing of what
the work is. One row for each waiting inode is its callers' rule: they move rows instead of adding second ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import take_varint, varint

DUE_NEVER = keys.DUE_NEVER


def put(tx: Transaction, candidate: Candidate) -> None:
    """Let a version wait."""
    tx.put(keys.queue(candidate), varint(candidate.version))


def remove(tx: Transaction, candidate: Candidate) -> None:
    """Forget a row if it is there; the version in it does not matter."""
    tx.delete(keys.queue(candidate))


def move(
    tx: Transaction, candidate: Candidate, *, state: FileState | None = None, due: Instant | None = None
) -> Candidate | None:
    """Give a row another state or due time; returns the new row.

    Returns None, and changes nothing, when the row is not in its place any more or names another version:
    somebody else was faster.
    """
    old = keys.queue(candidate)
    raw = tx.get(old)
    if raw is None or take_varint(raw, 0)[0] != candidate.version:
        return None
    moved = dataclasses.replace(
        candidate, state=candidate.state if state is None else state, due=candidate.due if due is None else due
    )
    tx.delete(old)
    put(tx, moved)
    return moved


def due(
    reader: Reader, state: FileState, now: Instant, limit: int, *, after: Candidate | None = None
) -> list[Candidate]:
    """At most *limit* versions that wait in *state* and whose time has come, longest due first.

    *after* goes on behind the last row of an earlier call, whether or not that row is still there.
    """
    if now >= DUE_NEVER:
        raise ValueError("DUE_NEVER never comes")
    start = keys.queue_from(state) if after is None else keys.queue(after) + b"\0"
    rows = reader.scan(start, keys.queue_from(state, Instant(now + 1)))
    return list(itertools.islice(_candidates(rows), limit))


def every(reader: Reader, state: FileState, *, after: Candidate | None = None) -> Iterator[Candidate]:
    """All versions in *state*, those that are open for write last; *after* as in `due`."""
    prefix = keys.queue_from(state)[:2]
    start = prefix if after is None else keys.queue(after) + b"\0"
    return _candidates(reader.scan(start, prefix_stop(prefix)))


def next_due(reader: Reader, state: FileState) -> Instant | None:
    """When the next version in *state* is due; None when nothing waits there but files open for write."""
    for found in _candidates(reader.scan(keys.queue_from(state), keys.queue_from(state, DUE_NEVER))):
        return found.due
    return None


def count(reader: Reader, state: FileState, limit: int) -> int:
    """How many versions wait in *state*, due or not; stops counting at *limit*."""
    prefix = keys.queue_from(state)[:2]
    return sum(1 for _ in itertools.islice(reader.scan(prefix, prefix_stop(prefix)), limit))


def _candidates(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[Candidate]:
    for key, raw in rows:
        version, end = take_varint(raw, 0)
        if end != len(raw):
            raise Damaged(what="a queue record")
        yield keys.candidate_of(key, Version(version))
