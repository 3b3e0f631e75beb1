"""The feed: gap-free, trimmed from its old end, followed by cursors that can fall behind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnafs.domain.errors import CursorAhead, CursorBehind, CursorLost, Damaged, FormatUnknown
from vnafs.domain.events import Event, EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, Version
from vnafs.index import feeds, keys
from vnafs.index.engine import Engine
from vnafs.index.engines.lmdb import LmdbEngine
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.feeds import Feed

events = st.builds(
    Event,
    kind=st.sampled_from(EventKind),
    inode=st.integers(0, (1 << 64) - 1).map(Inode),
    version=st.integers(0, (1 << 64) - 1).map(Version),
    parent=st.integers(0, (1 << 64) - 1).map(Inode),
    name=st.binary(max_size=255),
    detail=st.integers(0, (1 << 64) - 1),
)


def state(inode: int) -> Event:
    return Event(EventKind.STATE, Inode((1 << 40) + inode), Version(1), detail=FileState.SEALED)


def append(engine: Engine, feed: Feed, *inodes: int) -> list[int]:
    with engine.write() as tx:
        return [feed.append(tx, state(inode)) for inode in inodes]


def read(engine: Engine, cursor: int, limit: int = 100) -> list[int]:
    with engine.read() as reader:
        return [number for number, _ in feeds.read_from(reader, cursor, limit)]


def trim(engine: Engine, feed_events_max: int, limit: int = 1000) -> int:
    with engine.write() as tx:
        return feeds.trim(tx, feed_events_max, limit)


@given(events)
def test_an_event_comes_back(event: Event) -> None:
    assert feeds.decode(feeds.encode(event)) == event


def test_a_change_of_state_is_short() -> None:
    assert len(feeds.encode(state(123_456_789))) <= 12
    named = Event(EventKind.NAMED, Inode((1 << 40) + 5), Version(1), Inode((1 << 40) + 2), b"IM000001.dcm")
    assert len(feeds.encode(named)) <= 30


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x01\x07\x80", feeds.encode(state(1)) + b"x"])
def test_bytes_that_are_no_event_are_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        feeds.decode(raw)


@pytest.mark.parametrize("raw", [b"\x02\x07\x01\x01", b"\x01\x3f\x01\x01"])
def test_an_event_of_a_newer_program_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatUnknown):
        feeds.decode(raw)


def test_events_are_numbered_without_gaps_and_read_in_order() -> None:
    engine, feed = MemoryEngine(), Feed()
    assert append(engine, feed, 5, 6) == [1, 2]
    assert append(engine, feed, 7) == [3]
    with engine.read() as reader:
        assert feeds.read_from(reader, 1, 2) == [(1, state(5)), (2, state(6))]
        assert feeds.read_from(reader, 3, 2) == [(3, state(7))]
        assert feeds.read_from(reader, 4, 2) == []
        assert (feeds.begin(reader), feeds.end(reader)) == (1, 4)


def test_numbers_of_a_transaction_that_was_rolled_back_are_given_again() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, 1)

    def add_and_fail() -> None:
        with engine.write() as tx:
            feed.append(tx, state(2))
            feed.append(tx, state(3))
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            add_and_fail()
    assert append(engine, feed, 4, 5) == [2, 3]
    assert read(engine, 1) == [1, 2, 3]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    for numbers in ([1, 2], [3, 4]):
        with contextlib.closing(LmdbEngine(str(tmp_path / "index"))) as engine:
            assert append(engine, Feed(), 1, 2) == numbers


def test_trimming_keeps_the_newest_in_bounded_steps() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, *range(10))
    assert trim(engine, feed_events_max=4, limit=5) == 5
    assert trim(engine, feed_events_max=4, limit=5) == 1
    assert trim(engine, feed_events_max=4, limit=5) == 0
    assert read(engine, 7) == [7, 8, 9, 10]
    assert trim(engine, feed_events_max=0) == 3
    assert append(engine, Feed(), 1) == [11]


def test_the_writing_end_trims_in_steps_and_remembers_where_the_feed_begins() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, *range(10))
    assert [feed.trim(engine, 3, 4) for _ in range(3)] == [4, 3, 0]
    append(engine, feed, 1, 2)
    assert feed.trim(engine, 3, 4) == 2
    assert read(engine, 10) == [10, 11, 12]
    assert Feed().trim(engine, 2, 4) == 1
    assert append(engine, feed, 1) == [13]


def test_a_feed_that_is_short_enough_is_not_even_looked_at() -> None:
    engine, feed = CountingEngine(), Feed()
    append(engine, feed, *range(10))
    feed.trim(engine, 10, 4)
    looks, position = engine.looks, engine.position
    assert feed.trim(engine, 10, 4) == 0
    assert (engine.looks, engine.position) == (looks, position)


def test_a_transaction_that_was_rolled_back_does_not_trim_too_much() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, *range(3))

    def append_and_fail() -> None:
        with engine.write() as tx:
            feed.append(tx, state(1))
            raise KeyError

    with pytest.raises(KeyError):
        append_and_fail()
    assert feed.trim(engine, 3, 4) == 0
    assert read(engine, 1) == [1, 2, 3]


class CountingEngine(MemoryEngine):
    """Counts views and transactions."""

    looks = 0

    def read(self) -> Any:
        self.looks += 1
        return super().read()

    def write(self) -> Any:
        self.looks += 1
        return super().write()


def test_a_cursor_that_fell_behind_is_told_so() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, *range(10))
    trim(engine, feed_events_max=3)
    with pytest.raises(CursorBehind, match="stands at event 7 but the feed begins at 8"):
        read(engine, 7)
    assert read(engine, 8) == [8, 9, 10]


def test_a_cursor_from_a_later_life_of_the_index_is_told_so() -> None:
    engine, feed = MemoryEngine(), Feed()
    assert read(engine, 1) == []
    append(engine, feed, 1, 2)
    assert read(engine, 3) == []
    with pytest.raises(CursorAhead):
        read(engine, 4)
    assert issubclass(CursorAhead, CursorLost)


def test_cursors_begin_at_the_beginning_and_are_kept_by_name() -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        assert feeds.cursor_of(tx, "manifest") == 1
        feeds.set_cursor(tx, "manifest", 17)
        feeds.set_cursor(tx, "audit", 4)
    with engine.read() as reader:
        assert (feeds.cursor_of(reader, "manifest"), feeds.cursor_of(reader, "audit")) == (17, 4)


def test_a_damaged_event_is_not_passed_on() -> None:
    engine, feed = MemoryEngine(), Feed()
    append(engine, feed, 1)
    with engine.write() as tx:
        tx.put(keys.feed(2), b"\x01")
    with pytest.raises(Damaged):
        read(engine, 1)
