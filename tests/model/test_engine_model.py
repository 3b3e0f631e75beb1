"""The LMDB engine with its log against a dict: random work, reopening, kill -9 and power cuts.

After kill -9 everything whose `write` returned is there. After a power cut everything synced is there, and what is
there is a prefix of the commits. A kill is modelled by opening a copy of the files as they are (they are what the
page cache holds), a power cut by mixing the files as they were after the last sync with what was written since.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vnafs.domain.errors import IndexBroken
from vnafs.index.engine import KEY_BYTES_MAX, Reader
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings
from vnafs.index.engines.log import SEGMENT_NAMES

EVERYTHING = (b"\x01", b"\xff" * (KEY_BYTES_MAX + 1))
SEGMENT_BYTES = 8192
BY_HAND = LogSettings(segment_bytes=SEGMENT_BYTES, fold_age_seconds=3600, fold_bytes=1 << 30)
BY_ITSELF = LogSettings(segment_bytes=SEGMENT_BYTES, fold_age_seconds=0.001, fold_bytes=2000)

Rows = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]

keys = st.one_of(
    st.sampled_from([b"a", b"b", b"ba", b"c\0", b"c\xff", b"d" * KEY_BYTES_MAX]),
    st.integers(0, 40).map(lambda number: b"k%02d" % number),
)
values = st.one_of(
    st.none(), st.binary(max_size=20), st.integers(100, 3000).map(lambda size: b"v" * size), st.just(b"x" * 9000)
)
changes = st.dictionaries(keys, values, min_size=1, max_size=8)
small_changes = st.dictionaries(keys, st.one_of(st.none(), st.binary(max_size=300)), min_size=1, max_size=5)


def apply(rows: Rows, changed: Changes) -> Rows:
    merged = {**rows, **changed}
    return {key: value for key, value in merged.items() if value is not None}


def commit(engine: LmdbEngine, changed: Changes) -> None:
    with engine.write() as tx:
        for key, value in changed.items():
            if value is None:
                tx.delete(key)
            else:
                tx.put(key, value)


def everything(engine: LmdbEngine) -> Rows:
    with engine.read() as reader:
        return dict(reader.scan(*EVERYTHING))


class AgainstADict(RuleBasedStateMachine):
    """Every step on the engine is done on a dict as well."""

    log = BY_HAND

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="engine-model-"))
        self.lives = 0
        self.rows: Rows = {}
        self.position = 0
        self.views: list[tuple[contextlib.ExitStack, Reader, Rows]] = []
        self.engine = self.open()

    def open(self) -> LmdbEngine:
        return LmdbEngine(str(self.base / str(self.lives)), log=self.log, reserve_bytes=0)

    def end_views(self) -> None:
        while self.views:
            self.views.pop()[0].close()

    @rule(changed=changes)
    def commits(self, changed: Changes) -> None:
        commit(self.engine, changed)
        self.rows = apply(self.rows, changed)
        self.position += 1

    @rule(changed=changes)
    def rolls_back(self, changed: Changes) -> None:
        with contextlib.suppress(KeyError), self.engine.write() as tx:
            for key, value in changed.items():
                tx.put(key, value or b"")
            assert dict(tx.scan(*EVERYTHING)) == apply(self.rows, {key: value or b"" for key, value in changed.items()})
            raise KeyError

    @rule()
    def folds(self) -> None:
        assert self.engine.fold() == self.position

    @rule()
    def syncs(self) -> None:
        self.engine.sync(self.engine.position)

    @precondition(lambda self: len(self.views) < 3)
    @rule()
    def looks(self) -> None:
        stack = contextlib.ExitStack()
        self.views.append((stack, stack.enter_context(self.engine.read()), self.rows))

    @precondition(lambda self: self.views)
    @rule(start=keys, stop=keys, reverse=st.booleans())
    def looks_again(self, start: bytes, stop: bytes, reverse: bool) -> None:
        stack, reader, rows = self.views.pop(0)
        expected = sorted((row for row in rows.items() if start <= row[0] < stop), reverse=reverse)
        assert list(reader.scan(start, stop, reverse=reverse)) == expected
        assert reader.get(start) == rows.get(start)
        assert dict(reader.scan(*EVERYTHING)) == rows
        stack.close()

    @rule(start=keys, stop=keys, reverse=st.booleans())
    def scans(self, start: bytes, stop: bytes, reverse: bool) -> None:
        with self.engine.read() as reader:
            expected = sorted((row for row in self.rows.items() if start <= row[0] < stop), reverse=reverse)
            assert list(reader.scan(start, stop, reverse=reverse)) == expected

    @rule()
    def reopens(self) -> None:
        self.end_views()
        self.engine.close()
        self.engine = self.open()

    @rule()
    def is_killed(self) -> None:
        """Only with folds by hand: a copy of files that change meanwhile is no state they ever had."""
        if self.log is not BY_HAND:
            return
        self.end_views()
        old = self.base / str(self.lives)
        self.lives += 1
        shutil.copytree(old, self.base / str(self.lives))
        self.engine.close()
        shutil.rmtree(old)
        self.engine = self.open()

    @invariant()
    def is_equal(self) -> None:
        assert self.engine.position == self.position
        assert everything(self.engine) == self.rows

    def teardown(self) -> None:
        self.end_views()
        self.engine.close()
        shutil.rmtree(self.base)


class AgainstADictFolding(AgainstADict):
    """The same while the committer works on its own."""

    log = BY_ITSELF


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstADictFolding = AgainstADictFolding.TestCase
TestAgainstADictFolding.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# -- power cuts ----------------------------------------------------------------------------------------------


class Disk:
    """Remembers the log's files as they were when they were last synced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced: list[bytes] = []

    def reach(self, point: str) -> None:
        if point == "log.synced":
            self.take()

    def take(self) -> None:
        self.synced = [(self.path / name).read_bytes() for name in SEGMENT_NAMES]

    def cut(self, chance: random.Random) -> None:
        """What was written after the last sync is there, or not, or is rubbish, piece by piece of any size."""
        for name, before in zip(SEGMENT_NAMES, self.synced, strict=True):
            after = (self.path / name).read_bytes()
            torn = bytearray(before)
            at = 0
            while at < len(torn):
                stop = min(len(torn), at + chance.choice([1, 7, 64, 512, 4096]))
                fate = chance.random()
                if before[at:stop] != after[at:stop]:
                    if fate < 0.45:
                        torn[at:stop] = after[at:stop]
                    elif fate < 0.6:
                        for index in range(at, stop):
                            if before[index] != after[index]:
                                torn[index] = chance.randrange(256)
                at = stop
            (self.path / name).write_bytes(torn)


steps = st.lists(st.one_of(small_changes, st.just("sync"), st.just("fold")), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives=st.lists(steps, min_size=1, max_size=3), seed=st.integers(0, 1 << 32))
def test_after_a_power_cut_there_is_a_prefix_that_has_everything_synced(
    lives: list[list[Changes | str]], seed: int
) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="engine-power-") as base:
        history: list[Rows] = [{}]
        path = Path(base) / "0"
        for number, life in enumerate(lives):
            disk = Disk(path)
            engine = LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0, faults=disk)
            disk.take()
            history = history[: engine.position + 1]
            for step in life:
                if step == "sync":
                    engine.sync(engine.position)
                elif step == "fold":
                    engine.fold()
                elif isinstance(step, dict):
                    commit(engine, step)
                    history.append(apply(history[-1], step))
            synced = engine.synced
            path = Path(base) / str(number + 1)
            shutil.copytree(disk.path, path)
            engine.close()
            disk.path = path
            disk.cut(chance)
            with contextlib.closing(LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0)) as engine:
                assert synced <= engine.position < len(history)
                assert everything(engine) == history[engine.position]


@settings(max_examples=80, deadline=None)
@given(count=st.integers(3, 30), data=st.data())
def test_a_bit_that_flips_in_a_synced_record_is_never_served(count: int, data: st.DataObject) -> None:
    """The records after it vouch for it: opening refuses. In the very last one it looks like a torn tail."""
    with tempfile.TemporaryDirectory(prefix="engine-rot-") as base:
        path, rotten = Path(base) / "index", Path(base) / "rotten"
        engine = LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0)
        history: list[Rows] = [{}]
        for number in range(count):
            commit(engine, {b"k": b"%d" % number * 50})
            history.append({b"k": b"%d" % number * 50})
            engine.sync(engine.position)
        shutil.copytree(path, rotten)
        engine.close()
        log = bytearray((rotten / "log.0").read_bytes())
        used = len(log.rstrip(b"\0"))
        bit = data.draw(st.integers(0, used * 8 - 1))
        log[bit // 8] ^= 1 << (bit % 8)
        (rotten / "log.0").write_bytes(log)
        try:
            engine = LmdbEngine(str(rotten), log=BY_HAND, reserve_bytes=0)
        except IndexBroken:
            return
        with contextlib.closing(engine):
            # Padding between records carries nothing; the last record has no later witness.
            assert engine.position >= count - 1
            assert everything(engine) == history[engine.position]


def test_records_lost_in_a_power_cut_never_come_back(tmp_path: Path) -> None:
    """1 was torn, 2 and 3 reached the disk. After recovery a new 1 of equal length is written before the old 2."""
    path = tmp_path / "index"
    engine = LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0)
    for number in (1, 2, 3):
        commit(engine, {b"a": b"%d" % number})
    cut = tmp_path / "cut"
    shutil.copytree(path, cut)
    engine.close()
    log = bytearray((cut / "log.0").read_bytes())
    log[0] ^= 0xFF
    (cut / "log.0").write_bytes(log)
    engine = LmdbEngine(str(cut), log=BY_HAND, reserve_bytes=0)
    assert (engine.position, everything(engine)) == (0, {})
    commit(engine, {b"a": b"4"})
    again = tmp_path / "again"
    shutil.copytree(cut, again)
    engine.close()
    with contextlib.closing(LmdbEngine(str(again), log=BY_HAND, reserve_bytes=0)) as engine:
        assert (engine.position, everything(engine)) == (1, {b"a": b"4"})


class Gate:
    """Holds folds back until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def reach(self, point: str) -> None:
        if point == "log.folding":
            self.reached.set()
            assert self.open.wait(20)


def crashed_while_folding(tmp_path: Path) -> Path:
    """Rows 1 to 20 are in the first segment, which is being folded; rows 21 to 30 are in the second."""
    path, crashed, gate = tmp_path / "index", tmp_path / "crashed", Gate()
    engine = LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0, faults=gate)
    for number in range(1, 21):
        commit(engine, {b"%02d" % number: b"x" * 20})
    barrier = threading.Thread(target=engine.fold)
    barrier.start()
    assert gate.reached.wait(20)
    for number in range(21, 31):
        commit(engine, {b"%02d" % number: b"x" * 20})
    shutil.copytree(path, crashed)
    gate.open.set()
    barrier.join()
    engine.close()
    return crashed


def test_both_segments_are_replayed_in_order(tmp_path: Path) -> None:
    with contextlib.closing(LmdbEngine(str(crashed_while_folding(tmp_path)), log=BY_HAND, reserve_bytes=0)) as engine:
        assert engine.position == 30
        assert sorted(everything(engine)) == [b"%02d" % number for number in range(1, 31)]


def test_the_second_segment_is_not_replayed_past_a_loss_in_the_first(tmp_path: Path) -> None:
    crashed = crashed_while_folding(tmp_path)
    log = (crashed / "log.0").read_bytes()
    (crashed / "log.0").write_bytes(log[: len(log.rstrip(b"\0")) // 2].ljust(len(log), b"\0"))
    with contextlib.closing(LmdbEngine(str(crashed), log=BY_HAND, reserve_bytes=0)) as engine:
        assert engine.position in (9, 10)
        assert sorted(everything(engine)) == [b"%02d" % number for number in range(1, engine.position + 1)]


def test_a_log_of_another_life_of_the_environment_is_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "index"
    engine = LmdbEngine(str(path), log=BY_HAND, reserve_bytes=0)
    commit(engine, {b"a": b"1"})
    old = tmp_path / "old"
    shutil.copytree(path, old)
    engine.close()
    (old / "data.mdb").unlink()
    with contextlib.closing(LmdbEngine(str(old), log=BY_HAND, reserve_bytes=0)) as engine:
        assert everything(engine) == {}
        assert engine.position == 0


@pytest.mark.soak
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives=st.lists(steps, min_size=1, max_size=5), seed=st.integers(0, 1 << 32))
def test_power_cuts_for_long(lives: list[list[Changes | str]], seed: int) -> None:
    drawn: Any = test_after_a_power_cut_there_is_a_prefix_that_has_everything_synced
    drawn.hypothesis.inner_test(lives, seed)
