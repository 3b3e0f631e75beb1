"""Pack: turn sealed bytes into pieces, and pieces into packs that are then recorded (`pipeline.record`).

Worker threads call `add`; each splits, hashes and compresses on its own and holds the domain's lock only to look up
and to append. A pack may be leaned on by later ones as soon as a piece is in it. Knows no target.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from vnafs.content import packfile, splitters
from vnafs.content.bases import Bases
from vnafs.content.codecs import Encoded
from vnafs.content.crypt import Cipher
from vnafs.content.encoder import Encoder
from vnafs.domain.clock import Clock
from vnafs.domain.envelopes import Envelope
from vnafs.domain.errors import KeyMissing, NoSpace, StorageFailed
from vnafs.domain.faults import Faults
from vnafs.domain.files import Seal
from vnafs.domain.ids import PackId, PackNumber, RepositoryId, Sha256, new_pack_id
from vnafs.domain.recipes import PIECE_LOOKUP_BYTES_MIN, Cut, PieceKind, PieceRef, Recipe
from vnafs.domain.repositories import Repository
from vnafs.index import contents, packs, pieces
from vnafs.index.engine import Engine
from vnafs.pipeline.domains import Domain, File, FilledPack, Pending
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.leaning import Leaning
from vnafs.pipeline.record import Recorder
from vnafs.pipeline.seal import WINDOW_BYTES, Reading


@dataclasses.dataclass(frozen=True, slots=True)
class PackerSettings:
    """Limits of packing."""

    folder: str
    target_bytes: int
    age_seconds_max: float
    archive_id: bytes
    """16 bytes that name the archive in each pack."""
    lean_seconds_max: float
    """See Leaning."""


class Packer:
    """Takes sealed bytes from many threads.

    *keys* encrypt the packs of encrypted repositories; *wait_for_room* returns when there may be more packs, asked in
    the middle of large files only.
    """

    def __init__(
        self,
        store: Engine,
        recorder: Recorder,
        settings: PackerSettings,
        keys: Keys | None,
        *,
        encoder: Encoder,
        wait_for_room: Callable[[], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._settings = settings
        self._keys = keys
        self._leaning = Leaning(settings.lean_seconds_max, clock)
        self._encoder = encoder
        self._wait_for_room = wait_for_room
        self._clock = clock
        self._faults = faults
        self._domains: dict[tuple[RepositoryId, int], Domain] = {}
        self._in_hand: dict[int, list[PieceRef]] = {}
        """By thread: the pieces of a file that is no content yet."""
        self._lock = threading.Lock()
        with store.read() as reader:
            self._pack_next = packs.last_number(reader) + 1

    # -- workers ---------------------------------------------------------------------------------------------

    def add(self, reading: Reading, repository: Repository, hints: packfile.FileHints) -> Seal | None:
        """Take one version's bytes. None when they changed meanwhile; it comes back as a candidate.

        Raises NoSpace when the local disk has no room for packs, StorageFailed.
        """
        return self._take(reading, repository, hints, is_sealed=True)

    def keep(self, reading: Reading, repository: Repository, hints: packfile.FileHints) -> Seal | None:
        """Take bytes that are no sealed version's: they become a content, and the tree is told nothing.

        Raises as `add`; `has` and the store say what became of them.
        """
        return self._take(reading, repository, hints, is_sealed=False)

    def has(self, sha256: Sha256, repository: RepositoryId) -> bool:
        """Whether a content is in a pack that is not recorded yet."""
        with self._lock:
            domains = [domain for domain in self._domains.values() if domain.repository.id == repository]
        for domain in domains:
            with domain.lock:
                if self._pending_content(domain, sha256) is not None:
                    return True
        return False

    def leaned_on(self) -> set[PackId]:
        """Packs that files which are being packed need, and of which no row says so yet. Any thread."""
        with self._lock:
            found = {ref.pack for refs in self._in_hand.values() for ref in list(refs)}
            domains = list(self._domains.values())
        for domain in domains:
            with domain.lock:
                for pack in (*domain.closing.values(), domain.open):
                    for pending in pack.contents.values() if pack is not None else ():
                        found |= pending.recipe.packs()
        return found

    def _take(
        self, reading: Reading, repository: Repository, hints: packfile.FileHints, *, is_sealed: bool
    ) -> Seal | None:
        refs: list[PieceRef] = []
        with self._lock:
            self._in_hand[threading.get_ident()] = refs
        try:
            return self._taken(reading, repository, hints, refs, is_sealed=is_sealed)
        finally:
            with self._lock:
                del self._in_hand[threading.get_ident()]

    def _taken(
        self,
        reading: Reading,
        repository: Repository,
        hints: packfile.FileHints,
        refs: list[PieceRef],
        *,
        is_sealed: bool,
    ) -> Seal | None:
        candidate = reading.candidate

        def files(seal: Seal) -> list[File]:
            return [File(candidate.inode, candidate.version, seal)] if is_sealed else []

        domain = self._domain(repository)
        if reading.size_bytes <= WINDOW_BYTES:
            view = reading.whole()
            seal = reading.finish()
            if seal is None:
                return None
            if self._reuse(domain, seal.sha256, files(seal)):
                return seal
            examined = splitters.examine(view)
            alone = seal.sha256 if len(examined.cuts) == 1 else None
            for cut in examined.cuts:
                raw_view = memoryview(view)[cut.offset : cut.offset + cut.length_bytes]
                refs.append(self._piece(domain, raw_view, cut, alone))
            hints = dataclasses.replace(hints, dicom=examined.facts)
        else:
            looked = splitters.examine_file(reading.descriptor, reading.size_bytes)
            for cut in looked.cuts:
                self._wait_for_room()
                raw = reading.read(cut.length_bytes)
                if len(raw) < cut.length_bytes:
                    return None  # it became shorter; what is in the pack already is nobody's
                refs.append(self._piece(domain, raw, cut, None))
            seal = reading.finish()
            if seal is None:
                return None
            hints = dataclasses.replace(hints, dicom=looked.facts)
        self._content(domain, Recipe(seal.sha256, reading.size_bytes, tuple(refs)), files(seal), hints)
        return seal

    def filling_bytes(self) -> int:
        """Of packs that have no row yet."""
        with self._lock:
            domains = list(self._domains.values())
        filling = 0
        for domain in domains:
            with domain.lock:
                filling += sum(pack.writer.size_bytes for pack in (*domain.closing.values(), domain.open) if pack)
        return filling

    def _domain(self, repository: Repository) -> Domain:
        with self._lock:
            return self._domains.setdefault((repository.id, repository.retention_class), Domain(repository))

    def _reuse(self, domain: Domain, sha256: Sha256, files: list[File]) -> bool:
        """Whether the repository has this content already, recorded or in a pack still open."""
        with domain.lock:
            pending = self._pending_content(domain, sha256)
            if pending is not None:
                pending.files.extend(files)
                return True
            with self._store.read() as reader:
                same = contents.twins(reader, sha256, domain.repository.id)
                known = next((content for content in same if self._leaning.may(reader, content.packs())), None)
            if known is None:
                return False
        for file in files:
            self._recorder.reuse(known.number, file)
        return True

    @staticmethod
    def _pending_content(domain: Domain, sha256: Sha256) -> Pending | None:
        for pack in (*domain.closing.values(), domain.open):
            if pack is not None and sha256 in pack.contents:
                return pack.contents[sha256]
        return None

    def _piece(self, domain: Domain, raw: bytes | memoryview, cut: Cut, known_sha256: Sha256 | None) -> PieceRef:
        sha256 = known_sha256 or Sha256(hashlib.sha256(raw).digest())
        shared = cut.length_bytes >= PIECE_LOOKUP_BYTES_MIN
        if shared and (known := self._known(domain, sha256)) is not None:
            return known
        bases, leaning = self._leaning_on_header(domain, raw, cut)
        encoded = leaning or self._encoder.encode(raw, cut.kind, cut.raster)
        with domain.lock:
            if shared and (known := self._pending_piece(domain, sha256)) is not None:
                return known
            with self._appending(domain) as pack:
                if leaning is not None and bases is not pack.bases:
                    # the pack with its base was closed meanwhile; once a pack, at most, for each worker
                    encoded = self._encoder.encode(raw, cut.kind, cut.raster)
                ref = pack.writer.append_piece(
                    encoded.data, raw_bytes=cut.length_bytes, codec=encoded.codec, kind=cut.kind, sha256=sha256
                )
            pack.bases.add(ref, raw)
            if shared:
                pack.pieces[sha256] = ref
            full = self._detach_full(domain)
        if full:
            self._recorder.close(domain)
        self._faults.reach("pack.appended")
        return ref

    @staticmethod
    def _leaning_on_header(domain: Domain, raw: bytes | memoryview, cut: Cut) -> tuple[Bases | None, Encoded | None]:
        """A header as what differs from another one in the open pack, if that is worth it, and the headers there."""
        if cut.kind is not PieceKind.DICOM_HEADER:
            return None, None
        with domain.lock:
            bases = None if domain.open is None else domain.open.bases
        return bases, None if bases is None else bases.lean(raw)

    def _known(self, domain: Domain, sha256: Sha256) -> PieceRef | None:
        with domain.lock:
            pending = self._pending_piece(domain, sha256)
            if pending is not None:
                return pending
            with self._store.read() as reader:
                for piece in pieces.find(reader, sha256):
                    home = packs.get(reader, piece.pack)
                    fits = home is not None and home.repository == domain.repository.id
                    if home is not None and fits and self._leaning.may(reader, [piece.pack]):
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
    def _pending_piece(domain: Domain, sha256: Sha256) -> PieceRef | None:
        for pack in (*domain.closing.values(), domain.open):
            if pack is not None and sha256 in pack.pieces:
                return pack.pieces[sha256]
        return None

    def _content(self, domain: Domain, recipe: Recipe, files: list[File], hints: packfile.FileHints) -> None:
        with domain.lock:
            pack = self._pack(domain)
            pending = pack.contents.get(recipe.sha256)
            if pending is not None:
                pending.files.extend(files)
                return
            leans_on = tuple(sorted(self._numbers(domain, recipe.packs() - {pack.writer.id})))
            with self._appending(domain):
                span = pack.writer.append_content(recipe, hints)
            pack.contents[recipe.sha256] = Pending(recipe, span, leans_on, files)
            full = self._detach_full(domain)
        if full:
            self._recorder.close(domain)

    def _numbers(self, domain: Domain, identities: Iterable[PackId]) -> Iterator[PackNumber]:
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
    def _appending(self, domain: Domain) -> Iterator[FilledPack]:
        """The pack to append to; dropped as a whole when the disk did not take all. Needs the domain's lock."""
        pack = self._pack(domain)
        try:
            yield pack
        except (NoSpace, StorageFailed) as problem:
            # what reached the file is anybody's guess, so nothing may follow it
            domain.open = None
            self._recorder.drop(domain, pack, problem)
            raise

    def _pack(self, domain: Domain) -> FilledPack:
        """The pack to append to, perhaps a new one. Needs the domain's lock."""
        if domain.open is None:
            with self._lock:
                number = PackNumber(self._pack_next)
                self._pack_next += 1
            identity = new_pack_id()
            envelope, cipher = self._encryption(domain.repository, identity)
            header = packfile.PackHeader(
                pack=identity,
                archive=self._settings.archive_id,
                repository=domain.repository.id,
                retention_class=domain.repository.retention_class,
                created=self._clock.now(),
                envelope=envelope,
            )
            writer = packfile.PackWriter(
                self._recorder.path(identity), header, repository_name=domain.repository.name, cipher=cipher
            )
            domain.open = FilledPack(number, writer, self._clock.monotonic())
        return domain.open

    def _encryption(self, repository: Repository, pack: PackId) -> tuple[Envelope | None, Cipher | None]:
        if not repository.encrypted:
            return None, None
        if self._keys is None:
            raise KeyMissing(what=f"Repository {repository.id}", why="this archive has no keyring")
        return self._keys.new_pack(repository.id, pack)

    def _detach(self, domain: Domain) -> FilledPack | None:
        """Take the open pack away from the workers; it stays visible as closing. Needs the domain's lock."""
        pack, domain.open = domain.open, None
        if pack is not None:
            domain.closing[pack.writer.id] = pack
        return pack

    def _detach_full(self, domain: Domain) -> FilledPack | None:
        """The same, when it has reached its size, or as large a part of what is free. Needs the domain's lock."""
        if domain.open is None:
            return None
        size_bytes = domain.open.writer.size_bytes
        full = size_bytes >= self._settings.target_bytes or size_bytes >= _free_bytes(self._settings.folder) // 2
        return self._detach(domain) if full else None

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
            if detached:
                self._recorder.close(domain)

    def stop(self) -> None:
        """Drop packs that are still being filled; their files are still in the spool."""
        for domain in self._domains.values():
            if domain.open is not None:
                domain.open.writer.abort()


def _free_bytes(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
