"""Damaged bytes are kept as they were, within limits, and never hold up who mends."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.semantics.trees import HandClock
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import TargetUnavailable
from vnafs.domain.faults import NoFaults
from vnafs.local.quarantine import SECONDS_MAX, About, Kind, Quarantine, QuarantineSettings
from vnafs.local.spool import fingerprint_of

BYTES_MAX = 1_000
KEPT_SECONDS = 500.0


class Bench:
    """A quarantine, and time that passes when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = HandClock()
        self.quarantine = self.opened()

    def opened(self, *, bytes_max: int = BYTES_MAX, reserve_bytes: int = 0) -> Quarantine:
        settings = QuarantineSettings(bytes_max, KEPT_SECONDS, reserve_bytes)
        self.quarantine = Quarantine(str(self.folder), settings, clock=self.clock, faults=NoFaults())
        return self.quarantine

    def keep(self, name: str, data: bytes) -> bool:
        return self.quarantine.keep(about(name), len(data), lambda: [data[:7], data[7:]])

    def kept(self) -> dict[str, bytes]:
        every = self.quarantine.every()
        return {one.about.name: Path(self.quarantine.path(one.id)).read_bytes() for one in every}


def about(name: str, kind: Kind = Kind.PACK, right: bytes = b"") -> About:
    return About(kind, name, "target t", "it is wrong", 7, 0, hashlib.sha256(right).digest() if right else b"")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "quarantine")


def test_bytes_and_what_is_said_of_them_are_there_after_a_restart(bench: Bench) -> None:
    assert bench.keep("a", b"damaged bytes")
    before = bench.quarantine.every()
    bench.opened()
    assert bench.quarantine.every() == before
    assert before[0].about == about("a")
    assert before[0].sha256 == hashlib.sha256(b"damaged bytes").digest()
    assert before[0].when == bench.clock.now()
    assert bench.kept() == {"a": b"damaged bytes"}


def test_nobody_else_can_read_them(bench: Bench, tmp_path: Path) -> None:
    bench.keep("a", b"damaged bytes")
    path = tmp_path / "loose"
    path.write_bytes(b"pack")
    path.chmod(0o644)
    assert bench.quarantine.keep_link(about("b"), str(path))
    assert {stat.S_IMODE(path.stat().st_mode) for path in bench.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(bench.folder.stat().st_mode) == 0o700


def test_past_the_limit_the_oldest_go(bench: Bench) -> None:
    for name in "abcd":
        bench.clock.sleep(1)
        assert bench.keep(name, name.encode() * 300)
    assert list(bench.kept()) == ["b", "c", "d"]
    bench.opened()
    assert list(bench.kept()) == ["b", "c", "d"]
    assert bench.keep("e", b"e" * BYTES_MAX)
    assert list(bench.kept()) == ["e"]
    assert len(os.listdir(bench.folder)) == 2


def test_what_is_larger_than_all_of_it_pushes_nothing_out(bench: Bench) -> None:
    assert bench.keep("a", b"a")
    assert not bench.keep("b", b"b" * (BYTES_MAX + 1))
    assert list(bench.kept()) == ["a"]


def test_what_turns_out_larger_than_it_was_said_to_be_is_not_kept(bench: Bench) -> None:
    assert not bench.quarantine.keep(about("a"), 10, lambda: [b"a" * 11])
    assert os.listdir(bench.folder) == []


def test_what_is_old_goes(bench: Bench) -> None:
    bench.keep("a", b"a")
    bench.clock.sleep(KEPT_SECONDS - 1)
    bench.keep("b", b"b")
    bench.quarantine.tidy()
    assert list(bench.kept()) == ["a", "b"]
    bench.clock.sleep(1)
    bench.quarantine.tidy()
    assert list(bench.kept()) == ["b"]


def test_with_a_limit_of_nothing_nothing_is_read(bench: Bench) -> None:
    bench.opened(bytes_max=0)
    assert not bench.quarantine.keep(about("a"), 1, lambda: pytest.fail("it was read"))


def test_a_disk_without_room_keeps_nothing_and_says_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.keep("a", b"a")
    bench.opened(reserve_bytes=1 << 62)
    assert not bench.keep("b", b"b")
    assert "quarantine.not_kept" in caplog.messages
    assert list(bench.kept()) == ["a"], "what is there stays"


def test_a_folder_that_cannot_be_made_keeps_nothing_and_says_so(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in the way").write_bytes(b"")
    bench.folder = tmp_path / "in the way" / "quarantine"
    bench.opened()
    assert not bench.keep("a", b"a")
    assert set(caplog.messages) == {"quarantine.unusable", "quarantine.not_kept"}


def test_while_nobody_can_tell_what_is_there_nothing_counts_as_cleared(bench: Bench, tmp_path: Path) -> None:
    bench.keep("a", b"a")
    bench.folder.rename(tmp_path / "away")
    bench.folder.write_bytes(b"")
    bench.opened()
    assert bench.quarantine.clear(lambda _: True) == 1
    bench.folder.unlink()
    (tmp_path / "away").rename(bench.folder)
    assert bench.quarantine.clear(lambda _: True) == 0
    assert os.listdir(bench.folder) == []


def test_a_target_that_stops_answering_leaves_nothing_behind(bench: Bench) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"half"
        raise TargetUnavailable(target="t", why="scripted")

    assert not bench.quarantine.keep(about("a"), 10, blocks)
    assert os.listdir(bench.folder) == []


def test_a_target_that_is_very_slow_is_not_waited_for(bench: Bench) -> None:
    given = 0

    def blocks() -> Iterator[bytes]:
        nonlocal given
        while given < 100:
            given += 1
            bench.clock.sleep(SECONDS_MAX / 10)
            yield b"a"

    assert not bench.quarantine.keep(about("a"), 100, blocks)
    assert given <= 11
    assert os.listdir(bench.folder) == []


def test_the_same_bytes_of_one_thing_are_kept_once(bench: Bench) -> None:
    assert bench.keep("a", b"wrong")
    assert not bench.keep("a", b"wrong")
    assert bench.keep("a", b"wrong too")
    assert bench.keep("b", b"wrong")
    assert len(bench.quarantine.every()) == 3


def test_what_is_right_after_all_is_not_kept(bench: Bench) -> None:
    assert not bench.quarantine.keep(about("a", right=b"right"), 5, lambda: [b"right"])
    assert bench.quarantine.keep(about("a", right=b"right"), 5, lambda: [b"wrong"])


def test_a_local_file_that_changes_meanwhile_is_not_kept(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"rotten")
    before = fingerprint_of(path.stat())
    assert bench.quarantine.keep_file(about("1.1", Kind.FILE), str(path), before)
    os.utime(path, (1, 1))
    assert not bench.quarantine.keep_file(about("2.1", Kind.FILE), str(path), before)
    assert bench.kept() == {"1.1": b"rotten"}
    assert fingerprint_of(path.stat()) != before


def test_keeping_a_local_file_does_not_touch_it(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"rotten")
    before = fingerprint_of(path.stat())
    assert bench.quarantine.keep_file(about("1.1", Kind.FILE), str(path), before)
    assert fingerprint_of(path.stat()) == before


def test_what_the_disk_does_not_give_is_a_hole(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 65_536 + b"b" * 65_536 + b"c")
    bench.opened(bytes_max=1 << 20)
    really = os.pread

    def failing(descriptor: int, count: int, offset: int) -> bytes:
        if offset == 65_536:
            raise OSError(5, "Input/output error")
        return really(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert bench.quarantine.keep_file(about("1.1", Kind.FILE), str(path), fingerprint_of(path.stat()))
    assert bench.kept()["1.1"] == b"a" * 65_536 + bytes(65_536) + b"c"
    assert bench.quarantine.every()[0].unreadable_bytes == 65_536


def test_another_name_for_a_file_outlives_the_first(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"pack")
    assert bench.quarantine.keep_link(about("a"), str(path))
    assert not bench.quarantine.keep_link(about("a"), str(path)), "once is enough"
    path.unlink()
    assert not bench.quarantine.keep_link(about("a"), str(path))
    assert bench.kept() == {"a": b"pack"}


def test_what_is_meant_is_cleared_and_what_is_on_its_way_is_said(bench: Bench) -> None:
    bench.keep("a", b"1")
    bench.keep("b", b"2")
    left: list[int] = []

    def blocks() -> Iterator[bytes]:
        left.append(bench.quarantine.clear(lambda one: one.name in "ac"))
        yield b"3"

    assert bench.quarantine.keep(about("c"), 1, blocks)
    assert left == [1]
    assert list(bench.kept()) == ["b", "c"]
    assert bench.quarantine.clear(lambda one: one.name in "ac") == 0
    assert list(bench.kept()) == ["b"]


def test_some_are_removed_by_number(bench: Bench) -> None:
    for name in "abc":
        bench.keep(name, b"x")
    first, _, third = bench.quarantine.every()
    assert bench.quarantine.remove([first.id, third.id, 12345]) == 2
    assert list(bench.kept()) == ["b"]
    assert len(os.listdir(bench.folder)) == 2


def test_what_a_crash_left_goes_and_bytes_stay_whatever_became_of_what_was_said_of_them(bench: Bench) -> None:
    bench.keep("a", b"whole")
    kept = bench.quarantine.every()[0]
    (bench.folder / f"{kept.id + 1:016x}.partial").write_bytes(b"ha")
    (bench.folder / f"{kept.id + 2:016x}.json").write_bytes(b"{}")
    (bench.folder / f"{kept.id + 3:016x}.bytes").write_bytes(b"described by nothing")
    (bench.folder / "of somebody else").write_bytes(b"")
    bench.opened()
    assert [one.about.kind for one in bench.quarantine.every()] == [Kind.PACK, Kind.UNKNOWN]
    assert sorted(bench.kept().values()) == [b"described by nothing", b"whole"]
    assert (bench.folder / "of somebody else").exists()
    assert len(os.listdir(bench.folder)) == 4
    assert bench.keep("b", b"more"), "its number is another one"
    assert len(bench.quarantine.every()) == 3


def test_a_clock_that_was_set_back_keeps_the_order(bench: Bench) -> None:
    bench.keep("a", b"x")
    bench.clock.wall -= 1_000 * NANOSECONDS
    bench.keep("b", b"y")
    first, second = bench.quarantine.every()
    assert (first.about.name, second.about.name) == ("a", "b")
    assert second.id - first.id < NANOSECONDS
