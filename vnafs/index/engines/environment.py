"""One LMDB environment on a local disk: opening, locking, reading, and synced commits that carry their own mark.

The only place that calls LMDB. Commits are always synced (never NOSYNC), pages are never mapped for writing, and
an environment is open once in a process (LMDB's locks belong to the process) and never across a fork. Any thread
may read; commits take turns here. Foreign errors become NoSpace (nothing was changed), IndexBroken or
StorageFailed.

Keys that begin with a byte of *tables* live in a database of their own inside the environment: rows that only ever
grow at their table's end then fill their pages (measured: 94 % instead of 60 %), which in one common database they
would not, standing in its middle.

py-lmdb 3.0 hands out read transactions in half a microsecond, renewed ones included, and has no reset of its own,
so each view begins one and ends it: no long readers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import lmdb

from vnafs.domain.errors import ArchiveBusy, IndexBroken, NoSpace, NotYet, StorageFailed, VnaError
from vnafs.index.engines.overlay import FIRST_KEY, Row

_log = logging.getLogger(__name__)

_MARK_KEY = b"\0mark"
_TABLE_NAMES = b"\1"
"""LMDB keeps the names of databases as keys of the common one: this byte and the table's."""
_MARK = struct.Struct(">QQ")
_READERS_MAX = 1024
_LOCK_FILE_BYTES = 128 * 1024
"""More than so many readers of 64 bytes need."""
_READER_CHECK_COMMITS = 1024
"""So often the places of readers that died are freed: a dead one keeps old pages from being used again."""
_PUTS_AT_ONCE = 1000
"""In one call, which nobody interrupts: about a millisecond, and less than half of what as many calls take."""
_GROW_WAIT_SECONDS = 10.0
_PAGES_A_ROW_MAX = 4
"""A changed row rewrites its leaf and the branches above it, of which few are not shared with other rows."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Reading: TypeAlias = "lmdb.Transaction[bytes]"
Table: TypeAlias = "lmdb._Database"


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """How far an environment has come; written in each commit."""

    epoch: int
    """That of the log whose records follow; 0 without a log."""
    sequence: int
    """Everything up to this transaction is in here."""


class OwnerLock:
    """Held by the one process that writes. It goes with the process, however that ends."""

    def __init__(self, path: str) -> None:
        """Raises ArchiveBusy with the process id of the holder."""
        self._descriptor = os.open(os.path.join(path, "owner.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ArchiveBusy(what=path, pid=holder or "unknown") from None
        os.pwrite(self._descriptor, b"%-20d" % os.getpid(), 0)

    def release(self) -> None:
        """Let others own it."""
        os.close(self._descriptor)


class Environment:
    """An open environment; see the module."""

    def __init__(
        self, path: str, *, map_size_bytes: int, reserve_bytes: int, read_only: bool, tables: bytes = b""
    ) -> None:
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._read_only = read_only
        self._committing = threading.Lock()
        self._commits = 0
        self._readers = 0
        self._growing = threading.Condition()
        if not read_only:
            _allocate_lock_file(path)
        try:
            self._lmdb = lmdb.Environment(
                path,
                # A reader takes the size the owner gave.
                map_size=0 if read_only else map_size_bytes,
                readonly=read_only,
                create=False,
                mode=0o600,
                readahead=False,
                max_readers=_READERS_MAX,
                max_dbs=len(tables) + 1,
            )
        except lmdb.Error as error:
            if read_only and not os.path.exists(os.path.join(path, "data.mdb")):
                raise NotYet(what=f"opening {path}", why="its owner has not made it") from error
            raise translated(error, f"opening {path}", path) from error
        try:
            self._tables = self._open_tables(tables)
        except BaseException:
            self._lmdb.close()
            raise
        self._data = -1
        self._allocated_bytes = 0
        if not read_only:
            self._lmdb.reader_check()
            self._data = os.open(os.path.join(path, "data.mdb"), os.O_RDWR | os.O_CLOEXEC)
            self._allocated_bytes = os.fstat(self._data).st_size
            self._reserve()

    def _open_tables(self, tables: bytes) -> dict[int, Table]:
        """The databases of *tables*. Rows in a database that nobody opens would be lost without a word: IndexBroken."""
        try:
            with self._lmdb.begin() as tx:
                cursor = tx.cursor()
                names = cursor.iternext(values=False) if cursor.set_range(_TABLE_NAMES) else iter(())
                made = {name[1] for name in itertools.takewhile(lambda name: name < FIRST_KEY, names)}
                used = tx.get(_MARK_KEY) is not None
            if made != set(tables):
                if used:
                    raise IndexBroken(what=self._path, why="it was made with other tables apart")
                if self._read_only:
                    raise NotYet(what=f"opening {self._path}", why="its owner is only just making it")
            return {
                table: self._lmdb.open_db(_TABLE_NAMES + bytes([table]), create=not self._read_only) for table in tables
            }
        except lmdb.Error as error:
            raise translated(error, f"opening {self._path}", self._path) from error

    # -- reading ---------------------------------------------------------------------------------------------

    def begin(self) -> Reading:
        """A view of the last commit; give it back with `end`."""
        if self._read_only:
            return self._begin_beside_owner()
        try:
            return self._lmdb.begin()
        except lmdb.Error as error:
            raise translated(error, "reading the index", self._path) from error

    def end(self, reading: Reading) -> None:
        """The view is not used any more."""
        reading.abort()
        if self._read_only:
            with self._growing:
                self._readers -= 1
                self._growing.notify_all()

    def _begin_beside_owner(self) -> Reading:
        with self._growing:
            try:
                reading = self._lmdb.begin()
            except lmdb.MapResizedError:
                reading = self._begin_in_larger_map()
            except lmdb.Error as error:
                raise translated(error, "reading the index", self._path) from error
            self._readers += 1
            return reading

    def _begin_in_larger_map(self) -> Reading:
        """The owner came back with a larger map and has filled the old one. The caller holds the condition.

        Mapping anew would take the ground from under other views, so it waits for them to end.
        """
        if not self._growing.wait_for(lambda: self._readers == 0, _GROW_WAIT_SECONDS):
            raise NotYet(what="reading the index", why="it grew past its map while other reads were running")
        try:
            self._lmdb.set_mapsize(0)
            return self._lmdb.begin()
        except lmdb.Error as error:
            raise translated(error, "reading the index", self._path) from error

    def get(self, reading: Reading, key: bytes) -> bytes | None:
        """The value at *key*, or None."""
        if key < FIRST_KEY:
            return None
        try:
            table = self._tables.get(key[0])
            return reading.get(key) if table is None else reading.get(key, db=table)
        except lmdb.Error as error:
            raise translated(error, "reading the index", self._path) from error

    def scan(self, reading: Reading, start: bytes, stop: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Rows of a range, lazily."""
        start = max(start, FIRST_KEY)
        parts = list(self._parts(start, stop))
        for table, low, high in reversed(parts) if reverse else parts:
            yield from self._scan(reading, table, low, high, reverse=reverse)

    def _parts(self, start: bytes, stop: bytes) -> Iterator[tuple[Table | None, bytes, bytes]]:
        """A range as runs that each lie in one database, in order."""
        for first in sorted(self._tables):
            low, high = bytes([first]), bytes([first + 1])
            if high <= start or low >= stop:
                continue
            if start < low:
                yield None, start, low
                start = low
            end = min(stop, high)
            yield self._tables[first], start, end
            start = end
        if start < stop:
            yield None, start, stop

    def _scan(
        self, reading: Reading, table: Table | None, start: bytes, stop: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            cursor = reading.cursor() if table is None else reading.cursor(db=table)
            if reverse:
                if cursor.prev() if cursor.set_range(stop) else cursor.last():
                    for row in cursor.iterprev():
                        if row[0] < start:
                            return
                        yield row
            elif cursor.set_range(start):
                for row in cursor.iternext():
                    if row[0] >= stop:
                        return
                    yield row
        except lmdb.Error as error:
            raise translated(error, "reading the index", self._path) from error

    def mark(self) -> Mark | None:
        """How far it has come; None in a new one."""
        reading = self.begin()
        try:
            raw = reading.get(_MARK_KEY)
        finally:
            self.end(reading)
        return None if raw is None else Mark(*_MARK.unpack(raw))

    # -- writing ---------------------------------------------------------------------------------------------

    def commit(self, rows: Iterable[Row], mark: Mark) -> None:
        """Change rows and move the mark: all or nothing, and on stable storage when this returns.

        Raises NoSpace when nothing was changed for want of space; after anything else the environment must not
        be written again by this process.
        """
        with self._committing:
            count = size_bytes = 0
            try:
                with self._lmdb.begin(write=True) as tx:
                    tables, among = self._tables, None
                    puts: list[tuple[bytes, bytes]] = []
                    for key, value in rows:
                        count += 1
                        table = tables.get(key[0])
                        if value is None:
                            tx.delete(key, db=table)
                            continue
                        if puts and (table is not among or len(puts) == _PUTS_AT_ONCE):
                            tx.cursor(among).putmulti(puts)
                            puts.clear()
                        among = table
                        puts.append((key, value))
                        size_bytes += len(value)
                    tx.cursor(among).putmulti(puts)
                    tx.put(_MARK_KEY, _MARK.pack(mark.epoch, mark.sequence))
            except lmdb.Error as error:
                if error.code == errno.EIO and self._may_be_full(count, size_bytes):
                    raise NoSpace(why="the disk is full (writing the index)") from error
                raise translated(error, "writing the index", self._path) from error
            self._commits += 1
            if self._commits % _READER_CHECK_COMMITS == 0:
                with contextlib.suppress(lmdb.Error):  # a missed round costs pages, the next one frees them
                    self._lmdb.reader_check()
            self._reserve()

    def _may_be_full(self, rows: int, size_bytes: int) -> bool:
        """Whether an I/O error of a commit may have been want of space: LMDB 0.9 calls a short write EIO too.

        To take a real error for a full disk is safe here: a commit that is tried again begins at the last good
        one and writes all its pages anew, whatever the kernel dropped. (A log cannot do that, and does not.)
        """
        state = os.fstatvfs(self._data)
        needed = 2 * size_bytes + rows * _PAGES_A_ROW_MAX * 4096 + (1 << 20)
        return state.f_bavail * state.f_frsize < needed

    def _reserve(self) -> None:
        """Keep some disk space ahead of LMDB, so that a full disk does not at once stop what makes room again."""
        if not self._reserve_bytes:
            return
        used = (self._lmdb.info()["last_pgno"] + 1) * self._lmdb.stat()["psize"]
        if used + self._reserve_bytes // 2 <= self._allocated_bytes:
            return
        wanted = used + self._reserve_bytes
        try:
            os.posix_fallocate(self._data, self._allocated_bytes, wanted - self._allocated_bytes)
        except OSError as error:
            _log.warning("index reserve not allocated", extra={"errno": error.errno, "wanted_bytes": wanted})
        else:
            self._allocated_bytes = wanted

    def close(self) -> None:
        """Let go; ends every view."""
        self._lmdb.close()
        if self._data >= 0:
            os.close(self._data)
            self._data = -1


def _allocate_lock_file(path: str) -> None:
    """Give the table of readers its disk blocks. Raises NoSpace, StorageFailed.

    LMDB maps that file and makes it sparse: the first reader on a full disk would end its process with SIGBUS.
    """
    try:
        descriptor = os.open(os.path.join(path, "lock.mdb"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(descriptor)
            if found.st_blocks * 512 < max(found.st_size, _LOCK_FILE_BYTES):
                os.posix_fallocate(descriptor, 0, max(found.st_size, _LOCK_FILE_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translated_os(error, f"opening {path}") from error


def translated(error: lmdb.Error, doing: str, path: str) -> VnaError:
    """What an error of LMDB means here."""
    if isinstance(error, lmdb.MapFullError):
        return NoSpace(why=f"the index in {path} has reached its map size")
    if error.code in _FULL:
        return NoSpace(why=f"the disk is full ({doing})")
    broken = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
    if isinstance(error, broken):
        return IndexBroken(what=path, why=str(error))
    return StorageFailed(doing=doing, why=str(error))


def translated_os(error: OSError, doing: str) -> VnaError:
    """What an error of the operating system means here."""
    if error.errno in _FULL:
        return NoSpace(why=f"the disk is full ({doing})")
    return StorageFailed(doing=doing, why=os.strerror(error.errno or errno.EIO))
