"""What the LMDB engine promises beyond the contract: owners, other processes, syncs, full disks, failed disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vnafs.domain.errors import ArchiveBusy, IndexBroken, NoSpace, NotYet, ReadOnly, StorageFailed
from vnafs.index.engines import log as logfile
from vnafs.index.engines.environment import Environment, Mark
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings

UNFOLDED = LogSettings(segment_bytes=1 << 16, fold_age_seconds=3600, fold_bytes=1 << 30)


class Hooks:
    """Faults that call what a test put at a point."""

    def __init__(self, **at: Callable[[], object]) -> None:
        self.at = {point.replace("_", "."): hook for point, hook in at.items()}

    def reach(self, point: str) -> None:
        if point in self.at:
            self.at[point]()


def fails_with(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def put(engine: LmdbEngine, key: bytes, value: bytes = b"") -> None:
    with engine.write() as tx:
        tx.put(key, value)


def put_many(engine: LmdbEngine, count: int) -> None:
    for number in range(count):
        put(engine, b"%03d" % number, b"x" * 500)
        engine.sync(engine.position)


def put_at_once(engine: LmdbEngine, count: int) -> None:
    with engine.write() as tx:
        for number in range(count):
            tx.put(b"%d" % number, b"x" * 4000)


def get(engine: LmdbEngine, key: bytes) -> bytes | None:
    with engine.read() as reader:
        return reader.get(key)


def until(holds: Callable[[], bool]) -> None:
    """Wait for another thread, but not for ever."""
    pause = threading.Event()
    for _ in range(20_000):
        if holds():
            return
        pause.wait(0.001)
    raise AssertionError("it never came to that")


class Beside:
    """Another process with the environment open read-only; answers one line for each command."""

    PROGRAM = """
import sys
from vnafs.index.engines.lmdb import LmdbEngine
engine = LmdbEngine(sys.argv[1], read_only=True)
for line in sys.stdin:
    with engine.read() as reader:
        value = reader.get(line.strip().encode())
    print("none" if value is None else value[:20].decode(), engine.position, flush=True)
"""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def get(self, key: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(key + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().split()[0]

    def close(self) -> None:
        self._process.communicate()


def in_another_process(path: str, arguments: str) -> str:
    program = f"""
import sys
from vnafs.domain.errors import VnaError
from vnafs.index.engines.lmdb import LmdbEngine
try:
    LmdbEngine(sys.argv[1]{arguments})
except VnaError as error:
    print(error.code, error.fields.get("pid"))
else:
    print("opened")
"""
    return subprocess.run(
        [sys.executable, "-c", program, path], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


# -- owners and other processes ------------------------------------------------------------------------------


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path)):
        assert in_another_process(path, "") == f"ArchiveBusy {os.getpid()}"
        with pytest.raises(ArchiveBusy):
            LmdbEngine(path)
    assert in_another_process(path, "") == "opened"


def test_another_process_sees_a_change_once_it_is_folded(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path, log=UNFOLDED)) as engine, contextlib.closing(Beside(path)) as beside:
        put(engine, b"a", b"1")
        assert beside.get("a") == "none"
        engine.fold()
        assert beside.get("a") == "1"


def test_a_change_is_folded_by_itself_after_its_time(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    folded = threading.Event()
    settings = LogSettings(segment_bytes=1 << 16, fold_age_seconds=0.01)
    with contextlib.closing(LmdbEngine(path, log=settings, faults=Hooks(log_folded=folded.set))) as engine:
        put(engine, b"a", b"1")
        assert folded.wait(20)


def test_a_reader_beside_survives_restarts_growth_and_a_larger_map(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path, map_size_bytes=1 << 20, reserve_bytes=0)) as engine:
        put(engine, b"a", b"1")
    with contextlib.closing(Beside(path)) as beside:
        assert beside.get("a") == "1"
        for round_ in range(3):
            with contextlib.closing(LmdbEngine(path, map_size_bytes=64 << 20)) as engine:
                for number in range(50):
                    put(engine, b"%d.%d" % (round_, number), b"x" * 50_000)
                put(engine, b"last", b"%d" % round_)
                assert beside.get("last") == str(round_)
            assert beside.get(f"{round_}.49") == "x" * 20


def test_nothing_can_be_written_beside_the_owner(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    LmdbEngine(path).close()
    with contextlib.closing(LmdbEngine(path, read_only=True)) as engine, pytest.raises(ReadOnly):
        engine.write()


def test_reading_what_was_never_made_is_not_yet(tmp_path: Path) -> None:
    with pytest.raises(NotYet):
        LmdbEngine(str(tmp_path / "index"), read_only=True)


def test_a_log_is_not_forgotten_by_opening_without_one(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    LmdbEngine(path, log=UNFOLDED).close()
    with pytest.raises(IndexBroken, match="has a log"):
        LmdbEngine(path)


def test_a_missing_segment_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    LmdbEngine(path, log=UNFOLDED).close()
    (tmp_path / "index" / "log.1").unlink()
    with pytest.raises(IndexBroken, match=r"log\.1"):
        LmdbEngine(path, log=UNFOLDED)


@pytest.mark.parametrize(("made", "opened"), [(b"", b"ab"), (b"ab", b""), (b"ab", b"abc"), (b"ab", b"b")])
def test_rows_are_not_hidden_by_opening_with_other_tables(tmp_path: Path, made: bytes, opened: bytes) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path, tables=made)) as engine:
        put(engine, b"a", b"1")
    for read_only in (False, True):
        with pytest.raises(IndexBroken, match="other tables"):
            LmdbEngine(path, tables=opened, read_only=read_only)
        with contextlib.closing(LmdbEngine(path, tables=made, read_only=read_only)) as engine:
            assert get(engine, b"a") == b"1"


def test_a_reader_that_comes_while_the_owner_makes_the_tables_is_told_to_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    LmdbEngine(path).close()
    for _ in range(2):
        with pytest.raises(NotYet):
            LmdbEngine(path, tables=b"ab", read_only=True)
    LmdbEngine(path, tables=b"ab").close()
    LmdbEngine(path, tables=b"ab", read_only=True).close()


def test_a_file_that_is_no_environment_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.mkdir()
    (path / "data.mdb").write_bytes(b"\x5a" * 8192)
    with pytest.raises(IndexBroken):
        LmdbEngine(str(path))


def test_an_environment_gets_a_log_later_and_another_size_of_it(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path)) as engine:
        put(engine, b"a", b"1")
    for size in (1 << 16, 1 << 15, 1 << 17):
        with contextlib.closing(LmdbEngine(path, log=LogSettings(segment_bytes=size))) as engine:
            put(engine, b"%d" % size, b"1")
        assert {os.stat(os.path.join(path, name)).st_size for name in logfile.SEGMENT_NAMES} == {size}
    with contextlib.closing(LmdbEngine(path, log=UNFOLDED)) as engine, engine.read() as reader:
        assert [key for key, _ in reader.scan(b"\x01", b"\xff")] == [b"131072", b"32768", b"65536", b"a"]
        assert engine.position == 4


# -- syncs ---------------------------------------------------------------------------------------------------


def test_waiters_share_syncs(tmp_path: Path) -> None:
    syncs = []
    gate = threading.Event()

    def count() -> None:
        gate.wait(20)
        syncs.append(1)

    with contextlib.closing(
        LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=Hooks(log_syncing=count))
    ) as engine:

        def commit_and_sync(number: int) -> None:
            put(engine, b"%d" % number)
            engine.sync(engine.position)

        threads = [threading.Thread(target=commit_and_sync, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        until(lambda: engine.position == 30)
        gate.set()
        for thread in threads:
            thread.join()
        assert engine.synced == 30
        assert 1 <= len(syncs) <= 2


def test_what_is_synced_already_is_not_synced_again(tmp_path: Path) -> None:
    syncs: list[int] = []
    with contextlib.closing(
        LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=Hooks(log_syncing=lambda: syncs.append(1)))
    ) as engine:
        put(engine, b"a")
        engine.sync(engine.position)
        engine.sync(engine.position)
        assert len(syncs) == 1
        put(engine, b"b")
        engine.fold()
        engine.sync(engine.position)
        assert len(syncs) == 1


def test_a_failed_sync_is_never_retried_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    hooks = Hooks(log_syncing=fails_with(errno.EIO))
    engine = LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=hooks)
    put(engine, b"a", b"1")
    with pytest.raises(StorageFailed):
        engine.sync(engine.position)
    hooks.at.clear()
    with pytest.raises(StorageFailed):
        engine.sync(engine.position)
    with pytest.raises(StorageFailed):
        put(engine, b"b")
    with pytest.raises(StorageFailed):
        engine.fold()
    assert get(engine, b"a") == b"1"
    assert engine.synced == 0
    with pytest.raises(StorageFailed):
        engine.close()
    LmdbEngine(str(tmp_path / "index"), log=UNFOLDED).close()


def test_a_failed_sync_reaches_every_waiter(tmp_path: Path) -> None:
    gate = threading.Event()

    def fail() -> None:
        gate.wait(20)
        raise OSError(errno.EIO, "")

    engine = LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=Hooks(log_syncing=fail))
    put(engine, b"a")
    failed: list[str] = []

    def wait() -> None:
        try:
            engine.sync(engine.position)
        except StorageFailed as error:
            failed.append(error.code)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert failed == ["StorageFailed"] * 5
    with pytest.raises(StorageFailed):
        engine.close()


def test_a_fold_that_fails_ends_the_service(tmp_path: Path) -> None:
    hooks = Hooks(log_folding=fails_with(errno.EIO))
    engine = LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=hooks)
    put(engine, b"a")
    with pytest.raises(StorageFailed):
        engine.fold()
    with pytest.raises(StorageFailed):
        put(engine, b"b")
    with pytest.raises(StorageFailed):
        engine.close()
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=UNFOLDED)) as engine:
        assert get(engine, b"a") == b""


# -- room ----------------------------------------------------------------------------------------------------


def test_a_full_log_makes_writers_wait_until_it_is_folded(tmp_path: Path) -> None:
    gate = threading.Event()
    settings = LogSettings(segment_bytes=4096, fold_age_seconds=3600, fold_bytes=1 << 30)
    engine = LmdbEngine(str(tmp_path / "index"), log=settings, faults=Hooks(log_folding=lambda: gate.wait(20)))
    done = threading.Event()

    def fill() -> None:
        put_many(engine, 100)
        done.set()

    thread = threading.Thread(target=fill)
    thread.start()
    until(lambda: engine.position == 14)  # seven records in each segment
    assert not done.wait(0.1)
    assert engine.position == 14
    gate.set()
    assert done.wait(20)
    thread.join()
    engine.close()
    assert {os.stat(tmp_path / "index" / name).st_size for name in logfile.SEGMENT_NAMES} == {4096}
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=settings)) as engine, engine.read() as reader:
        assert sum(1 for _ in reader.scan(b"0", b"1")) == 100


def test_a_writer_that_outruns_the_committer_and_the_committer_never_wait_for_each_other(tmp_path: Path) -> None:
    """Both segments fill while the committer has only just been told of the first."""
    slow = threading.Event()
    settings = LogSettings(segment_bytes=2048, fold_age_seconds=0, fold_bytes=1, full_wait_seconds_max=3600)
    hooks = Hooks(log_folded=lambda: slow.wait(0.0005))
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=settings, faults=hooks)) as engine:
        for number in range(2000):
            put(engine, b"%03d" % (number % 100), b"x" * 300)
        assert engine.position == 2000


def test_while_a_fold_runs_everybody_sees_all_three_layers(tmp_path: Path) -> None:
    reached, gate = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        gate.wait(20)

    hooks = Hooks()
    engine = LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=hooks)
    for key in (b"a", b"b", b"c", b"d"):
        put(engine, key, b"lmdb")
    engine.fold()
    hooks.at["log.folding"] = hold
    for key in (b"b", b"c", b"e"):
        put(engine, key, b"folding")
    barrier = threading.Thread(target=engine.fold)
    barrier.start()
    assert reached.wait(20)
    with engine.write() as tx:
        tx.put(b"c", b"active")
        tx.delete(b"d")
        tx.put(b"f", b"active")
    expected = {b"a": b"lmdb", b"b": b"folding", b"c": b"active", b"e": b"folding", b"f": b"active"}
    with engine.read() as reader, engine.write() as tx:
        for view in (reader, tx):
            assert list(view.scan(b"a", b"z")) == sorted(expected.items())
            assert list(view.scan(b"a", b"z", reverse=True)) == sorted(expected.items(), reverse=True)
            assert {key: view.get(key) for key in expected} == expected
            assert view.get(b"d") is None
        gate.set()
        barrier.join()
        for view in (reader, tx):
            assert dict(view.scan(b"a", b"z")) == expected
            assert view.get(b"b") == b"folding"
    engine.close()


def test_a_disk_too_slow_for_too_long_refuses_writers_and_recovers(tmp_path: Path) -> None:
    gate = threading.Event()
    settings = LogSettings(segment_bytes=4096, fold_age_seconds=3600, fold_bytes=1 << 30, full_wait_seconds_max=1)
    engine = LmdbEngine(str(tmp_path / "index"), log=settings, faults=Hooks(log_folding=lambda: gate.wait(20)))
    with pytest.raises(NoSpace, match="too slow"):
        put_many(engine, 100)
    position = engine.position
    assert position >= 8
    gate.set()
    engine.fold()
    put(engine, b"after")
    assert engine.position == position + 1
    engine.close()


def test_a_full_disk_loses_nothing_refuses_writers_only_when_the_log_is_full_and_recovers(tmp_path: Path) -> None:
    settings = LogSettings(
        segment_bytes=4096, fold_age_seconds=0, fold_bytes=1, retry_seconds=0.01, full_wait_seconds_max=3600
    )
    hooks = Hooks(log_folding=fails_with(errno.ENOSPC))
    engine = LmdbEngine(str(tmp_path / "index"), log=settings, faults=hooks)
    with pytest.raises(NoSpace, match="full"):
        put_many(engine, 100)
    written = engine.position
    assert written >= 7
    with pytest.raises(NoSpace):
        engine.fold()
    with engine.read() as reader:
        assert sum(1 for _ in reader.scan(b"0", b"1")) == written
    hooks.at.clear()
    assert engine.fold() == written
    put(engine, b"after")
    engine.close()


def test_closing_on_a_full_disk_keeps_everything_in_the_log(tmp_path: Path) -> None:
    hooks = Hooks(log_folding=fails_with(errno.ENOSPC))
    engine = LmdbEngine(str(tmp_path / "index"), log=UNFOLDED, faults=hooks)
    put(engine, b"a", b"1")
    engine.close()
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=UNFOLDED)) as engine:
        assert get(engine, b"a") == b"1"
        assert engine.position == 1


def test_a_log_whose_rows_find_no_room_at_once_is_replayed_in_parts(tmp_path: Path) -> None:
    path, rows, map_size_bytes = str(tmp_path / "index"), range(300), 450 * 4096
    log = LogSettings(segment_bytes=1 << 20, fold_age_seconds=3600, fold_bytes=1 << 30)
    with contextlib.closing(LmdbEngine(path, log=log)) as engine, engine.write() as tx:
        for number in rows:
            tx.put(b"%03d" % number, b"1" * 1900)  # a page each
    engine = LmdbEngine(path, log=log, faults=Hooks(log_folding=fails_with(errno.ENOSPC)))
    for number in rows:
        put(engine, b"%03d" % number, b"2" * 1900)
    position = engine.position
    engine.close()
    shutil.copytree(path, tmp_path / "whole")
    for name in logfile.SEGMENT_NAMES:
        (tmp_path / "whole" / name).unlink()
    whole = Environment(
        str(tmp_path / "whole"), map_size_bytes=map_size_bytes, reserve_bytes=0, read_only=False, tables=b""
    )
    with contextlib.closing(whole), pytest.raises(NoSpace, match="map size"):
        whole.commit([(b"%03d" % number, b"2" * 1900) for number in rows], Mark(1, position))
    with (
        contextlib.closing(LmdbEngine(path, log=log, map_size_bytes=map_size_bytes, reserve_bytes=0)) as engine,
        engine.read() as reader,
    ):
        assert {value[:1] for _, value in reader.scan(b"0", b"3")} == {b"2"}
        assert engine.position == position


def test_a_full_map_without_a_log_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    with contextlib.closing(LmdbEngine(path, map_size_bytes=1 << 18, reserve_bytes=0)) as engine:
        put(engine, b"a", b"1")
        position = engine.position
        with pytest.raises(NoSpace):
            put_at_once(engine, 200)
        assert engine.position == position
        assert get(engine, b"0") is None
        put(engine, b"b", b"2")
    with contextlib.closing(LmdbEngine(path)) as engine:
        assert (get(engine, b"a"), get(engine, b"b"), engine.position) == (b"1", b"2", position + 1)


def test_a_transaction_larger_than_a_segment_keeps_its_place_in_the_order(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    settings = LogSettings(segment_bytes=4096, fold_age_seconds=3600, fold_bytes=1 << 30)
    engine = LmdbEngine(path, log=settings)
    put(engine, b"a", b"before")
    put(engine, b"a", b"x" * 5000)
    assert engine.synced == engine.position == 2
    put(engine, b"a", b"after")
    assert get(engine, b"a") == b"after"
    put(engine, b"b", b"y" * 9000)
    put(engine, b"c", b"last")
    engine.close()
    with contextlib.closing(LmdbEngine(path, log=settings)) as engine:
        assert (get(engine, b"a"), len(get(engine, b"b") or b""), get(engine, b"c")) == (b"after", 9000, b"last")
        assert engine.position == 5


def test_space_is_kept_ahead_of_lmdb(tmp_path: Path) -> None:
    reserve = 1 << 20
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), reserve_bytes=reserve)) as engine:
        put(engine, b"a", b"x" * 3_000_000)
        held = os.stat(tmp_path / "index" / "data.mdb").st_blocks * 512
        assert held >= 3_000_000 + reserve // 2


def test_an_old_view_ended_too_early_says_so(tmp_path: Path) -> None:
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"))) as engine:
        with engine.read() as reader:
            pass
        with pytest.raises(RuntimeError, match="after its end"):
            reader.get(b"a")
        engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            put(engine, b"a")
