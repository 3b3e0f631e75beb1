"""The LMDB engine: the index of one owner on a local disk, with or without a log in front.

Without a log each transaction is one synced LMDB commit. With one (`folding.py`) a transaction costs a write to
the log, `sync` makes many durable at once, and a thread folds them into LMDB; readers of this engine see one map.
Transactions are collected in memory and written when their block ends.

`write` may be called from any thread and waits for its turn; a second one inside the first is a bug and raises
RuntimeError. Views and transactions belong to one thread and are over when their block ends. One process owns an
environment (ArchiveBusy for a second); others open it with read_only and see what is folded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import TracebackType

from vnafs.domain.errors import IndexBroken, ReadOnly, StorageFailed
from vnafs.domain.faults import Faults, NoFaults
from vnafs.index.engine import Position
from vnafs.index.engines.environment import Environment, Mark, OwnerLock, Reading
from vnafs.index.engines.folding import Folding
from vnafs.index.engines.log import LogSettings, has_log
from vnafs.index.engines.overlay import Absent, Change, Generation, layered, present

__all__ = ["LmdbEngine", "LogSettings"]

MAP_SIZE_BYTES = 1 << 40
"""Address space, not disk: LMDB's file grows as it is filled."""
RESERVE_BYTES = 16 << 20


class LmdbEngine:
    """An Engine on a directory of a local file system (never a network one).

    *log* None: each transaction is synced by itself. *tables*: first bytes of keys that fill a database of their own;
    always the same ones for one directory. *reserve_bytes* of disk are kept allocated ahead of LMDB.
    Raises ArchiveBusy, IndexBroken, NoSpace, StorageFailed; with *read_only* NotYet when nothing is there so far.
    """

    def __init__(
        self,
        path: str,
        *,
        log: LogSettings | None = None,
        map_size_bytes: int = MAP_SIZE_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        faults: Faults | None = None,
        read_only: bool = False,
        tables: bytes = b"",
    ) -> None:
        faults = faults or NoFaults()
        self._path = path
        self._read_only = read_only
        self._turn = threading.Lock()
        self._turn_of = 0
        self._closed = False
        self._failure: StorageFailed | None = None
        self._folding: Folding | None = None
        self._lock: OwnerLock | None = None
        self._environment: Environment
        if not read_only:
            _make_directory(path)
            self._lock = OwnerLock(path)
        try:
            self._environment = Environment(
                path, map_size_bytes=map_size_bytes, reserve_bytes=reserve_bytes, read_only=read_only, tables=tables
            )
            try:
                self._begin(log, faults)
            except BaseException:
                self._environment.close()
                raise
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _begin(self, log: LogSettings | None, faults: Faults) -> None:
        self._sequence = 0
        if self._read_only:
            return
        if log is not None:
            self._folding = Folding(self._path, self._environment, log, faults)
            return
        mark = self._environment.mark()
        if (mark is not None and mark.epoch) or has_log(self._path):
            raise IndexBroken(what=self._path, why="it has a log and was opened without")
        self._sequence = mark.sequence if mark else 0
        _sync_directory(self._path)

    def read(self) -> View:
        """See Engine."""
        return View(self._environment, self._folding)

    def write(self) -> Writing:
        """See Engine. Raises NoSpace (nothing was changed) or StorageFailed at the end of the block."""
        if self._read_only:
            raise ReadOnly(what=f"the index in {self._path}", why="another process owns it")
        return Writing(self)

    # -- for Writing -----------------------------------------------------------------------------------------

    def _take_turn(self) -> LatestView:
        me = threading.get_ident()
        if self._turn_of == me:
            raise RuntimeError("a transaction inside a transaction")
        self._turn.acquire()
        self._turn_of = me
        try:
            self._check()
        except BaseException:
            self._end_turn()
            raise
        return LatestView(self._environment, self._folding)

    def _end_turn(self) -> None:
        self._turn_of = 0
        self._turn.release()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self._folding is not None:
            self._folding.check()
        elif self._failure is not None:
            raise StorageFailed(**self._failure.fields)

    def _commit(self, changed: dict[bytes, bytes | None]) -> None:
        if self._folding is not None:
            self._folding.commit(changed)
            return
        try:
            self._environment.commit(sorted(changed.items()), Mark(0, self._sequence + 1))
        except StorageFailed as error:
            self._failure = error
            raise
        self._sequence += 1

    # -- positions -------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """See Engine. Of a read-only engine: what is folded."""
        if self._folding is not None:
            return self._folding.position
        if self._read_only:
            mark = self._environment.mark()
            return Position(mark.sequence if mark else 0)
        return Position(self._sequence)

    @property
    def synced(self) -> Position:
        """See Engine."""
        return self.position if self._folding is None else self._folding.synced

    def sync(self, position: Position) -> None:
        """See Engine. Raises ValueError for a position that was never given."""
        if self._folding is not None:
            self._folding.sync(position)
        elif position > self.position:
            raise ValueError(f"there is no position {position} yet")

    def fold(self) -> Position:
        """See Engine. Raises NoSpace when the disk stays full, StorageFailed."""
        return self.position if self._folding is None else self._folding.fold()

    def close(self) -> None:
        """See Engine. Waits for the running transaction. Raises StorageFailed when what is in memory cannot be kept."""
        if self._turn_of == threading.get_ident():
            raise RuntimeError("close inside a transaction")
        with self._turn:
            if self._closed:
                return
            self._closed = True
        try:
            if self._folding is not None:
                self._folding.close()
        finally:
            self._environment.close()
            if self._lock is not None:
                self._lock.release()


class View:
    """A Reader: one sequence of the map, from the `with` that begins it to its end."""

    __slots__ = ("_at", "_environment", "_folding", "_generations", "_reading")

    def __init__(self, environment: Environment, folding: Folding | None) -> None:
        self._environment = environment
        self._folding = folding
        self._generations: tuple[Generation, ...] = ()
        self._at = 0
        self._reading: Reading | None = None

    def __enter__(self) -> View:
        if self._folding is None:
            self._reading = self._environment.begin()
        else:
            self._reading, self._generations, self._at = self._folding.begin_view()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reading, self._reading = self._reading, None
        if reading is None:
            return
        if self._folding is None:
            self._environment.end(reading)
        else:
            self._folding.end_view(reading)

    def get(self, key: bytes) -> bytes | None:
        """See Reader."""
        for generation in self._generations:
            value = generation.get(key, self._at)
            if not isinstance(value, Absent):
                return value
        return self._environment.get(self._beneath(), key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        beneath = self._environment.scan(self._beneath(), start, stop, reverse=reverse)
        if self._folding is None or not self._generations:
            return beneath
        lock = self._folding.lock
        with lock:
            touched = [generation for generation in self._generations if generation.touches(start, stop)]
        if not touched:
            return beneath
        merged: Iterator[tuple[bytes, bytes | None]] = beneath
        for generation in reversed(touched):
            merged = layered(generation.scan(start, stop, self._at, lock, reverse=reverse), merged, reverse=reverse)
        return present(merged)

    def _beneath(self) -> Reading:
        if self._reading is None:
            raise RuntimeError("a view is used after its end")
        return self._reading


class LatestView(View):
    """What a transaction sees beneath its own changes: the newest state, which nobody else changes meanwhile.

    LMDB is read only when a row is in no generation; it may by then hold more than at the beginning, but only
    what the generations taken here say as well.
    """

    __slots__ = ()

    def __init__(self, environment: Environment, folding: Folding | None) -> None:
        super().__init__(environment, folding)
        if folding is not None:
            self._generations, self._at = folding.latest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            self._environment.end(reading)

    def _beneath(self) -> Reading:
        if self._reading is None:
            self._reading = self._environment.begin()
        return self._reading


class Writing:
    """The context of one transaction; commits at its end, or does nothing if its block raises."""

    __slots__ = ("_change", "_engine", "_view")

    def __init__(self, engine: LmdbEngine) -> None:
        self._engine = engine

    def __enter__(self) -> Change:
        self._view = self._engine._take_turn()
        self._change = Change(self._view)
        return self._change

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._view.__exit__(None, None, None)
            if kind is None and self._change.changed:
                self._engine._commit(self._change.changed)
        finally:
            self._engine._end_turn()


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        os.makedirs(path, 0o700, exist_ok=True)
        _sync_directory(os.path.dirname(os.path.abspath(path)))


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
