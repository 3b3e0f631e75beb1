"""A log in front of an LMDB environment: commits are written to the log and kept in memory, a thread folds them.

    commit ─► log record (pwrite) ─► active generation ─(age, size, barrier)─► folding generation ─► LMDB, synced

There are two generations in memory and two segments in the log, one for each: a segment is used again when its
generation is in LMDB. Readers see the active generation over the folding one over LMDB, as of one sequence.

Locks, always taken in this order: the engine's turn (one writer), `_appending` (a record and its generation change
together), `_state` (positions and which generations there are). Nobody waits for anything else, nor for a disk to
sync, while holding one of the last two.

A failed sync or fold that is not for want of space ends all writing for ever: the kernel may have dropped the
pages, so trying again would lie. Want of space is waited for; writers go on until the log is full.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence

from vnafs.domain.errors import NoSpace, StorageFailed, VnaError
from vnafs.domain.faults import Faults
from vnafs.index.engine import Position
from vnafs.index.engines import log as logfile
from vnafs.index.engines.environment import Environment, Mark, Reading, translated_os
from vnafs.index.engines.log import LogSettings
from vnafs.index.engines.overlay import Generation

_log = logging.getLogger(__name__)

_REPLAY_RECORDS = 65536
"""Records folded at once at start: bounds the memory that recovery needs. Changes all over the map cost a page each,
which fewer commits write fewer times."""
_REPLAY_RECORDS_MIN = 64
_REPLAY_SHRINKS = 8
"""On a full disk so many times fewer, down to the minimum: a small commit finds room in pages that others freed."""


class Folding:
    """The log, the generations and the committer thread of one environment."""

    def __init__(self, path: str, environment: Environment, settings: LogSettings, faults: Faults) -> None:
        """Replays what the log has and LMDB lacks. Raises IndexBroken, NoSpace, StorageFailed."""
        self._environment = environment
        self._settings = settings
        self._faults = faults
        self._epoch = 0
        sequence = self._recover(path)
        self._position = self._synced = self._folded = sequence
        self._wanted = sequence
        """Fold up to here without waiting for age or size."""
        self._active = Generation()
        self._active_since = 0.0
        self._folding: Generation | None = None
        self._views = 0
        self._syncing = False
        self._closing = False
        self._failure: StorageFailed | None = None
        self._full: NoSpace | None = None
        """Why the last fold was put off."""
        self._appending = threading.Lock()
        self._state = threading.Lock()
        self._work = threading.Condition(self._state)
        """The committer waits here."""
        self._done = threading.Condition(self._state)
        """Everybody else waits here, for folds and syncs."""
        self._committer = threading.Thread(target=self._run, name="index-committer", daemon=True)
        self._committer.start()

    def _recover(self, path: str) -> int:
        mark = self._environment.mark()
        epoch, sequence = (mark.epoch, mark.sequence) if mark else (0, 0)
        new_epoch = int.from_bytes(os.urandom(8), "big") | 1
        try:
            records: list[logfile.Record] = []
            ready = False
            if epoch:
                segments = logfile.map_segments(path)
                records = logfile.chain(segments, epoch, sequence, what=path)
            if records:
                # both segments stay as they are: the last commit may end their epoch too
                ready = logfile.is_ready(path, self._settings.segment_bytes)
                self._replay(records, epoch, new_epoch if ready else epoch)
                sequence = records[-1].sequence
                _log.info("index log replayed", extra={"records": len(records), "sequence": sequence})
                epoch = new_epoch if ready else epoch
                self._faults.reach("log.replayed")
            # a segment is only made anew when all is folded: what is not shows that their names were synced since
            self._log = logfile.open_log(path, self._settings.segment_bytes, names_are_synced=ready)
        except OSError as error:
            raise translated_os(error, "opening the index log") from error
        self._epoch = new_epoch
        try:
            if epoch != new_epoch:
                self._environment.commit((), Mark(new_epoch, sequence))
        except VnaError:
            self._log.close()
            raise
        return sequence

    def _replay(self, records: Sequence[logfile.Record], epoch: int, last_epoch: int) -> None:
        """Fold what a log of *epoch* holds; its last commit gets *last_epoch*.

        Raises NoSpace when not even a few records find room.
        """
        done, at_once = 0, _REPLAY_RECORDS
        while done < len(records):
            batch = records[done : done + at_once]
            rows: dict[bytes, bytes | None] = {}
            for record in batch:
                rows.update(record.rows())
            is_last = done + len(batch) == len(records)
            try:
                self._environment.commit(
                    sorted(rows.items()), Mark(last_epoch if is_last else epoch, batch[-1].sequence)
                )
            except NoSpace:
                if at_once <= _REPLAY_RECORDS_MIN:
                    raise
                at_once = min(at_once, len(batch)) // _REPLAY_SHRINKS + 1
                continue
            done += len(batch)

    # -- positions -------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """See Engine."""
        return Position(self._position)

    @property
    def synced(self) -> Position:
        """See Engine."""
        return Position(self._synced)

    def check(self) -> None:
        """Raise StorageFailed if anything failed before."""
        if self._failure is not None:
            raise StorageFailed(**self._failure.fields)

    # -- reading ---------------------------------------------------------------------------------------------

    def begin_view(self) -> tuple[Reading, tuple[Generation, ...], int]:
        """What a view consists of: LMDB, the generations on it (upper first), and the sequence it sees.

        LMDB is read from within the lock, so that it holds nothing later than that sequence.
        """
        with self._state:
            reading = self._environment.begin()
            self._views += 1
            return reading, self._generations(), self._position

    def end_view(self, reading: Reading) -> None:
        """The view is not used any more."""
        self._environment.end(reading)
        with self._state:
            self._views -= 1

    def latest(self) -> tuple[tuple[Generation, ...], int]:
        """The same without LMDB, for the writer in its turn: nobody else commits, so it may read LMDB later."""
        with self._state:
            return self._generations(), self._position

    def _generations(self) -> tuple[Generation, ...]:
        folding = self._folding
        if folding is None:
            return (self._active,) if self._active.rows else ()
        return (self._active, folding)

    @property
    def lock(self) -> threading.Lock:
        """Held while a generation's list of keys is looked at."""
        return self._state

    # -- writing ---------------------------------------------------------------------------------------------

    def commit(self, changed: Mapping[bytes, bytes | None]) -> None:
        """Write one transaction to the log and make it visible. The caller holds the engine's turn.

        Raises NoSpace (nothing was changed) or StorageFailed.
        """
        self.check()
        sequence = self._position + 1
        record = logfile.encode(changed, self._epoch, sequence, self._synced)
        if not self._log.fits_empty(record):
            self._commit_around_log(changed, sequence)
            return
        while True:
            with self._appending:
                if self._log.fits(record):
                    self._append(record)
                    self._show(changed, sequence)
                    return
            self._make_room()

    def _append(self, record: bytes) -> None:
        try:
            self._log.append(record)
        except OSError as error:
            refused = translated_os(error, "writing the index log")
            if not isinstance(refused, NoSpace):  # want of space leaves an incomplete record that the next overwrites
                self._fail("writing the index log", refused)
            raise refused from error

    def _show(self, changed: Mapping[bytes, bytes | None], sequence: int) -> None:
        """Make a logged transaction visible. From here on there is no way back: the record would come back."""
        try:
            self._faults.reach("log.appended")
            with self._state:
                active = self._active
                starts = not active.rows
                active.apply(changed, sequence, keep_before=self._views > 0)
                self._position = sequence
                if starts:
                    self._active_since = time.monotonic()
                    self._work.notify()
                elif self._folding is None and active.size_bytes >= self._settings.fold_bytes:
                    self._work.notify()
        except BaseException as error:
            self._fail("showing a logged change", error)
            raise

    def _make_room(self) -> None:
        """Wait until the other segment is folded, and go on in it.

        Nothing is held while waiting: the committer needs both locks to get there.
        """
        with self._state:
            self._done.wait_for(
                lambda: self._folding is None or self._failure or self._full, self._settings.full_wait_seconds_max
            )
            self.check()
            if self._folding is not None:
                raise self._no_room()
        with self._appending, self._state:
            # the committer may have switched and folded meanwhile: there is room then, and nothing to fold
            if self._folding is None and self._active.rows:
                self._switch()
                self._work.notify()

    def _no_room(self) -> NoSpace:
        if self._full is not None:
            return NoSpace(**self._full.fields)
        return NoSpace(why="the index log is full and the disk is too slow to fold it")

    def _commit_around_log(self, changed: Mapping[bytes, bytes | None], sequence: int) -> None:
        """A transaction larger than a segment goes to LMDB itself, after everything before it."""
        self.fold()
        try:
            self._environment.commit(sorted(changed.items()), Mark(self._epoch, sequence))
        except StorageFailed as error:
            self._fail("writing the index", error)
            raise
        with self._state:
            self._position = self._synced = self._folded = sequence

    # -- syncing ---------------------------------------------------------------------------------------------

    def sync(self, position: Position) -> None:
        """See Engine. The first to come syncs for all who came meanwhile; the others wait for the result."""
        if position <= self._synced:
            return
        while True:
            with self._state:
                self._done.wait_for(lambda: not self._syncing or position <= self._synced)
                self.check()
                if position <= self._synced:
                    return
                if position > self._position:
                    raise ValueError(f"there is no position {position} yet")
                self._syncing = True
                reached = self._position
                unsynced = self._log.take_unsynced()
            self._sync_to(reached, unsynced)

    def _sync_to(self, reached: int, unsynced: list[int]) -> None:
        failure: BaseException | None = None
        try:
            self._faults.reach("log.syncing")
            logfile.sync_segments(unsynced)
            self._faults.reach("log.synced")
        except BaseException as error:
            failure = error
            if not isinstance(error, OSError):
                raise
        finally:
            if failure is not None:
                self._fail("syncing the index log", failure)
            with self._state:
                self._syncing = False
                if failure is None:
                    self._synced = max(self._synced, reached)
                self._done.notify_all()

    # -- folding ---------------------------------------------------------------------------------------------

    def fold(self) -> Position:
        """See Engine. Raises NoSpace when the disk stays full."""
        with self._state:
            target = self._position
            self._wanted = max(self._wanted, target)
            self._full = None
            self._work.notify()
            self._done.wait_for(
                lambda: self._folded >= target or self._failure or self._full, self._settings.full_wait_seconds_max
            )
            if self._folded >= target:
                return Position(self._folded)
            self.check()
            raise self._no_room()

    def _switch(self) -> None:
        """Give the active generation to the committer. The caller holds `_appending` and `_state`."""
        self._folding, self._active = self._active, Generation()
        self._log.switch()

    def _run(self) -> None:
        try:
            while self._next_work():
                self._fold_once()
        except BaseException as error:
            # Whatever it was, nothing folds any more: say so to everybody instead of filling the log in silence.
            _log.exception("index committer stopped")
            self._fail("folding the index log", error)

    def _next_work(self) -> bool:
        """Wait until there is something to fold and make it the folding generation. False when it is time to end."""
        with self._work:
            while self._folding is None and not self._due():
                if self._closing or self._failure is not None:
                    return False
                self._work.wait(self._seconds_until_due())
            if self._failure is not None:
                return False
        with self._appending, self._state:
            if self._folding is None and self._active.rows:
                self._switch()
        return True

    def _due(self) -> bool:
        active = self._active
        if not active.rows:
            return False
        return (
            self._closing
            or self._wanted > self._folded
            or active.size_bytes >= self._settings.fold_bytes
            or time.monotonic() - self._active_since >= self._settings.fold_age_seconds
        )

    def _seconds_until_due(self) -> float | None:
        if not self._active.rows:
            return None
        return max(0.0, self._active_since + self._settings.fold_age_seconds - time.monotonic())

    def _fold_once(self) -> None:
        generation = self._folding
        if generation is None:
            return
        try:
            self._fold_rows(generation)
        except NoSpace as error:
            self._put_off(error)
            return
        self._faults.reach("log.folded")
        with self._state:
            self._folding = None
            self._full = None
            self._folded = generation.last
            self._synced = max(self._synced, generation.last)
            self._log.folded()
            self._done.notify_all()

    def _fold_rows(self, generation: Generation) -> None:
        rows = generation.rows
        try:
            self._faults.reach("log.folding")
        except OSError as error:  # a test's disk
            raise translated_os(error, "writing the index") from error
        self._environment.commit(((key, rows[key][1]) for key in generation.keys), Mark(self._epoch, generation.last))

    def _put_off(self, error: NoSpace) -> None:
        with self._work:
            if self._full is None:
                _log.warning("index fold put off", extra={"why": str(error), "sequence": self._folded})
            self._full = error
            self._done.notify_all()
            if self._closing:
                self._failure = self._failure or StorageFailed(doing="folding the index log", why=str(error))
                return
            self._work.wait(self._settings.retry_seconds)

    def _fail(self, doing: str, error: BaseException) -> None:
        with self._state:
            if self._failure is None:
                fields = error.fields if isinstance(error, VnaError) else {}
                self._failure = StorageFailed(doing=fields.get("doing", doing), why=fields.get("why", error))
                _log.critical("index storage failed", extra={"doing": doing, "why": str(error)})
            self._work.notify_all()
            self._done.notify_all()

    # -- ending ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Fold, or at least sync, and end the thread. Raises StorageFailed when neither was possible."""
        try:
            self.sync(self.position)
        finally:
            with self._state:
                self._closing = True
                self._work.notify_all()
            self._committer.join()
            with self._state:
                self._done.wait_for(lambda: not self._syncing)
                self._log.close()
