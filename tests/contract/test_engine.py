"""The contract of `vnafs.index.engine.Engine`: every engine passes all of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vnafs.index.engine import KEY_BYTES_MAX, Engine, Reader, in_batches, prefix_stop
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings
from vnafs.index.engines.memory import MemoryEngine

EVERYTHING = (b"\x01", b"\xff" * (KEY_BYTES_MAX + 1))
NEVER_BY_ITSELF = LogSettings(segment_bytes=1 << 20, fold_age_seconds=3600, fold_bytes=1 << 30)
ALWAYS = LogSettings(segment_bytes=1 << 16, fold_age_seconds=0, fold_bytes=1)

Open = Callable[[], Engine]


def _opener(kind: str, path: str) -> Open:
    if kind == "memory":
        engine = MemoryEngine()
        return lambda: engine
    log = {
        "lmdb": None,
        "lmdb, tables apart": None,
        "lmdb, log not folded": NEVER_BY_ITSELF,
        "lmdb, log always folded": ALWAYS,
    }[kind]
    tables = b"" if kind == "lmdb" else b"bdm"
    return lambda: LmdbEngine(path, log=log, reserve_bytes=0, tables=tables)


@pytest.fixture(params=["memory", "lmdb", "lmdb, tables apart", "lmdb, log not folded", "lmdb, log always folded"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return _opener(request.param, str(tmp_path / "index"))


@pytest.fixture
def engine(opened: Open) -> Iterator[Engine]:
    with contextlib.closing(opened()) as engine:
        yield engine


def put(engine: Engine, **rows: str | None) -> None:
    with engine.write() as tx:
        for key, value in rows.items():
            if value is None:
                tx.delete(key.encode())
            else:
                tx.put(key.encode(), value.encode())


def text(reader: Reader, start: str = "", stop: str = "~", *, reverse: bool = False) -> str:
    rows = reader.scan(start.encode(), stop.encode(), reverse=reverse)
    return " ".join(f"{key.decode()}={value.decode()}" for key, value in rows)


def whole(engine: Engine) -> str:
    with engine.read() as reader:
        return text(reader)


def test_what_was_committed_is_read(engine: Engine) -> None:
    put(engine, a="1")
    with engine.read() as reader:
        assert reader.get(b"a") == b"1"
        assert reader.get(b"b") is None
        assert reader.get(b"") is None


def test_the_last_value_counts_and_a_removed_row_is_gone(engine: Engine) -> None:
    put(engine, a="1", b="1", c="1")
    put(engine, a="2", b=None, missing=None)
    assert whole(engine) == "a=2 c=1"


def test_a_scan_has_its_start_and_not_its_stop_in_both_directions(engine: Engine) -> None:
    put(engine, d="4", b="2", a="1", c="3", bb="2b")
    with engine.read() as reader:
        assert text(reader, "b", "d") == "b=2 bb=2b c=3"
        assert text(reader, "b", "d", reverse=True) == "c=3 bb=2b b=2"
        assert text(reader, "aa", "bz") == "b=2 bb=2b"
        assert text(reader, "c", "b") == ""
        assert text(reader, "x") == ""
        assert text(reader, "x", reverse=True) == ""
        assert text(reader, reverse=True) == "d=4 c=3 bb=2b b=2 a=1"


@pytest.mark.parametrize("rows_max", [1, 3, 100])
def test_batches_have_every_row_of_a_table_once_whatever_changes_between_them(engine: Engine, rows_max: int) -> None:
    with engine.write() as tx:
        for number in range(7):
            tx.put(b"T%d" % number, b"before")
        tx.put(b"S", b"another table")
        tx.put(b"U", b"another table")
    seen = []
    for batch in in_batches(engine, b"T", rows_max):
        assert 0 < len(batch) <= rows_max
        seen += batch
        with engine.write() as tx:
            for key, _ in batch:
                tx.put(key, b"after")
    assert seen == [(b"T%d" % number, b"before") for number in range(7)]


def test_keys_are_ordered_as_bytes(engine: Engine) -> None:
    keys = [b"\x02", b"\x7f", b"\x80", b"a", b"a\0", b"a\0\0", b"a\x01", b"b", b"\xff", b"\xff\xff"]
    with engine.write() as tx:
        for key in reversed(keys):
            tx.put(key, b"")
    with engine.read() as reader:
        assert [key for key, _ in reader.scan(*EVERYTHING)] == sorted(keys)
        assert [key for key, _ in reader.scan(*EVERYTHING, reverse=True)] == sorted(keys, reverse=True)
        assert [key for key, _ in reader.scan(b"\xff", prefix_stop(b"\xff"))] == [b"\xff", b"\xff\xff"]
        assert [key for key, _ in reader.scan(b"a", prefix_stop(b"a"))] == [b"a", b"a\0", b"a\0\0", b"a\x01"]


def test_folded_and_fresh_rows_are_one_ordered_map(engine: Engine) -> None:
    put(engine, b="old", d="old", f="old", h="old")
    engine.fold()
    put(engine, a="new", d="new", e="new", f=None, i="new")
    with engine.read() as reader:
        assert text(reader) == "a=new b=old d=new e=new h=old i=new"
        assert text(reader, reverse=True) == "i=new h=old e=new d=new b=old a=new"
        assert reader.get(b"f") is None
    engine.fold()
    assert whole(engine) == "a=new b=old d=new e=new h=old i=new"


def test_a_row_removed_and_put_again_across_folds_is_there(engine: Engine) -> None:
    for value in "123":
        put(engine, a=value)
        engine.fold()
        put(engine, a=None)
        assert whole(engine) == ""
    engine.fold()
    put(engine, a="4")
    assert whole(engine) == "a=4"


def test_a_block_that_raises_changes_nothing(engine: Engine) -> None:
    put(engine, a="1")
    position = engine.position

    def change_and_fail() -> None:
        with engine.write() as tx:
            tx.put(b"a", b"2")
            tx.put(b"b", b"2")
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()
    assert whole(engine) == "a=1"
    assert engine.position == position
    put(engine, b="3")
    assert whole(engine) == "a=1 b=3"


def test_a_transaction_reads_what_it_wrote(engine: Engine) -> None:
    put(engine, a="1", b="1", c="1")
    with engine.write() as tx:
        tx.put(b"b", b"2")
        tx.delete(b"c")
        tx.put(b"d", b"2")
        assert (tx.get(b"a"), tx.get(b"b"), tx.get(b"c"), tx.get(b"d")) == (b"1", b"2", None, b"2")
        assert text(tx) == "a=1 b=2 d=2"
        assert text(tx, reverse=True) == "d=2 b=2 a=1"
    assert whole(engine) == "a=1 b=2 d=2"


def test_nobody_else_sees_a_transaction_before_it_commits(engine: Engine) -> None:
    with engine.write() as tx:
        tx.put(b"a", b"1")
        assert whole(engine) == ""
    assert whole(engine) == "a=1"


def test_rows_may_be_removed_while_a_transaction_scans_them(engine: Engine) -> None:
    with engine.write() as tx:
        for number in range(1000):
            tx.put(b"%04d" % number, b"")
    with engine.write() as tx:
        tx.put(b"0500x", b"")
        seen = 0
        for key, _ in tx.scan(b"0", b"1"):
            tx.delete(key)
            seen += 1
    assert seen == 1001
    assert whole(engine) == ""


def test_a_view_stays_as_it_began(engine: Engine) -> None:
    put(engine, a="1", b="1", c="1")
    with engine.read() as before:
        put(engine, a="2", b=None, d="2")
        engine.fold()
        with engine.read() as between:
            put(engine, a="3", c=None, d="3", e="3")
            put(engine, a="4")
            engine.fold()
            assert text(before) == "a=1 b=1 c=1"
            assert text(between) == "a=2 c=1 d=2"
            assert (before.get(b"a"), between.get(b"a")) == (b"1", b"2")
            assert (before.get(b"d"), between.get(b"c")) == (None, b"1")
    assert whole(engine) == "a=4 d=3 e=3"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_running_scan_neither_skips_nor_repeats_while_others_commit_and_fold(engine: Engine, reverse: bool) -> None:
    expected = [b"%05d" % number for number in range(0, 3000, 2)]
    with engine.write() as tx:
        for key in expected[::2]:
            tx.put(key, b"old")
    engine.fold()
    with engine.write() as tx:
        for key in expected[1::2]:
            tx.put(key, b"old")
    with engine.read() as reader:
        seen = []
        for index, (key, value) in enumerate(reader.scan(b"0", b"1", reverse=reverse)):
            seen.append(key)
            assert value == b"old"
            if index % 10 == 0:
                with engine.write() as tx:
                    tx.put(b"%05d" % ((index * 7) % 3000 | 1), b"new")
                    tx.put(expected[index], b"new")
                    tx.delete(expected[-index])
            if index == 700:
                engine.fold()
        assert seen == sorted(expected, reverse=reverse)


def test_scans_in_one_thread_hold_while_another_commits(engine: Engine) -> None:
    fixed = [b"%04d" % number for number in range(0, 400, 4)]
    with engine.write() as tx:
        for key in fixed:
            tx.put(key, b"fixed")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 37) % 400
            if number % 4:
                with engine.write() as tx:
                    # Both or neither: a view that sees one of them is torn.
                    tx.put(b"%04d" % number, b"%d" % number)
                    tx.put(b"%04d+" % number, b"%d" % number)
                with engine.write() as tx:
                    tx.delete(b"%04d" % number)
                    tx.delete(b"%04d+" % number)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(150):
            with engine.read() as reader:
                keys = [key for key, _ in reader.scan(b"0", b"1")]
                assert keys == sorted(set(keys))
                assert [key for key in keys if key in fixed] == fixed
                loose = {key for key in keys if key not in fixed}
                assert {key.rstrip(b"+") for key in loose} == {key for key in loose if not key.endswith(b"+")}
                assert len(loose) in (0, 2)
                assert [key for key, _ in reader.scan(b"0", b"1", reverse=True)] == keys[::-1]
    finally:
        stop.set()
        thread.join()


def test_concurrent_writers_take_turns(engine: Engine) -> None:
    def add() -> None:
        for _ in range(40):
            with engine.write() as tx:
                tx.put(b"n", b"%d" % (int(tx.get(b"n") or b"0") + 1))

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(engine) == "n=200"


def test_a_transaction_inside_a_transaction_is_an_error_and_harms_nothing(engine: Engine) -> None:

    def nest() -> None:
        with engine.write() as tx:
            tx.put(b"a", b"1")
            put(engine, b="1")

    with pytest.raises(RuntimeError):
        nest()
    assert whole(engine) == ""
    put(engine, b="2")
    assert whole(engine) == "b=2"


def test_each_transaction_that_changes_something_has_a_larger_position(engine: Engine) -> None:
    first = engine.position
    put(engine, a="1")
    second = engine.position
    assert second > first
    with engine.write() as tx:
        tx.get(b"a")
    assert engine.position == second
    engine.sync(second)
    assert engine.synced >= second
    assert engine.fold() >= second


def test_a_position_that_was_never_given_cannot_be_synced(engine: Engine) -> None:
    put(engine, a="1")
    with pytest.raises(ValueError, match="no position"):
        engine.sync(type(engine.position)(engine.position + 1))


def test_rows_and_positions_survive_closing(opened: Open) -> None:
    for round_ in range(3):
        with contextlib.closing(opened()) as engine:
            before = engine.position
            assert before == 2 * round_
            put(engine, **{f"a{round_}": "1"})
            if round_ == 1:
                engine.fold()
            put(engine, **{f"b{round_}": "1"})
            assert engine.position > before
    with contextlib.closing(opened()) as engine:
        assert whole(engine) == "a0=1 a1=1 a2=1 b0=1 b1=1 b2=1"


def test_close_may_be_called_twice(opened: Open) -> None:
    engine = opened()
    put(engine, a="1")
    engine.close()
    engine.close()


@pytest.mark.parametrize("key", [b"", b"k" * (KEY_BYTES_MAX + 1), b"\0ours", b"\x01ours"])
def test_a_key_that_cannot_be_stored_is_refused_at_once(engine: Engine, key: bytes) -> None:
    with pytest.raises(ValueError, match="a key has"), engine.write() as tx:
        tx.put(key, b"")
    with engine.write() as tx:
        tx.delete(key)
    with engine.read() as reader:
        assert reader.get(key) is None


def test_the_longest_key_and_an_empty_and_a_large_value_are_kept(engine: Engine) -> None:
    longest = b"\xff" * KEY_BYTES_MAX
    for _ in range(2):
        with engine.write() as tx:
            tx.put(longest, b"")
            tx.put(b"large", b"x" * 40_000)
        with engine.read() as reader:
            assert reader.get(longest) == b""
            assert [(key, len(value)) for key, value in reader.scan(*EVERYTHING)] == [(b"large", 40_000), (longest, 0)]
        engine.fold()


def test_scans_are_lazy(engine: Engine) -> None:
    with engine.write() as tx:
        for number in range(2000):
            tx.put(b"%05d" % number, b"")
    with engine.read() as reader:
        assert next(reader.scan(b"0", b"1")) == (b"00000", b"")
        assert next(reader.scan(b"0", b"1", reverse=True)) == (b"01999", b"")
