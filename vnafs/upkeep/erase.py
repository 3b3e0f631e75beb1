"""Erase: see to it that what was erased in the tree goes from packs, targets, manifests and local files, and prove it.

Whatever has erased bytes is found by their hashes: every content with one of them that no other file has, and all
packs that it needs. These are condemned at once and named in rows of their own (`vnafs.index.erasing`); emptying and
removing them is the collector's, with all its care. Packs that were on their way out before may have earlier copies of
these bytes: they count too, and targets are asked for them again. Where another file has the same bytes they stay.

A target is without them when it says, asked anew, that nothing is under the names of these packs, no version either,
and when it has no manifest any more that is as old as the one that told of the erasure. An erasure is complete when
that was seen on every target that counts, and when no local file is left. Nothing is believed because a row says so;
what is proven is noted, and every step may be repeated. One thread.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any, Protocol

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.errors import NotFound, ObjectLocked, ObjectMissing, TargetError, TargetRefused, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import Inode, ObjectName, PackId, PackNumber, RepositoryId, Sha256, pack_object_name
from vnafs.index import condemned, contents, erasing, erasures, feeds, packs, protections, targets
from vnafs.index.condemned import Condemned, Removal, Stage
from vnafs.index.engine import Engine, Reader
from vnafs.index.erasing import Erasing, There
from vnafs.index.erasures import Erased, Erasure
from vnafs.index.packs import Pack
from vnafs.local.quarantine import About, Kind, Quarantine
from vnafs.local.traces import Traces
from vnafs.pipeline import doomed
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.shelf import Shelf
from vnafs.targets.port import Target
from vnafs.upkeep.mirrors import Left

log = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
PAUSE_SECONDS_MIN = 5.0
PAUSE_SECONDS_MAX = 600.0
"""Between two looks at an erasure that does not go on."""
TRIM_AGAIN_SECONDS = 3600.0
STOP_SECONDS_MAX = 1.0
PACKS_AT_ONCE = 64
"""Condemned in one transaction."""


class Place(Protocol):
    """A target that is configured and counts."""

    @property
    def number(self) -> int:
        """Its number in the store."""
        ...

    @property
    def target(self) -> Target:
        """The target itself."""
        ...


class Recorded(Protocol):
    """The archive's manifests."""

    rival: str

    def oldest(self, target_number: int) -> int | None:
        """The number of the oldest segment or snapshot of which anything is left on a target; None when unknown."""
        ...

    def trim_now(self) -> None:
        """Make a new snapshot, and trim everything before it as soon as it is on each target."""
        ...

    def covers(self, target: int, feed: int) -> bool:
        """Whether a target has all manifests of ours, which tell of the store's feed up to a number."""
        ...

    def leads(self, target: int) -> bool:
        """Whether nobody but us has written manifests to a target, looked at now."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """What is known of one content that was erased."""

    sha256: Sha256
    size_bytes: int
    is_shared: bool
    """Another file of the repository has the same bytes."""


class Eraser:
    """See the module.

    *fold* is the tree's barrier; *recorded_to* says how far manifests tell of the tree's feed, and in which segment;
    *under_way* whether a content is in a pack that is not recorded yet; *kick* wakes the collector; *gone* forgets what
    is in memory of recalls; *mirrors* says what there is to say of each plain mirror.
    """

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        store: Engine,
        namespace: Engine,
        *,
        shelf: Shelf,
        traces: Traces,
        quarantine: Quarantine,
        places: Callable[[], Collection[Place]],
        manifests: Recorded,
        recorded_to: Callable[[], tuple[int, int]],
        under_way: Callable[[Sha256, RepositoryId], bool],
        fold: Callable[[], None],
        kick: Callable[[], None],
        gone: Callable[[], None],
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
        mirrors: Callable[[Collection[Inode]], Collection[Left]] = lambda _: (),
    ) -> None:
        self._store = store
        self._tree = namespace
        self._namespace = Namespace(namespace)
        self._shelf = shelf
        self._traces = traces
        self._quarantine = quarantine
        self._places = places
        self._manifests = manifests
        self._recorded_to = recorded_to
        self._under_way = under_way
        self._fold = fold
        self._kick = kick
        self._gone = gone
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._mirrors = mirrors
        self._waiting: dict[int, tuple[float, float]] = {}
        """By erasure: when it is looked at again, and how long was waited for that."""
        self._trimmed: dict[int, float] = {}
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="erase", daemon=True)

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End. False when something hangs, and is given up with the process."""
        self._stopping.set()
        self._hurry.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """Look at every erasure now instead of when it is time."""
        self._waiting.clear()
        self._hurry.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._hurry.clear()
                self.step()
                self._hurry.wait(IDLE_SECONDS)
        except BaseException as problem:
            self._fatal(problem)

    # -- work --------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take every erasure on that is due; whether any of them went on."""
        done = False
        for erasure in self._open():
            if self._stopping.is_set() or self._manifests.rival:
                return False
            not_before, pause = self._waiting.get(erasure.number, (0.0, PAUSE_SECONDS_MIN))
            if self._clock.monotonic() < not_before:
                continue
            try:
                went_on = self._take_on(erasure)
            except VnaError as problem:
                log.warning("erase.later", extra={"erasure": erasure.id, "why": str(problem)})
                went_on = False
            done |= went_on
            pause = PAUSE_SECONDS_MIN if went_on else min(PAUSE_SECONDS_MAX, 2 * pause)
            self._waiting[erasure.number] = self._clock.monotonic() + pause, pause
        return done

    def _open(self) -> list[Erasure]:
        with self._tree.read() as reader:
            known = [row for row in erasures.every(reader) if row.stage is not erasures.Stage.TAKING]
        with self._store.read() as reader:
            return [row for row in known if not erasing.is_completed(reader, row.number)]

    def _take_on(self, erasure: Erasure) -> bool:
        """One pass over what is left of one erasure; whether anything changed."""
        with self._tree.read() as reader:
            versions = list(erasures.versions(reader, erasure.number))
        began = self._begin(erasure)
        condemned_now = self._condemn(erasure, versions)
        changed = began or bool(condemned_now)
        self._kick()
        left = self._traces.clear([(one.inode, one.version) for one in versions])
        row = self._record(erasure)
        known = self._contents(erasure, versions)
        self._clear_quarantine(erasure, versions, known)
        if condemned_now or self._packs_left(erasure.number) or self._on_their_way(erasure, known):
            return changed
        self._forget_local(erasure.number)
        if not row.condemned:
            row = dataclasses.replace(row, condemned=self._clock.now())
            self._put(erasure.number, row)
            changed = True
        if not row.segment:
            return changed
        self._trim(erasure.number, row.segment)
        proven = self._prove(erasure, row)
        changed |= bool(proven)
        with self._store.read() as reader:
            found = erasing.there(reader, erasure.number)
            counted = targets.current(reader)
        if left or any(number not in found or not found[number].proven for number in counted):
            return changed
        mirrors = self._mirrors({one.inode for one in versions})
        if any(mirror.count != 0 for mirror in mirrors):
            return changed
        # nothing more comes there from now on: neither targets nor the local disk have these bytes any more
        if self._clear_quarantine(erasure, versions, known):
            return changed
        self._complete(erasure, row, known, mirrors)
        return True

    def _begin(self, erasure: Erasure) -> bool:
        """Packs that are on their way out already may have earlier copies of what was erased."""
        with self._store.write() as tx:
            if erasing.get(tx, erasure.number).began:
                return False
            for number, row in list(condemned.in_stage(tx, Stage.REMOVED)):
                if not all(map(row.is_gone_from, targets.current(tx))):
                    erasing.empty(tx, number, row.id, erasure.number)
                    asked = {target: one for target, one in row.asked.items() if one.removal is not Removal.LATER}
                    condemned.put(tx, number, dataclasses.replace(row, asked=asked))
            erasing.put(tx, erasure.number, Erasing(began=self._clock.now()))
        log.info("erase.taken_up", extra={"erasure": erasure.id})
        return True

    # -- what has bytes of it --------------------------------------------------------------------------------------

    def _contents(self, erasure: Erasure, versions: Collection[Erased]) -> list[Kept]:
        """Every content that was erased, once, and whether some other file has it too."""
        sizes: dict[Sha256, int] = {}
        for one in versions:
            if one.sha256 is not None:
                sizes[one.sha256] = max(one.size_bytes, sizes.get(one.sha256, 0))
        gone = {(one.inode, one.version) for one in versions}
        with self._store.read() as reader:
            open_ones = {(row.repository, copy.sha256) for row in protections.every(reader) for copy in row.copies()}
            return [
                Kept(
                    sha256,
                    size_bytes,
                    (erasure.repository, sha256) in open_ones
                    or any(
                        use not in gone
                        for content in contents.twins(reader, sha256, erasure.repository)
                        for use in contents.uses(reader, content.number)
                    ),
                )
                for sha256, size_bytes in sorted(sizes.items())
            ]

    def _condemn(self, erasure: Erasure, versions: Collection[Erased]) -> int:
        """Condemn every pack with bytes that no other file has; how many were not before."""
        if self._is_frozen(erasure.repository) or self._namespace.returned(1):
            return 0
        wanted: dict[PackNumber, None] = {}
        with self._store.read() as reader:
            for kept in self._contents(erasure, versions):
                if not kept.is_shared:
                    for content in contents.twins(reader, kept.sha256, erasure.repository):
                        wanted.update(dict.fromkeys(content.packs()))
            for number, identity in erasing.packs_of(reader, erasure.number):
                pack = packs.get(reader, number)
                if pack is not None and pack.id == identity:
                    wanted[number] = None
            missing = [number for number in wanted if self._lacks(reader, number, erasure.number)]
        for start in range(0, len(missing), PACKS_AT_ONCE):
            with self._store.write() as tx:
                for number in missing[start : start + PACKS_AT_ONCE]:
                    pack = packs.get(tx, number)
                    if pack is None:
                        continue
                    erasing.empty(tx, number, pack.id, erasure.number)
                    row = condemned.find(tx, number)
                    if row is None or _is_lost(tx, pack, row):
                        now = self._clock.now()
                        condemned.put(
                            tx, number, Condemned(pack.id, pack.sha256, pack.size_bytes, Stage.CONDEMNED, now)
                        )
            self._faults.reach("erase.condemned")
        if missing:
            self._store.sync(self._store.position)
            log.info("erase.condemned", extra={"erasure": erasure.id, "packs": len(missing)})
        return len(missing)

    @staticmethod
    def _lacks(reader: Reader, number: PackNumber, erasure: int) -> bool:
        """Whether a pack is not on its way out yet, or not because of this erasure."""
        pack = packs.get(reader, number)
        if pack is None:
            return False
        row = condemned.find(reader, number)
        return row is None or _is_lost(reader, pack, row) or not erasing.has(reader, number, erasure)

    def _is_frozen(self, repository: RepositoryId) -> bool:
        try:
            rules = self._namespace.repository(repository)
        except NotFound:
            return False
        return rules.loses_nothing

    def _packs_left(self, erasure: int) -> int:
        with self._store.read() as reader:
            return sum(
                1
                for number, identity in erasing.packs_of(reader, erasure)
                if (pack := packs.get(reader, number)) is not None and pack.id == identity
            )

    def _on_their_way(self, erasure: Erasure, known: Collection[Kept]) -> bool:
        """Whether bytes of it are being packed at this moment, or were recorded meanwhile."""
        lone = [kept for kept in known if not kept.is_shared]
        if any(self._under_way(kept.sha256, erasure.repository) for kept in lone):
            return True
        with self._store.read() as reader:
            return any(contents.twins(reader, kept.sha256, erasure.repository) for kept in lone)

    def _forget_local(self, erasure: int) -> None:
        """What was fetched of packs that are gone, and what is in memory of their contents."""
        with self._store.read() as reader:
            known = list(erasing.packs_of(reader, erasure))
        if sum(self._shelf.forget(number, identity) for number, identity in known):  # all of them, whatever was here
            self._gone()

    def _clear_quarantine(self, erasure: Erasure, versions: Collection[Erased], known: Collection[Kept]) -> int:
        """Remove what may have bytes or names of it from quarantine; how much is left there, or on its way.

        Nobody knows any more what was in packs that are gone: of this repository they all go, as do manifests.
        """
        inodes = {one.inode for one in versions}
        hashes = {kept.sha256 for kept in known if not kept.is_shared}
        with self._store.read() as reader:
            names = {identity for _, identity in erasing.packs_of(reader, erasure.number)}

            def is_meant(about: About) -> bool:
                if about.kind is Kind.FILE:
                    return about.inode in inodes or about.expected_sha256 in hashes
                if about.kind is not Kind.PACK:
                    return True
                if about.repository not in {0, erasure.repository}:
                    return False
                identity = PackId(bytes.fromhex(about.name))
                return identity in names or packs.number_of(reader, identity) is None

            return self._quarantine.clear(is_meant)

    # -- manifests -------------------------------------------------------------------------------------------------

    def _record(self, erasure: Erasure) -> Erasing:
        """Find out which segment told the last of it."""
        with self._store.read() as reader:
            row = erasing.get(reader, erasure.number)
        if erasure.stage is not erasures.Stage.OVER or row.segment:
            return row
        if not row.feed:
            self._fold()
            with self._tree.read() as reader:
                row = dataclasses.replace(row, feed=feeds.end(reader))
        told, segment = self._recorded_to()
        if told >= row.feed:
            row = dataclasses.replace(row, segment=segment)
        self._put(erasure.number, row)
        return row

    def _put(self, erasure: int, row: Erasing) -> None:
        with self._store.write() as tx:
            erasing.put(tx, erasure, row)

    def _trim(self, erasure: int, segment: int) -> None:
        if all((self._manifests.oldest(place.number) or 0) > segment for place in self._places()):
            return
        if self._trimmed.get(erasure, 0.0) > self._clock.monotonic():
            return
        self._manifests.trim_now()
        self._trimmed[erasure] = self._clock.monotonic() + TRIM_AGAIN_SECONDS

    # -- targets ---------------------------------------------------------------------------------------------------

    def _prove(self, erasure: Erasure, row: Erasing) -> int:
        """Look at each target that was not seen without it; how many of them were now."""
        with self._store.read() as reader:
            known = erasing.there(reader, erasure.number)
            names = list(erasing.packs_of(reader, erasure.number))
        proven = 0
        for place in self._places():
            if place.number in known and known[place.number].proven:
                continue
            found = self._look(place, names, row.segment)
            with self._store.write() as tx:
                erasing.put_there(tx, erasure.number, place.number, found)
            if found.proven:
                proven += 1
                log.info("erase.proven", extra={"erasure": erasure.id, "target": place.target.name})
                self._faults.reach("erase.proven")
        return proven

    def _look(self, place: Place, names: Collection[tuple[PackNumber, PackId]], segment: int) -> There:
        """What one target still has. Raises nothing that a target raises: it is an answer.

        Asked for every name only when nothing else is in the way: there may be very many.
        """
        now = self._clock.now()
        try:
            waiting = self._waiting_for(place, names)
            if waiting:  # the collector's
                return _there_still(now, len(waiting), max(_locked_until(place.target, name) for name in waiting))
            oldest = self._manifests.oldest(place.number)
            if oldest is None or oldest <= segment:
                what = "it is not known which are there" if oldest is None else f"the oldest there is number {oldest}"
                return There(now, why=f"manifests up to number {segment} name the files; {what}")
            left, until = 0, Instant(0)
            for _, identity in names:
                name = pack_object_name(identity)
                if place.target.exists(name):
                    until = max(until, self._remove(place, identity))
                    left += place.target.exists(name)
        except (TargetError, OSError) as problem:
            return There(now, why=str(problem))
        return _there_still(now, left, until) if left else There(now, proven=now)

    def _waiting_for(self, place: Place, names: Collection[tuple[PackNumber, PackId]]) -> list[ObjectName]:
        """The objects that a target did not say yet are gone, by the collector's rows."""
        found = []
        with self._store.read() as reader:
            for number, identity in names:
                row = condemned.find(reader, number)
                is_removed = row is not None and row.id == identity and row.stage is Stage.REMOVED
                if row is not None and is_removed and not row.is_gone_from(place.number):
                    found.append(pack_object_name(identity))
        return found

    def _remove(self, place: Place, identity: PackId) -> Instant:
        """One that no row tells of any more: the index was rebuilt since. Ours by its name; until when it is locked."""
        with self._store.read() as reader:
            is_known = packs.number_of(reader, identity) is not None
        if is_known or not (self._manifests.covers(place.number, 0) and self._manifests.leads(place.number)):
            return Instant(0)
        try:
            place.target.delete(pack_object_name(identity))
        except ObjectLocked as problem:
            return Instant(int(str(problem.fields["until_ns"])))
        except TargetRefused as problem:
            log.warning("erase.refused", extra={"target": place.target.name, "why": str(problem)})
        return Instant(0)

    # -- the end of it ---------------------------------------------------------------------------------------------

    def _complete(self, erasure: Erasure, row: Erasing, known: Collection[Kept], mirrors: Collection[Left]) -> None:
        now = self._clock.now()
        with self._store.write() as tx:
            found = self._findings(tx, erasure, row, known, mirrors)
            data = json.dumps(found, separators=(",", ":")).encode()
            erasing.put(tx, erasure.number, dataclasses.replace(row, completed=now, found=data))
            erasing.let_be(tx, erasure.number)
        self._store.sync(self._store.position)
        log.warning("erase.completed", extra={"erasure": erasure.id})

    def _findings(
        self, reader: Reader, erasure: Erasure, row: Erasing, known: Collection[Kept], mirrors: Collection[Left]
    ) -> dict[str, Any]:
        """What a certificate says besides the erasure itself; times in nanoseconds."""
        names = {target.number: target for target in targets.every(reader)}
        seen = erasing.there(reader, erasure.number)
        count = sum(1 for _ in erasing.packs_of(reader, erasure.number))
        shown = [(number, target, seen.get(number)) for number, target in sorted(names.items()) if not target.removed]
        return {
            "contents": [
                {"sha256": kept.sha256.hex(), "size_bytes": kept.size_bytes, "also_of_other_files": kept.is_shared}
                for kept in known
            ],
            "packs": count,
            "segment": row.segment,
            "targets": [
                {
                    "name": target.name,
                    "proven_ns": there.proven if there else 0,
                    "locked_until_ns": there.until if there else 0,
                    "why": ""
                    if there and there.proven
                    else (there.why if there and there.why else "not looked at yet"),
                }
                for _, target, there in shown
            ],
            "retired_targets": sorted(target.name for target in names.values() if target.removed),
            "mirrors": sorted([mirror.name, mirror.said] for mirror in mirrors),
        }

    # -- for whoever asks ------------------------------------------------------------------------------------------

    def standing(self, number: int) -> tuple[Erasure, Erasing, dict[str, Any]]:
        """An erasure, how far it is, and what can be certified of it now. Raises NotFound."""
        self._fold()
        with self._tree.read() as reader:
            erasure = erasures.find(reader, number)
            versions = list(erasures.versions(reader, number))
        with self._store.read() as reader:
            row = erasing.get(reader, number)
        if row.completed:
            return erasure, row, dict(json.loads(row.found))
        known = self._contents(erasure, versions)
        mirrors = self._mirrors({one.inode for one in versions})
        with self._store.read() as reader:
            found = self._findings(reader, erasure, row, known, mirrors)
        found["packs_left"] = self._packs_left(number)
        found["local_left"] = self._traces.clear([(one.inode, one.version) for one in versions])
        found["local_left"] += self._clear_quarantine(erasure, versions, known)
        found["waits"] = self._is_frozen(erasure.repository)
        return erasure, row, found


def _is_lost(reader: Reader, pack: Pack, row: Condemned) -> bool:
    """Whether a pack was given up and nobody needs what was in it: then nothing is hoped for any more."""
    return row.stage is Stage.GIVEN_UP and not doomed.used(reader, pack)


def _there_still(now: Instant, count: int, until: Instant) -> There:
    return There(now, until=until, why=f"{count} objects with bytes of it are there still")


def _locked_until(target: Target, name: ObjectName) -> Instant:
    try:
        return target.retained(name) or Instant(0)
    except ObjectMissing:
        return Instant(0)
