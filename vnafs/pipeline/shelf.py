"""The shelf: closed packs on the local disk, from the recorder's folder or fetched again, within a limit.

Gives a pack's bytes to whoever uploads or recalls, from the local file if there is one, else from a target with a
verified copy. Several threads at once. A fetched pack is trusted only after its SHA-256 was compared.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from vnafs.domain.copies import CopyState
from vnafs.domain.errors import Damaged, ObjectArchived, RecallFailed, Rehydrating, TargetError
from vnafs.domain.ids import PackId, PackNumber, Span, pack_object_name
from vnafs.index import copies, packs, targets
from vnafs.index.engine import Engine, Reader
from vnafs.local.quarantine import Quarantine
from vnafs.local.spool import local_error
from vnafs.pipeline.aside import LOCAL, about_pack
from vnafs.pipeline.budgets import Budgets
from vnafs.pipeline.thawing import Thawing, Thaws, shown
from vnafs.targets.body import FileBody
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

HASH_BLOCK_BYTES = 1024 * 1024
_T = TypeVar("_T")


class _Turn:
    """Who fetches a pack, and how many wait to see it fetched."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class Shelf:
    """Where packs' bytes come from.

    *sources* answers with the targets that can be read now, by number, the one to be asked first at the front;
    *has_room* whether the local disk may take so many bytes more, *spare_room* takes them or raises NoSpace.
    Whatever is read from a target for a recall is within *budgets*; what is in an archive class there is asked back
    once, and remembered by *thaws*. Local files that are wrong are kept in *quarantine*, if there is one.
    """

    def __init__(  # noqa: PLR0913 - parts and limits, each named where it is wired
        self,
        folder: str,
        cache_folder: str,
        store: Engine,
        *,
        sources: Callable[[], Mapping[int, Target]],
        has_room: Callable[[int], bool],
        spare_room: Callable[[int], contextlib.AbstractContextManager[None]],
        cache_bytes_max: int,
        budgets: Budgets,
        thaws: Thaws,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._quarantine = quarantine
        self.budgets = budgets
        self._thaws = thaws
        self._folder = folder
        self._cache_folder = cache_folder
        self._store = store
        self._sources = sources
        self._has_room = has_room
        self._spare_room = spare_room
        self._cache_bytes_max = cache_bytes_max
        self._lock = threading.Lock()
        self._cached: collections.OrderedDict[PackNumber, int] = collections.OrderedDict()
        self._cached_bytes = 0
        self._fetching: dict[PackNumber, _Turn] = {}
        os.makedirs(cache_folder, mode=0o700, exist_ok=True)
        for name in os.listdir(cache_folder):
            os.unlink(os.path.join(cache_folder, name))  # a cache does not outlive its process

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self, pack: packs.Pack, span: Span, *, recalls: bool = True) -> bytes:
        """Some bytes of a pack; not checked, the caller compares what it decodes.

        Raises RecallFailed; at once RecallBudgetSpent, and Rehydrating for what no target can give before hours.
        Without *recalls* see `_from_targets`.
        """
        for path in (self._local(pack), self._cache(pack)):
            try:
                with open(path, "rb", buffering=0) as file:
                    wanted = pack.size_bytes - span.offset if span.length is None else span.length
                    data = os.pread(file.fileno(), wanted, span.offset)
            except FileNotFoundError:
                continue
            except OSError as problem:
                log.error("shelf.unreadable", extra={"pack": pack.id.hex(), "why": str(problem)})  # noqa: TRY400 - a copy decides
                continue
            if len(data) == wanted:
                return data
        wanted = pack.size_bytes - span.offset if span.length is None else span.length

        def bring(target: Target) -> bytes:
            return b"".join(target.get(pack_object_name(pack.id), span))

        return self._from_targets(pack, wanted, bring, recalls=recalls)

    def _from_targets(
        self, pack: packs.Pack, size_bytes: int, bring: Callable[[Target], _T], *, recalls: bool = True
    ) -> _T:
        """What the first target gives that can. Raises RecallFailed, RecallBudgetSpent, Rehydrating.

        Without *recalls* it is for our own ends: nothing is charged, and nothing asked back from an archive class.
        """
        problems: list[str] = []
        archived: list[tuple[int, Target]] = []
        waiting: list[Thawing] = []
        for number, target in self._holding(pack, besides=0):
            thawing = self._thaws.waits(pack.number, number)
            if thawing is not None:
                waiting.append(thawing)
                continue
            if recalls:
                self.budgets.charge(pack.repository, size_bytes)
            try:
                found = bring(target)
            except (TargetError, Damaged) as problem:
                log.info("shelf.no_answer", extra={"target": target.name, "why": str(problem)})
                problems.append(str(problem))
                if recalls:
                    self.budgets.give_back(pack.repository, size_bytes)
                if isinstance(problem, ObjectArchived):
                    archived.append((number, target))
            else:
                self._thaws.forget(pack.number, number)
                return found
        if recalls and archived and not waiting:
            waiting += self._asked_back(pack, archived, problems)
        if recalls and waiting:
            soonest = min(waiting, key=lambda thawing: thawing.until)
            raise Rehydrating(
                what=f"Pack {pack.id.hex()}", since=shown(soonest.since), until=shown(soonest.until), why=str(problems)
            )
        problems += ["it is in an archive class"] * bool(waiting)
        raise RecallFailed(
            what=f"pack {pack.id.hex()}", why="; ".join(problems) or "no target with a copy is reachable"
        )

    def _asked_back(self, pack: packs.Pack, archived: list[tuple[int, Target]], problems: list[str]) -> list[Thawing]:
        """One target is enough. Coming out of the cold is paid by the byte, so it is charged as reading is."""

        def pay() -> Callable[[], None]:
            self.budgets.charge(pack.repository, pack.size_bytes)
            return lambda: self.budgets.give_back(pack.repository, pack.size_bytes)

        for number, target in archived:
            try:
                return [self._thaws.ask(pack, number, target, paying=pay)]
            except TargetError as problem:
                log.warning("recall.not_asked_back", extra={"target": target.name, "why": str(problem)})
                problems.append(str(problem))
        return []

    def others(self, pack: packs.Pack, *, recalls: bool = True) -> Iterator[Callable[[Span], bytes]]:
        """One reader for each target that holds the pack, for when what came first was wrong."""
        for _, target in self._holding(pack, besides=0):

            def read(span: Span, target: Target = target) -> bytes:
                if recalls:
                    self.budgets.charge(pack.repository, span.length or pack.size_bytes)
                return b"".join(target.get(pack_object_name(pack.id), span))

            yield read

    def may_fetch(self, pack: packs.Pack) -> bool:
        """Whether the whole pack is not on the local disk, and there is room for it and enough of the day's budget."""
        return (
            not self.is_near(pack)
            and self._has_room(pack.size_bytes)
            and self.budgets.may_run_ahead(pack.repository, pack.size_bytes)
        )

    def is_near(self, pack: packs.Pack) -> bool:
        """Whether the whole pack is on the local disk."""
        return os.path.exists(self._local(pack)) or os.path.exists(self._cache(pack))

    def fetch(self, pack: packs.Pack) -> str:
        """The path of the whole pack on the local disk, fetched and compared if need be.

        Raises as `read`, and NoSpace.
        """
        return self._fetched(pack, recalls=True)

    def _fetched(self, pack: packs.Pack, *, recalls: bool) -> str:
        local = self._local(pack)
        if os.path.exists(local):
            return local
        with self._lock:
            turn = self._fetching.setdefault(pack.number, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                return self._fetch(pack, recalls=recalls)
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:  # else a later one would not wait for those that still do
                    del self._fetching[pack.number]

    def _fetch(self, pack: packs.Pack, *, recalls: bool) -> str:
        path = self._cache(pack)
        if os.path.exists(path):
            with self._lock:
                if pack.number in self._cached:
                    self._cached.move_to_end(pack.number)
            return path
        with self._spare_room(pack.size_bytes):
            try:
                self._from_targets(
                    pack, pack.size_bytes, lambda target: self._download(target, pack, path), recalls=recalls
                )
            except OSError as problem:
                raise local_error(problem, "keeping a fetched pack") from problem
        self._keep(pack)
        return path

    def _download(self, target: Target, pack: packs.Pack, path: str) -> None:
        partial = f"{path}.partial"  # its name is this thread's as long as it has the turn
        digest = hashlib.sha256()
        try:
            with open(partial, "wb") as file:
                for block in target.get(pack_object_name(pack.id)):
                    digest.update(block)
                    file.write(block)
            if digest.digest() != pack.sha256:
                raise Damaged(what=f"pack {pack.id.hex()} on target {target.name}")
            os.rename(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    def shed(self) -> None:
        """Let everything go that was fetched: the local disk is short of room."""
        with self._lock:
            names = [f"{number:x}" for number in self._cached]
            self._cached.clear()
            self._cached_bytes = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._cache_folder, name))

    def _keep(self, pack: packs.Pack) -> None:
        with self._lock:
            self._cached[pack.number] = pack.size_bytes
            self._cached_bytes += pack.size_bytes
            while self._cached_bytes > self._cache_bytes_max and len(self._cached) > 1:
                oldest, size = self._cached.popitem(last=False)
                self._cached_bytes -= size
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._cache_folder, f"{oldest:x}"))

    def _holding(self, pack: packs.Pack, *, besides: int) -> list[tuple[int, Target]]:
        """Targets with a copy and their numbers, verified ones first.

        Others may be good, or good in part; whoever reads compares.
        """
        with self._store.read() as reader:
            known = {c.target: c.state for c in copies.of_pack(reader, pack.number) if c.target != besides}
        sources = self._sources()
        return [
            (number, target)
            for wanted in (CopyState.VERIFIED, CopyState.UPLOADED, CopyState.DAMAGED)
            for number, target in sources.items()
            if known.get(number) is wanted
        ]

    def _local(self, pack: packs.Pack) -> str:
        return os.path.join(self._folder, f"{pack.id.hex()}.pack")

    def _cache(self, pack: packs.Pack) -> str:
        return os.path.join(self._cache_folder, f"{pack.number:x}")

    # -- uploading ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def body(self, pack: packs.Pack, *, besides: int) -> Iterator[FileBody]:
        """The whole pack as something to upload to the target *besides*. Raises RecallFailed, NoSpace."""
        path = self._local(pack)
        if not os.path.exists(path):
            if not self._holding(pack, besides=besides):
                raise RecallFailed(what=f"pack {pack.id.hex()}", why="it is neither here nor on another target")
            path = self._fetched(pack, recalls=False)
        yield FileBody(path, pack.size_bytes, pack.sha256)

    def is_whole(self, pack: packs.Pack) -> bool:
        """Whether a pack's local file is what was recorded. Raises OSError when that cannot be told."""
        digest = hashlib.sha256()
        try:
            with open(self._local(pack), "rb", buffering=0) as file:
                while block := file.read(HASH_BLOCK_BYTES):
                    digest.update(block)
        except FileNotFoundError:
            return False
        except OSError as problem:
            if problem.errno != errno.EIO:
                raise
            log.error("shelf.unreadable", extra={"pack": pack.id.hex(), "why": str(problem)})  # noqa: TRY400 - it is an answer
            return False
        return digest.digest() == pack.sha256

    def local_packs(self) -> Iterator[PackNumber]:
        """The packs whose files are here; takes as long as there are such files, not packs."""
        for name in os.listdir(self._folder):
            stem, _, kind = name.partition(".")
            if kind != "pack":
                continue
            with self._store.read() as reader:
                number = packs.number_of(reader, PackId(bytes.fromhex(stem)))
            if number is not None:
                yield number

    def discard(self, pack: packs.Pack) -> None:
        """Give up a local file that is wrong; a target has the pack."""
        self.set_aside(pack, "its local file is wrong; a target has it")
        with self._store.write() as tx:
            known = packs.get(tx, pack.number)
            if known is not None:
                packs.put(tx, dataclasses.replace(known, local=False))
        self._store.sync(self._store.position)
        self.remove(pack)

    def set_aside(self, pack: packs.Pack, why: str) -> None:
        """Keep what is here of a pack that is wrong, before it is removed."""
        if self._quarantine is not None:
            self._quarantine.keep_link(about_pack(pack, LOCAL, why), self._local(pack))

    def remove(self, pack: packs.Pack) -> None:
        """Remove a pack's local file, of which the rows do not speak any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._local(pack))

    def forget(self, number: PackNumber, identity: PackId) -> bool:
        """Remove whatever is here of a pack that is no more, fetched bytes too; whether there was anything."""
        with self._lock:
            self._cached_bytes -= self._cached.pop(number, 0)
        paths = [os.path.join(self._folder, f"{identity.hex()}.pack"), os.path.join(self._cache_folder, f"{number:x}")]
        was_there = False
        for path in (*paths, f"{paths[1]}.partial"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                was_there = True
        return was_there

    def release(self, number: PackNumber, *, copies_enough: int | None = None) -> bool:
        """Remove a pack's local file once every target (or *copies_enough* of them) has verified it."""
        with self._store.read() as reader:  # most often the answer is no, which must not cost a turn to write
            if _releasable(reader, number, copies_enough) is None:
                return False
        with self._store.write() as tx:
            pack = _releasable(tx, number, copies_enough)
            if pack is None:
                return False
            packs.put(tx, dataclasses.replace(pack, local=False))
        # the copies that were counted must not be forgotten with the power once this file is gone
        self._store.sync(self._store.position)
        self.remove(pack)
        return True


def _releasable(reader: Reader, number: PackNumber, copies_enough: int | None) -> packs.Pack | None:
    pack = packs.get(reader, number)
    if pack is None or not pack.local:
        return None
    wanted = set(targets.current(reader))
    verified = wanted & {c.target for c in copies.of_pack(reader, number) if c.state is CopyState.VERIFIED}
    done = verified == wanted if copies_enough is None else len(verified) >= copies_enough
    return pack if done and verified else None
