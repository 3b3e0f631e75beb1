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
from vnafs.pipeline.keys import Keys
from vnafs.upkeep import changes
from vnafs.upkeep.ledger import Ledger, Position, digest_of, set_position

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 20_000
"""One segment's at most; more go on in the next one."""
STORE_EVENTS_AT_ONCE = 200
"""Packs, each with some thousand rows."""
ROWS_BYTES_MAX = 16 * 1024 * 1024
"""Of one segment or run, and read in one view, give or take a row."""
RUN_ROWS_MEAN = 4096
RUN_ROWS_MAX = 32_768
VIEW_ROWS = 20_000
"""Read in one view while a snapshot is made."""
SEGMENT_SECONDS_MAX = 30.0
"""Between segments while a snapshot is made."""
SINCE_BYTES_MIN = 8 * 1024 * 1024
SEGMENTS_MAX = 2880
"""Two days of one each minute: then a snapshot, however small they were."""
KEPT_MAX = 10_000
"""Segments kept for targets that were away, beyond those that the snapshot needs: about a week."""
FEED_EVENTS_MAX = 100_000
"""Of the store's feed, which nobody else follows yet."""


class Record:
    """See the module.

    *fold* is the tree's barrier, *configuration* the text of the archive's file; *kept* says whether a target has the
    snapshot of that number, or there is none to have it; *keys* are those of an encrypted archive.
    """

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        ledger: Ledger,
        store: Engine,
        namespace: Engine,
        *,
        archive: bytes,
        fold: Callable[[], None],
        configuration: Callable[[], str],
        kept: Callable[[int], bool],
        keys: Keys | None = None,
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._kept = kept
        self._keys = keys
        self._ledger = ledger
        self._store = store
        self._namespace = namespace
        self._archive = archive
        self._fold = fold
        self._configuration = configuration
        self._clock = clock
        self._faults = faults

    def _secrets(self) -> manifest.Keys | None:
        return None if self._keys is None else self._keys.manifests()

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
        if self._snapshot_is_due():
            self.snapshot()
        return written

    def _snapshot_is_due(self) -> bool:
        now = self._ledger.position()
        since = now.number - now.snapshot_from
        many = now.since_bytes > max(SINCE_BYTES_MIN, now.snapshot_bytes // 2) or since > SEGMENTS_MAX
        # else a slow line would never have one whole
        return bool(since and many and now.snapshot is not None and self._kept(now.snapshot))

    # -- segments ------------------------------------------------------------------------------------------------

    def _segments(self, now: Position, *, at_least_one: bool = False) -> bool:
        """Write what changed since the cursors, as many segments as it takes. Raises CursorLost."""
        with self._namespace.read() as namespace:
            few = list(changes.few_of_namespace(namespace))
            epoch = meta.get_int(namespace, meta.EPOCH) or 0
            parts = self._of_namespace(namespace, now.namespace_cursor)
            with self._store.read() as store:
                few += changes.few_of_store(store)
                parts = _joined(itertools.chain(parts, self._of_store(store, now.store_cursor)))
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
    def _of_namespace(reader: Reader, cursor: int) -> Iterator[Part]:
        for events, after in _batches(reader, cursor, EVENTS_AT_ONCE):
            move = functools.partial(dataclasses.replace, namespace_cursor=after)
            yield from _parts(changes.of_namespace(reader, events), move)

    @staticmethod
    def _of_store(reader: Reader, cursor: int) -> Iterator[Part]:
        for events, after in _batches(reader, cursor, STORE_EVENTS_AT_ONCE):
            move = functools.partial(dataclasses.replace, store_cursor=after)
            yield from _parts(changes.of_store(reader, events), move)

    def _segment(self, now: Position, rows: Iterable[Row], *, epoch: int, more: bool) -> Position:
        number = now.number + 1
        header = Header(Kind.SEGMENT, self._archive, epoch, number, self._clock.now(), now.digest, more)
        data = manifest.encode(header, rows, self._secrets())
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
        runs: list[Run] = []
        recorded = self._clock.monotonic()
        for run in itertools.chain(self._runs(NAMESPACE, self._namespace), self._runs(STORE, self._store)):
            runs.append(run)
            if self._clock.monotonic() - recorded > SEGMENT_SECONDS_MAX:
                self._fold()
                self._segments(self._ledger.position())
                recorded = self._clock.monotonic()
        self._faults.reach("manifest.runs")
        self._fold()
        self._segments(self._ledger.position(), at_least_one=True)
        until = self._ledger.position()
        with self._namespace.read() as namespace:
            epoch = meta.get_int(namespace, meta.EPOCH) or 0
        header = Header(Kind.SNAPSHOT, self._archive, epoch, until.number, self._clock.now(), until.digest)
        about = Row(Operation.PUT, ABOUT + b"from", b"%d" % began.number)
        data = manifest.encode(header, [about, *map(manifest.run_row, runs)], self._secrets())
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
        self._ledger.keep_only({name, *(manifest.run_name(run.sha256) for run in runs)}, began.number - KEPT_MAX)
        log.info("manifest.snapshot", extra={"runs": len(runs), "size_bytes": size_bytes, "number": until.number})

    def forget_older(self, number: int) -> None:
        """Remove from the local disk what the last snapshot does not need, of segments those up to *number*."""
        now = self._ledger.position()
        if now.snapshot is None:
            return
        name = manifest.snapshot_name(now.snapshot)
        _, rows = manifest.decode(self._ledger.read(name), self._secrets())
        runs = {manifest.run_name(manifest.run_of(row).sha256) for row in rows if row.operation is Operation.RUN}
        self._ledger.keep_only({name, *runs}, min(number, now.snapshot_from))

    def go_on_after(self, number: int) -> None:
        """Number what follows past *number*, which an earlier life of the archive used; a snapshot begins it."""
        now = self._ledger.position()
        if number <= now.number:
            return
        with self._store.write() as tx:
            set_position(tx, dataclasses.replace(now, number=number, digest=manifest.NO_PREVIOUS, snapshot=None))
        self._store.sync(self._store.position)
        log.warning("manifest.goes_on_after", extra={"number": number})

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
            data = manifest.encode(header, rows, self._secrets())
            sha256 = digest_of(data)
            if not self._ledger.has(manifest.run_name(sha256)):
                self._ledger.write(manifest.run_name(sha256), data)
            yield Run(rows[0].key, len(rows), len(data), sha256)

    @staticmethod
    def _read(which: bytes, engine: Engine) -> Iterator[Row]:
        after = b""
        while True:
            with engine.read() as reader:
                rows = changes.everything(reader, which, after, VIEW_ROWS, ROWS_BYTES_MAX)
            if not rows:
                return
            yield from rows
            after = rows[-1].key


def _stay(now: Position) -> Position:
    return now


Part = tuple[list[Row], Callable[[Position], Position]]
"""Rows of one segment, and how far the cursors are once it is written."""


def _parts(rows: Iterable[Row], move: Callable[[Position], Position]) -> Iterator[Part]:
    """Rows in lists of bounded size; the cursors move with the last."""
    part: list[Row] = []
    size_bytes = 0
    for row in rows:
        if size_bytes >= ROWS_BYTES_MAX:
            yield part, _stay
            part, size_bytes = [], 0
        part.append(row)
        size_bytes += len(row.key) + len(row.value)
    yield part, move


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """As few parts as their size allows."""
    rows: list[Row] = []
    moves: list[Callable[[Position], Position]] = []
    size_bytes = 0
    for more, move in parts:
        more_bytes = sum(len(row.key) + len(row.value) for row in more)
        if moves and size_bytes + more_bytes > ROWS_BYTES_MAX:
            yield rows, functools.partial(_all, moves)
            rows, moves, size_bytes = [], [], 0
        rows = rows + more
        moves = [*moves, move]
        size_bytes += more_bytes
    if moves:
        yield rows, functools.partial(_all, moves)


def _all(moves: list[Callable[[Position], Position]], now: Position) -> Position:
    for move in moves:
        now = move(now)
    return now


def _batches(reader: Reader, cursor: int, limit: int) -> Iterator[tuple[list[Event], int]]:
    while found := feeds.read_from(reader, cursor, limit):
        cursor = found[-1][0] + 1
        yield [event for _, event in found], cursor


def _runs_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    run: list[Row] = []
    size_bytes = 0
    for row in rows:
        run.append(row)
        size_bytes += len(row.key) + len(row.value)
        is_full = len(run) >= RUN_ROWS_MAX or size_bytes >= ROWS_BYTES_MAX
        if is_full or xxhash.xxh3_64_intdigest(row.key) % RUN_ROWS_MEAN == 0:
            yield run
            run, size_bytes = [], 0
    if run:
        yield run


def _digest(rows: Iterable[Row]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.digest()
