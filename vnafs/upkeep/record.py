"""Recording: turn what changed into segments, and all there is into snapshots, in the ledger.

One thread. Segments are written from one view of each environment, the namespace first: what a file's row names is
then in the store's. Snapshots are fuzzy: rows are read in short views, and the segments since the first of them bring
them to one state. Runs end where a key's hash says so, so that rows which did not change make the same runs again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import xxhash

from vnafs.content import manifest
from vnafs.content.manifest import ABOUT, NAMESPACE, STORE, Header, Kind, Operation, Row, Run
from vnafs.domain.clock import Clock
from vnafs.domain.errors import CursorLost
from vnafs.domain.events import Event
from vnafs.domain.faults import Faults
from vnafs.index import feeds, meta
from vnafs.index.engine import Engine, Reader
from vnafs.upkeep import changes
from vnafs.upkeep.ledger import Ledger, Position, digest_of, set_position

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 50_000
"""One segment's; more go on in the next one."""
STORE_EVENTS_AT_ONCE = 500
"""Packs, each with some thousand rows."""
RUN_ROWS_MEAN = 4096
RUN_ROWS_MAX = 32_768
VIEW_ROWS = 20_000
"""Read in one view while a snapshot is made."""
SINCE_BYTES_MIN = 8 * 1024 * 1024
SEGMENTS_MAX = 2880
"""Two days of one each minute: then a snapshot, however small they were."""
FEED_EVENTS_MAX = 100_000
"""Of the store's feed, which nobody else follows yet."""


class Record:
    """See the module. *fold* is the tree's barrier, *configuration* the text of the archive's file."""

    def __init__(
        self,
        ledger: Ledger,
        store: Engine,
        namespace: Engine,
        *,
        archive: bytes,
        fold: Callable[[], None],
        configuration: Callable[[], str],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._namespace = namespace
        self._archive = archive
        self._fold = fold
        self._configuration = configuration
        self._clock = clock
        self._faults = faults

    def step(self) -> bool:
        """Record what changed; a snapshot too when one is due. Whether anything was written.

        Raises DaemonUnreachable, NoSpace, StorageFailed.
        """
        now = self._ledger.position()
        if now.snapshot is None:
            self.snapshot()
            return True
        self._fold()
        try:
            written = self._segments(now)
        except CursorLost as lost:
            log.warning("manifest.cursor_lost", extra={"why": str(lost)})
            self.snapshot(broken=True)
            return True
        now = self._ledger.position()
        since = now.number - now.snapshot_from
        if since and (now.since_bytes > max(SINCE_BYTES_MIN, now.snapshot_bytes // 2) or since > SEGMENTS_MAX):
            self.snapshot()
        return written

    # -- segments ------------------------------------------------------------------------------------------------

    def _segments(self, now: Position, *, at_least_one: bool = False) -> bool:
        """Write what changed since the cursors, as many segments as it takes. Raises CursorLost."""
        with self._namespace.read() as namespace:
            few = list(changes.few_of_namespace(namespace))
            epoch = meta.get_int(namespace, meta.EPOCH) or 0
            parts = self._of_namespace(namespace, now.namespace_cursor)
            with self._store.read() as store:
                few += changes.few_of_store(store)
                parts = itertools.chain(parts, self._of_store(store, now.store_cursor))
                about = [Row(Operation.PUT, ABOUT + b"configuration", self._configuration().encode())]
                digest = _digest(few + about)
                written = False
                part = next(parts, None)
                if part is None and digest == now.few and not at_least_one:
                    return False
                while part is not None or not written:
                    rows, move = part or ([], _stay)
                    part = next(parts, None)
                    last = part is None
                    now = dataclasses.replace(move(now), few=digest if last else now.few)
                    now = self._segment(now, [*about, *few, *rows] if last else rows, epoch=epoch, more=not last)
                    written = True
        return written

    @staticmethod
    def _of_namespace(reader: Reader, cursor: int) -> Iterator[tuple[list[Row], Callable[[Position], Position]]]:
        for events, after in _batches(reader, cursor, EVENTS_AT_ONCE):
            move = functools.partial(dataclasses.replace, namespace_cursor=after)
            yield list(changes.of_namespace(reader, events)), move

    @staticmethod
    def _of_store(reader: Reader, cursor: int) -> Iterator[tuple[list[Row], Callable[[Position], Position]]]:
        for events, after in _batches(reader, cursor, STORE_EVENTS_AT_ONCE):
            yield list(changes.of_store(reader, events)), functools.partial(dataclasses.replace, store_cursor=after)

    def _segment(self, now: Position, rows: Iterable[Row], *, epoch: int, more: bool) -> Position:
        number = now.number + 1
        header = Header(Kind.SEGMENT, self._archive, epoch, number, self._clock.now(), now.digest, more)
        data = manifest.encode(header, rows)
        self._ledger.write(manifest.segment_name(number), data)
        self._faults.reach("manifest.written")
        now = dataclasses.replace(now, number=number, digest=digest_of(data), since_bytes=now.since_bytes + len(data))
        with self._store.write() as tx:
            set_position(tx, now)
            feeds.trim(tx, FEED_EVENTS_MAX, limit=1000)
        self._store.sync(self._store.position)
        self._faults.reach("manifest.recorded")
        return now

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self, *, broken: bool = False) -> None:
        """Write all rows as runs, and a snapshot that names them. Raises as `step` does.

        *broken*: events were lost before they were recorded, so no segment from here on follows those before.
        """
        self._fold()
        began = self._ledger.position()
        if broken or began.number == 0:
            began = self._begin_anew(began)
        # The cursors stay where they are: what happens meanwhile is in segments too, whether the runs have it or not,
        # and so every segment goes on following the last snapshot until this one is complete.
        runs = [*self._runs(NAMESPACE, self._namespace), *self._runs(STORE, self._store)]
        self._faults.reach("manifest.runs")
        self._fold()
        self._segments(self._ledger.position(), at_least_one=True)
        until = self._ledger.position()
        with self._namespace.read() as namespace:
            epoch = meta.get_int(namespace, meta.EPOCH) or 0
        header = Header(Kind.SNAPSHOT, self._archive, epoch, until.number, self._clock.now(), until.digest)
        about = Row(Operation.PUT, ABOUT + b"from", b"%d" % began.number)
        data = manifest.encode(header, [about, *map(manifest.run_row, runs)])
        name = manifest.snapshot_name(until.number)
        self._ledger.write(name, data)
        size_bytes = len(data) + sum(run.size_bytes for run in runs)
        with self._store.write() as tx:
            done = dataclasses.replace(
                until, snapshot=until.number, snapshot_from=began.number, snapshot_bytes=size_bytes, since_bytes=0
            )
            set_position(tx, done)
        self._store.sync(self._store.position)
        self._faults.reach("manifest.snapshot")
        self._ledger.keep_only({name, *(manifest.run_name(run.sha256) for run in runs)}, began.number)
        log.info("manifest.snapshot", extra={"runs": len(runs), "size_bytes": size_bytes, "number": until.number})

    def _begin_anew(self, began: Position) -> Position:
        """Leave what happened so far to the rows themselves; nothing is sent before they are a snapshot."""
        with self._namespace.read() as namespace:
            namespace_cursor = feeds.end(namespace)
        with self._store.read() as store:
            store_cursor = feeds.end(store)
        began = dataclasses.replace(
            began,
            digest=manifest.NO_PREVIOUS,
            snapshot=None,
            namespace_cursor=namespace_cursor,
            store_cursor=store_cursor,
        )
        with self._store.write() as tx:
            set_position(tx, began)
        self._store.sync(self._store.position)
        return began

    def _runs(self, which: bytes, engine: Engine) -> Iterator[Run]:
        header = Header(Kind.RUN, self._archive)
        for rows in _runs_of(self._read(which, engine)):
            data = manifest.encode(header, rows)
            sha256 = digest_of(data)
            if not self._ledger.has(manifest.run_name(sha256)):
                self._ledger.write(manifest.run_name(sha256), data)
            yield Run(rows[0].key, len(rows), len(data), sha256)

    @staticmethod
    def _read(which: bytes, engine: Engine) -> Iterator[Row]:
        after = b""
        while True:
            with engine.read() as reader:
                rows = changes.everything(reader, which, after, VIEW_ROWS)
            yield from rows
            if len(rows) < VIEW_ROWS:
                return
            after = rows[-1].key


def _stay(now: Position) -> Position:
    return now


def _batches(reader: Reader, cursor: int, limit: int) -> Iterator[tuple[list[Event], int]]:
    while found := feeds.read_from(reader, cursor, limit):
        cursor = found[-1][0] + 1
        yield [event for _, event in found], cursor


def _runs_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    run: list[Row] = []
    for row in rows:
        run.append(row)
        if len(run) >= RUN_ROWS_MAX or xxhash.xxh3_64_intdigest(row.key) % RUN_ROWS_MEAN == 0:
            yield run
            run = []
    if run:
        yield run


def _digest(rows: Iterable[Row]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.digest()
