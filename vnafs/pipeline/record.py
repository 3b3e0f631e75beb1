"""Record: turn filled packs into packs on disk and rows of the store, and tell of what is recorded.

One thread, strictly in the order in which packs were detached, so that no row ever leans on a pack that is not
recorded. Rows are on stable storage before anybody is told; a crash between leaves files that are sealed again and
found to be known. A pack that the disk did not take is dropped as a whole and its files come back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable

from vnafs.content import packfile
from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState, Proposal
from vnafs.domain.ids import ContentNumber, PackId, PackNumber, PieceNumber, RepositoryId
from vnafs.index import condemned, contents, copies, keys, packs, pieces, targets
from vnafs.index.engine import Engine, Reader, Transaction, prefix_stop
from vnafs.local.spool import fsync_directory, local_error
from vnafs.pipeline.domains import Domain, File, FilledPack

log = logging.getLogger(__name__)

CLOSING_MAX = 2
"""Packs that wait to be recorded; workers wait when there are more."""
REUSES_AT_ONCE_MAX = 256
REUSES_WAIT_SECONDS = 0.02
"""For more files of known content, so that they share a transaction and a sync."""
LATEST_PACKS = 10_000
"""More than were ever open at one time: of two packs the one with the higher number may have been recorded first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Closing:
    """A token: one more pack of the domain is to be recorded. Which one is the domain's order, not the tokens'."""

    domain: Domain


@dataclasses.dataclass(frozen=True, slots=True)
class Reuse:
    """One more file is a content that is recorded already."""

    number: ContentNumber
    file: File


_Item = Closing | Reuse


class Recorder:
    """See the module.

    *propose* is told of files whose content is recorded, *recorded* of each new pack, *lost* of files whose pack
    could not be written, which then come back as candidates.
    """

    def __init__(
        self,
        store: Engine,
        folder: str,
        *,
        clock: Clock,
        faults: Faults,
        propose: Callable[[list[Proposal]], None],
        recorded: Callable[[PackNumber], None],
        lost: Callable[[list[File], VnaError], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._faults = faults
        self._propose = propose
        self._recorded = recorded
        self._lost = lost
        self._fatal = fatal
        self._lock = threading.Lock()
        self._work: queue.Queue[_Item | None] = queue.Queue(maxsize=4 * REUSES_AT_ONCE_MAX)
        self._closing = threading.BoundedSemaphore(CLOSING_MAX)
        self._failed: set[PackNumber] = set()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with store.read() as reader:
            self._content_next, self._piece_next = _first_free(reader)
            self._remove_leftovers(reader)
        self._thread = threading.Thread(target=self._record_all, name="recorder", daemon=True)

    def _remove_leftovers(self, reader: Reader) -> None:
        """Files of packs that a crash kept from being recorded: their contents are still in the spool."""
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            stem, _, kind = name.partition(".")
            try:
                number = packs.number_of(reader, PackId(bytes.fromhex(stem)))
            except ValueError:
                continue
            row = None if number is None else packs.get(reader, number)
            if kind == "building" or (kind == "pack" and (row is None or not row.local)):
                log.info("pack.leftover_removed", extra={"pack": stem})
                os.unlink(path)

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record in a thread."""
        self._thread.start()

    def stop(self, seconds_max: float) -> bool:
        """Finish what was handed over, and end; whether it did in time."""
        if self._thread.is_alive():
            until = time.monotonic() + seconds_max
            with contextlib.suppress(queue.Full):
                self._work.put(None, timeout=seconds_max)
            self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    # -- handing over --------------------------------------------------------------------------------------------

    def close(self, domain: Domain) -> None:
        """One more pack of the domain was detached. Waits while recording is behind, so never under a lock."""
        self._closing.acquire()
        self._work.put(Closing(domain))

    def reuse(self, number: ContentNumber, file: File) -> None:
        """One more file is a recorded content."""
        self._work.put(Reuse(number, file))

    def path(self, identity: PackId) -> str:
        """Where a pack is while it is filled."""
        return os.path.join(self._folder, f"{identity.hex()}.building")

    # -- the thread ----------------------------------------------------------------------------------------------

    def _record_all(self) -> None:
        try:
            self._record_until_stopped()
        except BaseException as problem:
            self._fatal(problem)

    def _record_until_stopped(self) -> None:
        while (item := self._work.get()) is not None:
            while item is not None:
                item = self._do(item, REUSES_WAIT_SECONDS)

    def record_next(self) -> bool:
        """Do what was handed over next in the caller's thread, instead of `start`; whether there was anything."""
        try:
            item = self._work.get_nowait()
        except queue.Empty:
            return False
        while item is not None:
            item = self._do(item, 0)
        return True

    def _do(self, item: _Item, wait_seconds: float) -> _Item | None:
        """Do one thing; what was found behind it, if that must be done next."""
        behind: _Item | None = None
        if isinstance(item, Closing):
            with item.domain.lock:
                # the one detached first: a later one may lean on it, whichever worker got here sooner
                oldest = next(iter(item.domain.closing.values()), None)
            if oldest is not None:
                self._record(item.domain, oldest)
            self._closing.release()
        else:
            reuses = [item]
            while len(reuses) < REUSES_AT_ONCE_MAX and behind is None:
                try:
                    found = self._work.get(timeout=wait_seconds) if wait_seconds else self._work.get_nowait()
                except queue.Empty:
                    break
                if isinstance(found, Reuse):
                    reuses.append(found)
                elif found is None:
                    self._work.put(None)  # the sign to stop, for whoever waits for it
                    break
                else:
                    behind = found
            self._record_reuses(reuses)
        return behind

    def _record_reuses(self, reuses: list[Reuse]) -> None:
        given_up: list[File] = []
        try:
            with self._store.write() as tx:
                for reuse in reuses:
                    content = contents.get(tx, reuse.number)
                    if content is None or condemned.any_of(tx, content.packs()):
                        given_up.append(reuse.file)
                    else:
                        contents.add_use(tx, reuse.number, reuse.file.inode, reuse.file.version)
        except NoSpace as problem:
            self._lost([reuse.file for reuse in reuses], problem)
            return
        if given_up:
            self._lost(given_up, NoSpace(why="the pack that had their bytes was given up"))
        self._store.sync(self._store.position)
        self._propose([_proposal(reuse.file) for reuse in reuses if reuse.file not in given_up])

    def _record(self, domain: Domain, pack: FilledPack) -> None:
        try:
            leans_on = sorted({number for pending in pack.contents.values() for number in pending.leans_on})
            self._refuse_failed(leans_on)
            closed = pack.writer.close()
            self._faults.reach("pack.closed")
            os.rename(self.path(closed.id), os.path.join(self._folder, f"{closed.id.hex()}.pack"))
            fsync_directory(self._folder)
            with self._store.write() as tx:
                self._rows(tx, domain, pack, closed, leans_on)
        except (NoSpace, OSError) as problem:
            with domain.lock:
                self.drop(domain, pack, problem)
            return
        files: list[File] = []
        with domain.lock:
            domain.closing.pop(closed.id, None)
            # from here on workers find the contents in the index, so nobody adds to these lists any more
            for pending in pack.contents.values():
                files.extend(pending.files)
        self._late_uses(domain.repository.id, pack)
        # the tree may let local bytes go for what these rows say
        self._store.sync(self._store.position)
        self._faults.reach("pack.indexed")
        log.info("pack.recorded", extra={"pack": closed.id.hex(), "size_bytes": closed.size_bytes, "files": len(files)})
        self._recorded(pack.number)
        self._propose([_proposal(file) for file in files])
        self._faults.reach("pack.proposed")

    def _refuse_failed(self, leans_on: Iterable[PackNumber]) -> None:
        with self._lock:
            if self._failed.intersection(leans_on):
                raise NoSpace(why="it leans on a pack that could not be written")

    def _rows(
        self,
        tx: Transaction,
        domain: Domain,
        pack: FilledPack,
        closed: packfile.ClosedPack,
        leans_on: list[PackNumber],
    ) -> None:
        if any(packs.get(tx, number) is None or condemned.find(tx, number) for number in leans_on):
            raise NoSpace(why="it leans on a pack that was given up")
        first = ContentNumber(self._content_next)
        packs.put(
            tx,
            packs.Pack(
                number=pack.number,
                id=closed.id,
                sha256=closed.sha256,
                size_bytes=closed.size_bytes,
                repository=domain.repository.id,
                retention_class=domain.repository.retention_class,
                closed=self._clock.now(),
                contents_first=first,
                contents_count=len(pack.contents),
                local=True,
                leans_on=tuple(leans_on),
                pieces_first=PieceNumber(self._piece_next),
                pieces_count=len(pack.pieces),
                envelope=pack.writer.header.envelope,
            ),
        )
        with domain.lock:
            for sha256, pending in pack.contents.items():
                number = ContentNumber(self._content_next)
                self._content_next += 1
                contents.add(
                    tx,
                    contents.Content(
                        number=number,
                        sha256=sha256,
                        size_bytes=pending.recipe.size_bytes,
                        repository=domain.repository.id,
                        home=pack.number,
                        recipe=pending.span,
                        leans_on=pending.leans_on,
                    ),
                )
                for file in pending.files:
                    contents.add_use(tx, number, file.inode, file.version)
        for ref in pack.pieces.values():
            pieces.add(
                tx,
                PieceNumber(self._piece_next),
                pieces.Piece(pack.number, ref.offset, ref.stored_bytes, ref.raw_bytes, ref.codec, ref.kind, ref.sha256),
            )
            self._piece_next += 1
        for target in targets.current(tx):
            copies.enqueue(tx, copies.Transfer(target, self._clock.now(), pack.number, 0))

    def _late_uses(self, repository: RepositoryId, pack: FilledPack) -> None:
        """Files that joined a content between its rows and now."""
        with self._store.read() as reader:
            late = []
            for sha256, pending in pack.contents.items():
                same = contents.twins(reader, sha256, repository)
                content = next((content for content in same if content.home == pack.number), None)
                if content is not None:
                    late += [
                        (content, file)
                        for file in pending.files
                        if not contents.has_use(reader, content.number, file.inode, file.version)
                    ]
        if late:
            with self._store.write() as tx:
                for content, file in late:
                    contents.add_use(tx, content.number, file.inode, file.version)

    def drop(self, domain: Domain, pack: FilledPack, problem: VnaError | OSError) -> None:
        """Give a pack up and its files back. Needs the domain's lock."""
        log.error("pack.lost", extra={"pack": pack.writer.id.hex(), "why": str(problem)})
        with self._lock:
            self._failed.add(pack.number)
        pack.writer.abort()
        for suffix in ("building", "pack"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, f"{pack.writer.id.hex()}.{suffix}"))
        domain.closing.pop(pack.writer.id, None)
        files = [file for pending in pack.contents.values() for file in pending.files]
        self._lost(files, problem if isinstance(problem, VnaError) else local_error(problem, "writing a pack"))


def _proposal(file: File) -> Proposal:
    return Proposal(file.inode, file.version, FileState.PACKED, file.seal)


def _first_free(reader: Reader) -> tuple[int, int]:
    """The first numbers of contents and of pieces that no row has, and that no pack's row claims."""
    content, piece = _last(reader, keys.CONTENTS) + 1, _last(reader, keys.PIECES) + 1
    for pack in itertools.islice(packs.latest(reader), LATEST_PACKS):
        content = max(content, pack.contents_first + pack.contents_count)
        piece = max(piece, pack.pieces_first + pack.pieces_count)
    return content, piece


def _last(reader: Reader, table: bytes) -> int:
    for key, _ in reader.scan(table, prefix_stop(table), reverse=True):
        return keys.number_of(key)
    return 0
