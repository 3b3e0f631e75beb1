"""Pack: turn sealed bytes into pieces, pieces into packs, and packs into rows of the store.

Worker threads call `add`; each splits, hashes and compresses on its own and holds the lock only to look up and to
append. One recorder thread closes packs and writes rows, strictly in order, so a pack never leans on one that is
not recorded. Rows are on stable storage before the tree is told; a crash between leaves files that are sealed again
and found to be known. A pack that the disk did not take is dropped as a whole and its files come back. Knows no
target.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from vnafs.content import codecs, packfile, splitters
from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace, StorageFailed, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState, Proposal, Seal
from vnafs.domain.ids import (
    ContentNumber,
    Inode,
    PackId,
    PackNumber,
    PieceNumber,
    RepositoryId,
    Sha256,
    Span,
    Version,
    new_pack_id,
)
from vnafs.domain.recipes import PIECE_LOOKUP_BYTES_MIN, Cut, PieceRef, Recipe
from vnafs.domain.repositories import Repository
from vnafs.index import contents, copies, keys, packs, pieces, targets
from vnafs.index.engine import Engine, Reader, Transaction, prefix_stop
from vnafs.local.spool import local_error
from vnafs.pipeline.seal import WINDOW_BYTES, Reading

log = logging.getLogger(__name__)

CLOSING_MAX = 2
"""Packs that wait for the recorder; workers wait when there are more."""
REUSES_AT_ONCE_MAX = 256
REUSES_WAIT_SECONDS = 0.02
"""For more files of known content, so that they share a transaction and a sync."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One version that is, or will be, some content."""

    inode: Inode
    version: Version
    seal: Seal


@dataclasses.dataclass(slots=True)
class _Pending:
    """A content in a pack that is not recorded yet."""

    recipe: Recipe
    span: Span
    leans_on: tuple[PackNumber, ...]
    files: list[File]


class _Open:
    """A pack being filled. Its lock is the domain's."""

    def __init__(self, number: PackNumber, writer: packfile.PackWriter, began: float) -> None:
        self.number = number
        self.writer = writer
        self.began = began
        self.contents: dict[Sha256, _Pending] = {}
        self.pieces: dict[Sha256, PieceRef] = {}


class _Domain:
    """One repository and retention class: what may share a pack. Everything in it is guarded by its lock."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.lock = threading.Lock()
        self.open: _Open | None = None
        self.closing: collections.OrderedDict[PackId, _Open] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True, slots=True)
class _Close:
    """A token: one more pack of the domain is to be recorded. Which one is the domain's order, not the tokens'."""

    domain: _Domain


@dataclasses.dataclass(frozen=True, slots=True)
class _Reuse:
    domain: _Domain
    number: ContentNumber
    file: File


_Item = _Close | _Reuse | threading.Event


@dataclasses.dataclass(frozen=True, slots=True)
class PackerSettings:
    """Limits of packing."""

    folder: str
    target_bytes: int
    age_seconds_max: float
    compression_level: int
    archive_id: bytes
    """16 bytes that name the archive in each pack."""


class Packer:
    """Takes sealed bytes from many threads and leaves recorded packs.

    *propose* is told of files whose content is recorded; *recorded* of each new pack; *lost* of files whose pack
    could not be written, which then come back as candidates.
    """

    def __init__(
        self,
        store: Engine,
        settings: PackerSettings,
        *,
        clock: Clock,
        faults: Faults,
        propose: Callable[[list[Proposal]], None],
        recorded: Callable[[PackNumber], None],
        lost: Callable[[list[File], VnaError], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._faults = faults
        self._propose = propose
        self._recorded = recorded
        self._lost = lost
        self._fatal = fatal
        self._domains: dict[tuple[RepositoryId, int], _Domain] = {}
        self._lock = threading.Lock()
        self._work: queue.Queue[_Item | None] = queue.Queue(maxsize=4 * REUSES_AT_ONCE_MAX)
        self._closing = threading.BoundedSemaphore(CLOSING_MAX)
        self._failed: set[PackNumber] = set()
        os.makedirs(settings.folder, mode=0o700, exist_ok=True)
        with store.read() as reader:
            self._pack_next = packs.last_number(reader) + 1
            self._content_next = _last(reader, keys.CONTENTS) + 1
            self._piece_next = _last(reader, b"P") + 1
            self._remove_leftovers(reader)
        self._thread = threading.Thread(target=self._record_all, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to record in a thread."""
        self._thread.start()

    def _remove_leftovers(self, reader: Reader) -> None:
        """Files of packs that a crash kept from being recorded: their contents are still in the spool."""
        for name in os.listdir(self._settings.folder):
            path = os.path.join(self._settings.folder, name)
            stem, _, kind = name.partition(".")
            try:
                number = packs.number_of(reader, PackId(bytes.fromhex(stem)))
            except ValueError:
                continue
            row = None if number is None else packs.get(reader, number)
            if kind == "building" or (kind == "pack" and (row is None or not row.local)):
                log.info("pack.leftover_removed", extra={"pack": stem})
                os.unlink(path)

    # -- workers ---------------------------------------------------------------------------------------------

    def add(self, reading: Reading, repository: Repository, hints: packfile.FileHints) -> Seal | None:
        """Take one version's bytes. None when they changed meanwhile; it comes back as a candidate.

        Raises NoSpace when the local disk has no room for packs, StorageFailed.
        """
        domain = self._domain(repository)
        if reading.size_bytes <= WINDOW_BYTES:
            view = reading.whole()
            seal = reading.finish()
            if seal is None:
                return None
            if self._reuse(domain, File(reading.candidate.inode, reading.candidate.version, seal)):
                return seal
            examined = splitters.examine(view)
            alone = seal.sha256 if len(examined.cuts) == 1 else None
            refs = [
                self._piece(domain, memoryview(view)[cut.offset : cut.offset + cut.length_bytes], cut, alone)
                for cut in examined.cuts
            ]
            hints = dataclasses.replace(hints, dicom=examined.facts)
        else:
            looked = splitters.examine_file(reading.descriptor, reading.size_bytes)
            refs = []
            for cut in looked.cuts:
                raw = reading.read(cut.length_bytes)
                if len(raw) < cut.length_bytes:
                    return None  # it became shorter; what is in the pack already is nobody's
                refs.append(self._piece(domain, raw, cut, None))
            seal = reading.finish()
            if seal is None:
                return None
            hints = dataclasses.replace(hints, dicom=looked.facts)
        file = File(reading.candidate.inode, reading.candidate.version, seal)
        self._content(domain, Recipe(seal.sha256, reading.size_bytes, tuple(refs)), file, hints)
        return seal

    def _domain(self, repository: Repository) -> _Domain:
        with self._lock:
            return self._domains.setdefault((repository.id, repository.retention_class), _Domain(repository))

    def _reuse(self, domain: _Domain, file: File) -> bool:
        """Whether the repository has this content already, recorded or in a pack still open."""
        with domain.lock:
            for pack in (*domain.closing.values(), domain.open):
                pending = pack.contents.get(file.seal.sha256) if pack is not None else None
                if pending is not None:
                    pending.files.append(file)
                    return True
            with self._store.read() as reader:
                known = contents.find(reader, file.seal.sha256, domain.repository.id)
        if known is None:
            return False
        self._work.put(_Reuse(domain, known.number, file))
        return True

    def _piece(self, domain: _Domain, raw: bytes | memoryview, cut: Cut, known_sha256: Sha256 | None) -> PieceRef:
        sha256 = known_sha256 or Sha256(hashlib.sha256(raw).digest())
        shared = cut.length_bytes >= PIECE_LOOKUP_BYTES_MIN
        if shared and (known := self._known(domain, sha256)) is not None:
            return known
        encoded = codecs.encode(raw, cut.kind, level=self._settings.compression_level)
        with domain.lock:
            if shared and (known := self._pending_piece(domain, sha256)) is not None:
                return known
            with self._appending(domain) as pack:
                ref = pack.writer.append_piece(
                    encoded.data, raw_bytes=cut.length_bytes, codec=encoded.codec, kind=cut.kind, sha256=sha256
                )
            if shared:
                pack.pieces[sha256] = ref
            full = self._detach_full(domain)
        self._close(domain, full)
        self._faults.reach("pack.appended")
        return ref

    def _known(self, domain: _Domain, sha256: Sha256) -> PieceRef | None:
        with domain.lock:
            pending = self._pending_piece(domain, sha256)
            if pending is not None:
                return pending
            with self._store.read() as reader:
                for piece in pieces.find(reader, sha256):
                    home = packs.get(reader, piece.pack)
                    if home is not None and home.repository == domain.repository.id:
                        return PieceRef(
                            home.id,
                            piece.offset,
                            piece.stored_bytes,
                            piece.raw_bytes,
                            piece.codec,
                            piece.kind,
                            piece.sha256,
                        )
        return None

    @staticmethod
    def _pending_piece(domain: _Domain, sha256: Sha256) -> PieceRef | None:
        for pack in (*domain.closing.values(), domain.open):
            if pack is not None and sha256 in pack.pieces:
                return pack.pieces[sha256]
        return None

    def _content(self, domain: _Domain, recipe: Recipe, file: File, hints: packfile.FileHints) -> None:
        with domain.lock:
            pack = self._pack(domain)
            pending = pack.contents.get(recipe.sha256)
            if pending is not None:
                pending.files.append(file)
                return
            leans_on = tuple(sorted(self._numbers(domain, recipe.packs() - {pack.writer.id})))
            with self._appending(domain):
                span = pack.writer.append_content(recipe, hints)
            pack.contents[recipe.sha256] = _Pending(recipe, span, leans_on, [file])
            full = self._detach_full(domain)
        self._close(domain, full)

    def _numbers(self, domain: _Domain, identities: Iterable[PackId]) -> Iterator[PackNumber]:
        for identity in identities:
            if identity in domain.closing:
                yield domain.closing[identity].number
                continue
            with self._store.read() as reader:
                number = packs.number_of(reader, identity)
            if number is None:
                raise NoSpace(why="a pack that this file needs could not be written; it is packed again")
            yield number

    @contextlib.contextmanager
    def _appending(self, domain: _Domain) -> Iterator[_Open]:
        """The pack to append to; dropped as a whole when the disk did not take all. Needs the domain's lock."""
        pack = self._pack(domain)
        try:
            yield pack
        except (NoSpace, StorageFailed) as problem:
            # what reached the file is anybody's guess, so nothing may follow it
            domain.open = None
            self._drop(domain, pack, problem)
            raise

    def _pack(self, domain: _Domain) -> _Open:
        """The pack to append to, perhaps a new one. Needs the domain's lock."""
        if domain.open is None:
            with self._lock:
                number = PackNumber(self._pack_next)
                self._pack_next += 1
            identity = new_pack_id()
            header = packfile.PackHeader(
                pack=identity,
                archive=self._settings.archive_id,
                repository=domain.repository.id,
                retention_class=domain.repository.retention_class,
                created=self._clock.now(),
            )
            writer = packfile.PackWriter(self._building(identity), header, repository_name=domain.repository.name)
            domain.open = _Open(number, writer, self._clock.monotonic())
        return domain.open

    def _detach(self, domain: _Domain) -> _Open | None:
        """Take the open pack away from the workers; it stays visible as closing. Needs the domain's lock."""
        pack, domain.open = domain.open, None
        if pack is not None:
            domain.closing[pack.writer.id] = pack
        return pack

    def _detach_full(self, domain: _Domain) -> _Open | None:
        """The same, when it has reached its size, or as large a part of what is free. Needs the domain's lock."""
        if domain.open is None:
            return None
        size_bytes = domain.open.writer.size_bytes
        full = size_bytes >= self._settings.target_bytes or size_bytes >= _free_bytes(self._settings.folder) // 2
        return self._detach(domain) if full else None

    def _close(self, domain: _Domain, pack: _Open | None) -> None:
        """Hand a detached pack to the recorder; waits while it is behind, so never under a lock."""
        if pack is not None:
            self._closing.acquire()
            self._work.put(_Close(domain))

    def close_aged(self, *, everything: bool = False) -> None:
        """Close packs that are old enough, or all of them."""
        with self._lock:
            domains = list(self._domains.values())
        for domain in domains:
            with domain.lock:
                pack = domain.open
                age = 0.0 if pack is None else self._clock.monotonic() - pack.began
                aged = pack is not None and (everything or age >= self._settings.age_seconds_max)
                detached = self._detach(domain) if aged else None
            self._close(domain, detached)

    def drain(self) -> None:
        """Return when everything added before is recorded."""
        self.close_aged(everything=True)
        done = threading.Event()
        self._work.put(done)
        while not done.wait(1.0):
            if not self._thread.is_alive():
                raise StorageFailed(doing="recording packs", why="the recorder stopped")

    def stop(self) -> None:
        """Finish what was handed over; open packs are dropped, their files are still in the spool."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
        for domain in self._domains.values():
            if domain.open is not None:
                domain.open.writer.abort()

    # -- the recorder ----------------------------------------------------------------------------------------

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
        if isinstance(item, _Close):
            with item.domain.lock:
                # the one detached first: a later one may lean on it, whichever worker got here sooner
                oldest = next(iter(item.domain.closing.values()), None)
            if oldest is not None:
                self._record(item.domain, oldest)
            self._closing.release()
        elif isinstance(item, threading.Event):
            item.set()
        else:
            reuses = [item]
            while len(reuses) < REUSES_AT_ONCE_MAX and behind is None:
                try:
                    found = self._work.get(timeout=wait_seconds) if wait_seconds else self._work.get_nowait()
                except queue.Empty:
                    break
                if isinstance(found, _Reuse):
                    reuses.append(found)
                elif found is None:
                    self._work.put(None)  # the sign to stop, for whoever waits for it
                    break
                else:
                    behind = found
            self._record_reuses(reuses)
        return behind

    def _record_reuses(self, reuses: list[_Reuse]) -> None:
        try:
            with self._store.write() as tx:
                for reuse in reuses:
                    contents.add_use(tx, reuse.number, reuse.file.inode, reuse.file.version)
        except NoSpace as problem:
            self._lost([reuse.file for reuse in reuses], problem)
            return
        self._store.sync(self._store.position)
        self._propose([_proposal(reuse.file) for reuse in reuses])

    def _record(self, domain: _Domain, pack: _Open) -> None:
        try:
            leans_on = sorted({number for pending in pack.contents.values() for number in pending.leans_on})
            self._refuse_failed(leans_on)
            closed = pack.writer.close()
            self._faults.reach("pack.closed")
            os.rename(self._building(closed.id), self._settings.folder + f"/{closed.id.hex()}.pack")
            _sync_folder(self._settings.folder)
            with self._store.write() as tx:
                self._rows(tx, domain, pack, closed, leans_on)
        except (NoSpace, OSError) as problem:
            with domain.lock:
                self._drop(domain, pack, problem)
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
        domain: _Domain,
        pack: _Open,
        closed: packfile.ClosedPack,
        leans_on: list[PackNumber],
    ) -> None:
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

    def _late_uses(self, repository: RepositoryId, pack: _Open) -> None:
        """Files that joined a content between its rows and now."""
        with self._store.read() as reader:
            late = []
            for sha256, pending in pack.contents.items():
                content = contents.find(reader, sha256, repository)
                noted = set() if content is None else set(contents.uses(reader, content.number))
                late += [(content, f) for f in pending.files if content and (f.inode, f.version) not in noted]
        if late:
            with self._store.write() as tx:
                for content, file in late:
                    contents.add_use(tx, content.number, file.inode, file.version)

    def _drop(self, domain: _Domain, pack: _Open, problem: VnaError | OSError) -> None:
        """Give a pack up and its files back. Needs the domain's lock."""
        log.error("pack.lost", extra={"pack": pack.writer.id.hex(), "why": str(problem)})
        with self._lock:
            self._failed.add(pack.number)
        pack.writer.abort()
        for suffix in ("building", "pack"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._settings.folder, f"{pack.writer.id.hex()}.{suffix}"))
        domain.closing.pop(pack.writer.id, None)
        files = [file for pending in pack.contents.values() for file in pending.files]
        self._lost(files, problem if isinstance(problem, VnaError) else local_error(problem, "writing a pack"))

    def _building(self, identity: PackId) -> str:
        return os.path.join(self._settings.folder, f"{identity.hex()}.building")


def _free_bytes(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _proposal(file: File) -> Proposal:
    return Proposal(file.inode, file.version, FileState.PACKED, file.seal)


def _last(reader: Reader, table: bytes) -> int:
    for key, _ in reader.scan(table, prefix_stop(table), reverse=True):
        return keys.number_of(key)
    return 0


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
