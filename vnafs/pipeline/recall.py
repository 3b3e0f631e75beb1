"""Recall: bring bytes back from packs, whole or by range, and let nothing out that is not what went in.

Works from (SHA-256, repository) alone. Pieces are checked one by one, the whole content before it is handed over.
A piece that is wrong where it was read first is read from every other target that holds its pack. Blocks only its
caller; whole packs are fetched behind it, so that the next file of a study finds its bytes here.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from vnafs.content import bases, packfile
from vnafs.content.bases import Base
from vnafs.content.crypt import Cipher
from vnafs.domain.clock import Clock
from vnafs.domain.errors import (
    Damaged,
    KeyMissing,
    NoSpace,
    RecallBudgetSpent,
    RecallFailed,
    RecallRefused,
    TargetError,
    VnaError,
)
from vnafs.domain.faults import Faults
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, Version
from vnafs.domain.recipes import EMPTY, PIECE_BYTES_MAX, Codec, PieceRef, Recipe
from vnafs.index import contents, packs
from vnafs.index.engine import Engine
from vnafs.local.spool import local_error
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.shelf import Shelf

log = logging.getLogger(__name__)
_T = TypeVar("_T")

AHEAD_MAX = 64
"""Packs that wait to be fetched ahead; more are not worth remembering."""
RANGES_MAX = 64
"""Large files that are read by range at once; the longest unused is forgotten."""
RECIPES_MAX = 256
CIPHERS_MAX = 1024
"""Of packs that were read last: unwrapping a data key takes as long as decrypting 100 KB."""
BASES_MAX = 64
"""Of headers that were read last, which the others of their study lean on: 64 KiB each at most."""
AHEAD_AT_ONCE_MAX = 4
HEAVY_BYTES = 8 * 1024 * 1024
"""A file that needs more of a pack than this waits for the whole pack instead of asking for its part."""
RECALLS_MAX = 16
"""Recalls that write to the local disk at once."""
STAGED_SECONDS_MAX = 3600.0
"""Whoever asked for a file has taken it by then, or never will: mount was restarted in between."""
RANGE_ATTEMPTS_MAX = 3
ROOM_ATTEMPTS_MAX = 3
ROOM_SECONDS = 0.5
"""Before another attempt to find room: freed blocks may take a moment to be free."""


@dataclasses.dataclass(slots=True)
class _Ranged:
    """A large stub that somebody reads: a sparse file and the pieces that are in it."""

    path: str
    recipe: Recipe
    offsets: list[int]
    present: set[int]
    lock: threading.Lock
    held_bytes: int = 0
    """What its pieces take of the local disk."""
    forgotten: bool = False


class Recaller:
    """Brings contents back into the staging folder. Several threads at once.

    *taking_room* makes room on the local disk and takes it while bytes are brought; it raises NoSpace.
    """

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        store: Engine,
        shelf: Shelf,
        folder: str,
        keys: Keys | None,
        *,
        taking_room: Callable[[int], contextlib.AbstractContextManager[None]],
        parts_bytes_max: int,
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._folder = folder
        self._keys = keys
        self._ciphers: collections.OrderedDict[PackId, Cipher] = collections.OrderedDict()
        self._bases: collections.OrderedDict[tuple[PackId, Base], bytes] = collections.OrderedDict()
        self._taking_room = taking_room
        self._parts_bytes_max = parts_bytes_max
        self._parts_bytes = 0
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._lock = threading.Lock()
        self._recipes: collections.OrderedDict[Sha256, Recipe] = collections.OrderedDict()
        self._ranged: collections.OrderedDict[tuple[Inode, Version], _Ranged] = collections.OrderedDict()
        self._places = threading.BoundedSemaphore(RECALLS_MAX)
        self._ahead: queue.Queue[packs.Pack | None] = queue.Queue(maxsize=AHEAD_MAX)
        self._run_id = os.urandom(4).hex()
        self._serial = 0
        self._generation = 0
        """Of recipes and bases: how often contents moved."""
        self._stopping = False
        self._staged: dict[str, float] = {}
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))  # staged bytes that nobody adopted; they can be fetched again
        self._threads = [
            threading.Thread(target=self._fetch_ahead, name=f"fetch-ahead-{n}", daemon=True)
            for n in range(AHEAD_AT_ONCE_MAX)
        ]

    def start(self) -> None:
        """Begin to fetch ahead."""
        for thread in self._threads:
            thread.start()

    def ask_to_stop(self) -> None:
        """Let the threads that fetch ahead end; what waits to be fetched is not wanted any more."""
        if not self._threads[0].is_alive():
            return
        self._stopping = True
        for _ in self._threads:
            with contextlib.suppress(queue.Full):
                self._ahead.put_nowait(None)

    def join(self, seconds_max: float) -> bool:
        """Wait for their end; whether that came. One that hangs on a target ends with the process."""
        until = time.monotonic() + seconds_max
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # -- whole files -------------------------------------------------------------------------------------------

    def recall(self, inode: Inode, version: Version, sha256: Sha256, repository: RepositoryId) -> str:
        """The path of a complete, checked and synced staged file.

        Raises RecallFailed, Damaged, NoSpace; RecallBudgetSpent before anything of a file is fetched that would not fit
        into what is left of the day.
        """
        recipe = self._recipe(sha256, repository)
        self._check_budget(recipe, repository)
        with self._lock:
            path = self._place(inode, version)
        with self._places:
            self._faults.reach("recall.fetched")
            self._stage(path, recipe)
        with self._lock:
            self._staged[path] = self._clock.monotonic()
        self._faults.reach("recall.written")
        return path

    def _check_budget(self, recipe: Recipe, repository: RepositoryId) -> None:
        needed: collections.Counter[PackId] = collections.Counter()
        for ref in recipe.pieces:
            needed[ref.pack] += ref.stored_bytes
            if ref.codec is Codec.ZSTD_AFTER_BASE:
                needed[ref.pack] += bases.RAW_BYTES_MAX  # how long its base is only the piece knows
        far_bytes = sum(
            stored_bytes for pack, stored_bytes in needed.items() if not self._shelf.is_near(self._pack(pack))
        )
        if far_bytes:
            self._shelf.budgets.check(repository, far_bytes)

    def _stage(self, path: str, recipe: Recipe) -> None:
        for attempt in range(ROOM_ATTEMPTS_MAX):
            try:
                with self._taking_room(recipe.size_bytes):
                    self._write(path, recipe)
            except NoSpace:  # others took the room that was made
                if attempt == ROOM_ATTEMPTS_MAX - 1:
                    raise
                self._clock.sleep(ROOM_SECONDS)
            else:
                return

    def _place(self, inode: Inode, version: Version) -> str:
        """A path that never was and never will be again, in any run. Needs the lock.

        Whoever still holds an old path must find nothing there rather than other bytes.
        """
        self._serial += 1
        return os.path.join(self._folder, f"{inode:x}.{version:x}.{self._run_id}.{self._serial:x}")

    def tidy(self) -> None:
        """Remove staged files that nobody took."""
        before = self._clock.monotonic() - STAGED_SECONDS_MAX
        with self._lock:
            old = [path for path, since in self._staged.items() if since <= before or not os.path.exists(path)]
            for path in old:
                del self._staged[path]
        for path in old:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _write(self, path: str, recipe: Recipe) -> None:
        try:
            with _removed_unless_whole(path), open(path, "xb") as file:
                for block in self.bytes_of(recipe):
                    file.write(block)
                file.flush()
                # the tree will take these bytes for the file's: they must not turn to zeros with the power
                os.fdatasync(file.fileno())
        except OSError as problem:
            raise local_error(problem, "staging a recalled file") from problem

    def bytes_of(self, recipe: Recipe, *, recalls: bool = True) -> Iterator[bytes]:
        """The content, checked piece by piece as it comes and as a whole at its end. Raises Damaged.

        Without *recalls* it is for our own ends: nothing is charged, and nothing fetched ahead or asked back.
        """
        digest = hashlib.sha256()
        size = 0
        if recalls:
            self._fetch_heavy(recipe)
        for run in _runs(recipe.pieces):
            for raw in self._run(run, recalls=recalls):
                digest.update(raw)
                size += len(raw)
                yield raw
        if digest.digest() != recipe.sha256 or size != recipe.size_bytes:
            raise Damaged(what=f"content {recipe.sha256.hex()}")

    def _fetch_heavy(self, recipe: Recipe) -> None:
        """Have packs brought here whole of which much is needed: one request each, several at once."""
        needed: collections.Counter[PackId] = collections.Counter()
        for ref in recipe.pieces:
            needed[ref.pack] += ref.stored_bytes
        for identity, stored_bytes in needed.items():
            if stored_bytes >= HEAVY_BYTES:
                self._fetch_behind(self._pack(identity))

    def _run(self, run: list[PieceRef], *, recalls: bool) -> Iterator[bytes]:
        """Neighbouring pieces of one pack, read at once."""
        pack = self._pack(run[0].pack)
        start = run[0].offset
        stored_bytes = run[-1].offset + run[-1].stored_bytes - start
        if recalls and sum(ref.stored_bytes for ref in run) >= HEAVY_BYTES:
            try:
                self._shelf.fetch(pack)
            except (NoSpace, RecallBudgetSpent) as problem:  # its parts may still fit
                log.warning("recall.no_room_for_pack", extra={"pack": pack.id.hex(), "why": str(problem)})
        elif recalls and pack.contents_count > 1:
            self._fetch_behind(pack)
        data = memoryview(self._shelf.read(pack, Span(start, stored_bytes), recalls=recalls))
        for ref in run:
            stored = data[ref.offset - start : ref.offset - start + ref.stored_bytes]
            yield self._decoded(pack, ref, stored, recalls=recalls)

    def _piece(self, ref: PieceRef) -> bytes:
        pack = self._pack(ref.pack)
        return self._decoded(pack, ref, self._shelf.read(pack, Span(ref.offset, ref.stored_bytes)))

    def _decoded(self, pack: packs.Pack, ref: PieceRef, stored: bytes | memoryview, *, recalls: bool = True) -> bytes:
        """The raw bytes of a piece, from any other copy if these are wrong."""
        cipher = self._cipher(pack)

        def opened(stored: bytes | memoryview) -> bytes:
            return packfile.open_piece(ref, stored, lambda base: self._base(pack, base, recalls=recalls), cipher)

        return self._right("a piece", pack, Span(ref.offset, ref.stored_bytes), opened, stored, recalls=recalls)

    def _base(self, pack: packs.Pack, base: Base, *, recalls: bool) -> bytes:
        """The raw bytes of a base, kept for the next header; likewise."""
        with self._lock:
            generation = self._generation
            known = self._bases.get((pack.id, base))
            if known is not None:
                self._bases.move_to_end((pack.id, base))
                return known
        cipher = self._cipher(pack)

        def opened(stored: bytes | memoryview) -> bytes:
            return packfile.open_base(base, stored, cipher)

        span = Span(base.offset, base.stored_bytes)
        stored = self._shelf.read(pack, span, recalls=recalls)
        raw = self._right("a base", pack, span, opened, stored, recalls=recalls)
        with self._lock:
            if generation == self._generation:  # as with recipes
                self._bases[pack.id, base] = raw
            while len(self._bases) > BASES_MAX:
                self._bases.popitem(last=False)
        return raw

    def _right(
        self,
        what: str,
        pack: packs.Pack,
        span: Span,
        opened: Callable[[bytes | memoryview], _T],
        stored: bytes | memoryview,
        *,
        recalls: bool,
    ) -> _T:
        """What is stored at *span* opened, from any other copy where *stored* is wrong. Raises Damaged."""
        try:
            return opened(stored)
        except Damaged:
            log.error("recall.damaged", extra={"what": what, "pack": pack.id.hex(), "offset": span.offset})  # noqa: TRY400 - the next copy decides
        for read in self._shelf.others(pack, recalls=recalls):
            try:
                return opened(read(span))
            except (TargetError, Damaged):
                log.warning("recall.copy_failed", extra={"pack": pack.id.hex()})
        raise Damaged(what=f"{what} in pack {pack.id.hex()}")

    def _pack(self, identity: PackId) -> packs.Pack:
        with self._store.read() as reader:
            number = packs.number_of(reader, identity)
            pack = None if number is None else packs.get(reader, number)
        if pack is None:
            raise RecallFailed(what=f"pack {identity.hex()}", why="the store does not know it")
        return pack

    def _cipher(self, pack: packs.Pack) -> Cipher | None:
        """Raises KeyMissing, Damaged."""
        if pack.envelope is None:
            return None
        with self._lock:
            known = self._ciphers.get(pack.id)
            if known is not None:
                self._ciphers.move_to_end(pack.id)
                return known
        if self._keys is None:
            raise KeyMissing(what=f"Pack {pack.id.hex()}", why="this archive has no keyring")
        cipher = self._keys.cipher(pack.envelope, pack.id)
        with self._lock:
            self._ciphers[pack.id] = cipher
            while len(self._ciphers) > CIPHERS_MAX:
                self._ciphers.popitem(last=False)
        return cipher

    def _fetch_behind(self, pack: packs.Pack) -> None:
        if self._shelf.may_fetch(pack):
            try:
                self._ahead.put_nowait(pack)
            except queue.Full:
                log.debug("recall.ahead_full")

    def _recipe(self, sha256: Sha256, repository: RepositoryId, *, recalls: bool = True) -> Recipe:
        with self._lock:
            generation = self._generation
            known = self._recipes.get(sha256)
            if known is not None:
                self._recipes.move_to_end(sha256)
                return known
        if sha256 == EMPTY:
            return Recipe(EMPTY, 0, ())
        with self._store.read() as reader:
            content = contents.find(reader, sha256, repository)
            home = None if content is None else packs.get(reader, content.home)
        if content is None or home is None:
            raise RecallFailed(what=f"content {sha256.hex()}", why="the store does not know it")
        recipe = self._read_recipe(home, content, recalls=recalls)
        with self._lock:
            if generation == self._generation:  # else it may be from a pack that went meanwhile
                self._recipes[sha256] = recipe
            while len(self._recipes) > RECIPES_MAX:
                self._recipes.popitem(last=False)
        return recipe

    def _read_recipe(self, home: packs.Pack, content: contents.Content, *, recalls: bool) -> Recipe:
        cipher = self._cipher(home)

        def matches(data: bytes | memoryview) -> Recipe:
            recipe = packfile.open_recipe(content.recipe, data, home.id, cipher)
            if recipe.sha256 != content.sha256 or recipe.size_bytes != content.size_bytes:
                raise Damaged(what=f"a recipe in pack {home.id.hex()}")
            return recipe

        stored = self._shelf.read(home, content.recipe, recalls=recalls)
        return self._right("a recipe", home, content.recipe, matches, stored, recalls=recalls)

    def check(self, sha256: Sha256, repository: RepositoryId) -> int:
        """Read a content from where it is stored and compare all of it; the bytes read. Raises like recall."""
        return sum(len(block) for block in self.bytes_of(self._recipe(sha256, repository)))

    def reading(self, sha256: Sha256, repository: RepositoryId) -> Iterator[bytes]:
        """A content from where it is stored, compared, for our own ends: no budget is charged. Raises as `recall`."""
        return self.bytes_of(self._recipe(sha256, repository, recalls=False), recalls=False)

    @contextlib.contextmanager
    def staging(self, sha256: Sha256, size_bytes: int, repository: RepositoryId) -> Iterator[int]:
        """A content as an open file without a name, while the block lasts, for our own ends. Raises as `reading`."""
        with self._taking_room(size_bytes):
            try:
                with tempfile.TemporaryFile(dir=self._folder) as file:
                    for block in self.reading(sha256, repository):
                        file.write(block)
                    file.flush()
                    yield file.fileno()
            except OSError as problem:
                raise local_error(problem, "staging a recalled file") from problem

    # -- ranges of large files ---------------------------------------------------------------------------------

    def ensure(
        self, inode: Inode, version: Version, sha256: Sha256, repository: RepositoryId, span: Span
    ) -> tuple[str, int]:
        """A sparse staged file in which at least *span* is present, and how far beyond that it is. Raises likewise."""
        for _ in range(RANGE_ATTEMPTS_MAX):
            ranged = self._range(inode, version, sha256, repository)
            stop = min(ranged.recipe.size_bytes, span.offset + (span.length or 0))
            wanted = list(_overlapping(ranged.offsets, ranged.recipe, span.offset, stop))
            with ranged.lock:
                if ranged.forgotten:
                    continue
                missing = [number for number in wanted if number not in ranged.present]
                if not self._may_grow(ranged, missing):
                    self._forget(ranged)
                    continue
                self._bring(ranged, missing)
            end = ranged.offsets[wanted[-1]] + ranged.recipe.pieces[wanted[-1]].raw_bytes if wanted else stop
            return ranged.path, end
        raise RecallFailed(what=f"inode {inode} version {version}", why="too many large files are read at once")

    def _bring(self, ranged: _Ranged, missing: list[int]) -> None:
        """Put pieces where they belong; one counts as present only when all of it is. Needs the range's lock."""
        if not missing:
            return
        taking = self._taking_room(sum(ranged.recipe.pieces[number].raw_bytes for number in missing))
        try:
            with taking, open(ranged.path, "r+b", buffering=0) as file:
                for number in missing:
                    raw = memoryview(self._piece(ranged.recipe.pieces[number]))
                    offset = ranged.offsets[number]
                    while raw:  # a disk that is nearly full takes less than it is given
                        done = os.pwrite(file.fileno(), raw, offset)
                        raw, offset = raw[done:], offset + done
                    ranged.present.add(number)
                    with self._lock:
                        ranged.held_bytes += ranged.recipe.pieces[number].raw_bytes
                        self._parts_bytes += ranged.recipe.pieces[number].raw_bytes
        except OSError as problem:
            raise local_error(problem, "staging a part of a file") from problem

    def _may_grow(self, ranged: _Ranged, missing: list[int]) -> bool:
        """Keep all parts together within their limit: the longest unused go first, at last this one. Needs its lock."""
        wanted = sum(ranged.recipe.pieces[number].raw_bytes for number in missing)
        for other in self._others(ranged):
            if self._parts_bytes + wanted <= self._parts_bytes_max:
                break
            if other.lock.acquire(blocking=False):  # one that is being read is in use
                try:
                    self._forget(other)
                finally:
                    other.lock.release()
        return not wanted or not ranged.held_bytes or self._parts_bytes + wanted <= self._parts_bytes_max

    def _others(self, ranged: _Ranged) -> list[_Ranged]:
        with self._lock:
            return [other for other in self._ranged.values() if other is not ranged]

    def _forget(self, ranged: _Ranged) -> None:
        """Needs the range's lock."""
        with self._lock:
            for key in [key for key, known in self._ranged.items() if known is ranged]:
                del self._ranged[key]
            self._parts_bytes -= ranged.held_bytes
            ranged.held_bytes = 0
        ranged.forgotten = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ranged.path)

    def _range(self, inode: Inode, version: Version, sha256: Sha256, repository: RepositoryId) -> _Ranged:
        with self._lock:
            known = self._ranged.get((inode, version))
            if known is not None:
                self._ranged.move_to_end((inode, version))
                return known
        recipe = self._recipe(sha256, repository)
        offsets = []
        position = 0
        for ref in recipe.pieces:
            offsets.append(position)
            position += ref.raw_bytes
        forgotten: list[_Ranged] = []
        with self._lock:
            if (inode, version) not in self._ranged:
                # a mount that starts clears away whole files that its predecessor never took, never these
                path = f"{self._place(inode, version)}.part"
                try:
                    with open(path, "xb") as file:
                        file.truncate(recipe.size_bytes)
                except OSError as problem:
                    raise local_error(problem, "staging a part of a file") from problem
                self._ranged[inode, version] = _Ranged(path, recipe, offsets, set(), threading.Lock())
                while len(self._ranged) > RANGES_MAX:
                    forgotten.append(self._ranged.popitem(last=False)[1])
            found = self._ranged[inode, version]
        for ranged in forgotten:
            with ranged.lock:
                self._forget(ranged)
        return found

    def forget_recipes(self) -> None:
        """Some contents are not where they were. Waits for those that read parts of large files at this moment."""
        with self._lock:
            self._generation += 1
            self._recipes.clear()
            self._bases.clear()
            ranged = list(self._ranged.values())
        for one in ranged:
            with one.lock:
                self._forget(one)

    def shed(self) -> None:
        """Let the parts of large files go that nobody asks for at this moment: the local disk is short of room."""
        with self._lock:
            idle = [ranged for ranged in self._ranged.values() if ranged.lock.acquire(blocking=False)]
        for ranged in idle:
            self._forget(ranged)
            ranged.lock.release()

    # -- ahead -------------------------------------------------------------------------------------------------

    def _fetch_ahead(self) -> None:
        try:
            while (pack := self._ahead.get()) is not None and not self._stopping:
                try:
                    if self._shelf.may_fetch(pack):  # it may have been waiting for long
                        self._shelf.fetch(pack)
                except RecallRefused:
                    log.debug("recall.ahead_refused")
                except VnaError as problem:
                    log.warning("recall.ahead_failed", extra={"pack": pack.id.hex(), "why": str(problem)})
        except BaseException as problem:
            self._fatal(problem)


@contextlib.contextmanager
def _removed_unless_whole(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _runs(pieces: tuple[PieceRef, ...]) -> Iterator[list[PieceRef]]:
    """Neighbours in one pack together, in order, each run no larger than a piece may be."""
    run: list[PieceRef] = []
    for ref in pieces:
        follows = (
            bool(run)
            and ref.pack == run[-1].pack
            and ref.offset == run[-1].offset + run[-1].stored_bytes
            and ref.offset + ref.stored_bytes - run[0].offset <= PIECE_BYTES_MAX
        )
        if run and not follows:
            yield run
            run = []
        run.append(ref)
    if run:
        yield run


def _overlapping(offsets: list[int], recipe: Recipe, start: int, stop: int) -> Iterator[int]:
    """The numbers of the pieces that hold bytes of [start, stop)."""
    first = max(0, bisect.bisect_right(offsets, start) - 1)
    for number in range(first, len(offsets)):
        if offsets[number] >= stop:
            return
        if offsets[number] + recipe.pieces[number].raw_bytes > start:
            yield number
