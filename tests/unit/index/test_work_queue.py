"""The work queue: what is due, in order; what is parked is counted and never due."""

from __future__ import annotations

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import Inode, Version
from vnafs.index import keys, queue
from vnafs.index.engines.memory import MemoryEngine


def waits(inode: int, due: int, state: FileState = FileState.OPEN, version: int = 1) -> Candidate:
    return Candidate(Inode(inode), Version(version), state, Instant(due))


def a_queue(*candidates: Candidate) -> MemoryEngine:
    engine = MemoryEngine()
    with engine.write() as tx:
        for candidate in candidates:
            queue.put(tx, candidate)
    return engine


def due(engine: MemoryEngine, now: int, limit: int = 100, state: FileState = FileState.OPEN) -> list[Candidate]:
    with engine.read() as reader:
        return queue.due(reader, state, Instant(now), limit)


def test_what_is_due_comes_longest_due_first_and_only_of_one_state() -> None:
    engine = a_queue(waits(1, 30), waits(2, 10, version=300), waits(3, 20, FileState.SEALED), waits(4, 20))
    assert due(engine, 20) == [waits(2, 10, version=300), waits(4, 20)]
    assert due(engine, 9) == []
    assert due(engine, 99, limit=1) == [waits(2, 10, version=300)]
    assert due(engine, 99, state=FileState.SEALED) == [waits(3, 20, FileState.SEALED)]


def test_a_file_open_for_write_is_counted_and_never_due() -> None:
    engine = a_queue(waits(1, queue.DUE_NEVER), waits(2, 5))
    assert due(engine, queue.DUE_NEVER - 1) == [waits(2, 5)]
    with engine.read() as reader:
        assert queue.count(reader, FileState.OPEN, 10) == 2
        assert queue.count(reader, FileState.OPEN, 1) == 1
        assert queue.count(reader, FileState.SEALED, 10) == 0
    with pytest.raises(ValueError, match="never comes"):
        due(engine, queue.DUE_NEVER)


def test_the_next_due_time_is_known_to_sleep_until() -> None:
    engine = a_queue(waits(1, queue.DUE_NEVER), waits(2, 50), waits(3, 70))
    with engine.read() as reader:
        assert queue.next_due(reader, FileState.OPEN) == 50
        assert queue.next_due(reader, FileState.SEALED) is None
    engine = a_queue(waits(1, queue.DUE_NEVER))
    with engine.read() as reader:
        assert queue.next_due(reader, FileState.OPEN) is None


def test_moving_a_row_leaves_one() -> None:
    engine = a_queue(waits(1, 10))
    with engine.write() as tx:
        assert queue.move(tx, waits(1, 10), state=FileState.SEALED, due=Instant(40)) == waits(1, 40, FileState.SEALED)
    assert due(engine, 99) == []
    assert due(engine, 99, state=FileState.SEALED) == [waits(1, 40, FileState.SEALED)]
    with engine.write() as tx:
        assert queue.move(tx, waits(1, 40, FileState.SEALED)) == waits(1, 40, FileState.SEALED)
    assert due(engine, 99, state=FileState.SEALED) == [waits(1, 40, FileState.SEALED)]


@pytest.mark.parametrize("stale", [waits(1, 11), waits(2, 10), waits(1, 10, version=2), waits(1, 10, FileState.PACKED)])
def test_a_row_that_somebody_else_moved_stays_where_it_is(stale: Candidate) -> None:
    engine = a_queue(waits(1, 10))
    with engine.write() as tx:
        assert queue.move(tx, stale, due=Instant(99)) is None
    assert due(engine, 1000) == [waits(1, 10)]


def test_a_removed_row_is_gone_and_may_be_removed_again() -> None:
    engine = a_queue(waits(1, 10))
    for _ in range(2):
        with engine.write() as tx:
            queue.remove(tx, waits(1, 10))
    assert due(engine, 99) == []


def test_a_damaged_row_is_not_taken_for_work() -> None:
    engine = a_queue()
    with engine.write() as tx:
        tx.put(keys.queue(waits(1, 10)), b"\x01\x02")
    with pytest.raises(Damaged):
        due(engine, 99)
