"""Collect: remove packs that no file needs any more from the local disk and from every target.

In two phases, with days between them. A pack whose contents nobody has is *condemned*: nothing leans on it from then
on, and what is written again is packed again. One of which only a little is needed is condemned too, its contents are
packed again, and their files move over once the new ones have their copies. After `after_seconds` the tree is asked
for a barrier and all its rows are read; only then the pack's rows go, in one transaction that looks once more. Its
object goes from a target when that target has a manifest of ours that does not name it: created exclusively, so no
other life of this archive wrote there since. A target that does not let it go yet is asked again later.

What was erased (`vnafs.upkeep.erase`) is condemned by whoever proves that, and goes as soon as nothing can be on its
way to need it any more; all else about it is the same.

Only packs that this index has a row of, and condemned itself, are removed; other objects are counted when somebody
asks. Repositories whose tripwire was touched, or that are being rolled back, lose nothing. One thread; every step may
be repeated, and goes on from rows after a crash.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NotFound, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ContentNumber, PackId, PackNumber, RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.index import condemned, contents, copies, erasing, feeds, packs, protections, targets
from vnafs.index.condemned import Asked, Condemned, Removal, Stage
from vnafs.index.contents import Content
from vnafs.index.engine import Engine, Reader
from vnafs.index.packs import Pack
from vnafs.pipeline import doomed
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.repack import Repacker
from vnafs.pipeline.shelf import Shelf
from vnafs.upkeep.named import Name, named

log = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0
"""Between two walks over all packs."""
IDLE_SECONDS = 30.0
STOP_SECONDS_MAX = 1.0
PACKS_AT_ONCE = 64
REMOVED_AT_ONCE = 1024
CONTENTS_AT_ONCE = 200_000
"""Of one walk over the tree; more packs wait for the next one."""
AGAIN_SECONDS = 600.0
"""After a content could not be packed again, or the tree still names what nobody seemed to have."""
ATTEMPTS = 3
"""To empty a pack; then it is needed again, until the next process tries."""
WALK_PAUSE_SECONDS = 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class CollectSettings:
    """How long, and how little."""

    after_seconds: float
    """Between condemning a pack and removing it; 0: nothing is collected but what was erased."""
    live_percent_min: float
    """A pack of which less is needed is packed again; 0: never."""
    young_seconds: float
    """A pack is left alone for so long: what it is for may still be on its way to the rows that say so."""


@dataclasses.dataclass(slots=True)
class Collected:
    """What this run of the process has done, for status."""

    condemned: int = 0
    repacked: int = 0
    """Contents."""
    removed: int = 0
    removed_bytes: int = 0
    spared: int = 0
    """Looks at which the tree still named what no use told of: a file that is being written had those bytes before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at one pack came to."""

    total_bytes: int
    """Of its contents, decoded."""
    live_bytes: int
    """Of those that somebody has, and of contents elsewhere that lean on it."""
    is_dead: bool


ALL_NEEDED = Verdict(total_bytes=1, live_bytes=1, is_dead=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What collecting would come to, for whoever asks before."""

    packs: int = 0
    """All there are."""
    dead: int = 0
    dead_bytes: int = 0
    """Of packs that no file needs, condemned ones included."""
    thin: int = 0
    thin_bytes: int = 0
    """Of packs that would be packed again."""
    thin_live_bytes: int = 0
    """What is needed of them, decoded: it is read from a target where the pack is not here."""
    removable_ns: int = 0
    """When the first condemned pack may be removed; 0: none is condemned."""
    early: Mapping[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """By target: packs that it charges for longer than they are there already, and their byte-seconds left."""
    frozen: tuple[str, ...] = ()
    """Repositories that lose nothing now."""


class Collector:
    """See the module.

    *fold* is the tree's barrier; *covers* says whether a target has a manifest of ours that knows the store's feed up
    to a number; *storage_seconds_min* what targets charge for at least; *gone* is told that contents are no more.
    """

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        store: Engine,
        namespace: Engine,
        settings: CollectSettings,
        *,
        shelf: Shelf,
        repacker: Repacker,
        fold: Callable[[], None],
        covers: Callable[[int, int], bool],
        storage_seconds_min: Callable[[], Mapping[int, float]],
        kick: Callable[[], None],
        gone: Callable[[], None],
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._tree = namespace
        self._namespace = Namespace(namespace)
        self._settings = settings
        self._shelf = shelf
        self._repacker = repacker
        self._fold = fold
        self._covers = covers
        self._storage_seconds_min = storage_seconds_min
        self._kick = kick
        self._gone = gone
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self.collected = Collected()
        self._after = PackNumber(0)
        self._look_not_before = clock.monotonic()
        self._failures: dict[PackNumber, int] = {}
        self._not_before: dict[PackNumber, float] = {}
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collect", daemon=True)

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End. False when something hangs, and is given up with the process."""
        self._stopping.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """Look at all packs now instead of when it is time."""
        self._look_not_before = self._clock.monotonic()
        self._hurry.set()

    def wake(self) -> None:
        """Go on now with what is condemned."""
        self._hurry.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._hurry.clear()
                if not self.step():
                    self._hurry.wait(IDLE_SECONDS)
        except _Stopped:
            return
        except BaseException as problem:
            self._fatal(problem)

    def step(self) -> bool:
        """Do a little of everything; whether there may be more to do at once."""
        try:
            done = self._ask()
            done |= bool(self._settings.after_seconds) and self._look()
            done |= self._empty()
            return self._remove() or done
        except VnaError as problem:
            log.warning("collect.later", extra={"why": str(problem)})
            return False

    # -- looking -----------------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Look at some packs, in order of number; condemn those that are not needed, or hardly."""
        if self._clock.monotonic() < self._look_not_before:
            return False
        rules = _rules(self._namespace)
        found: list[PackNumber] = []
        with self._store.read() as reader:
            protected = _protected(reader)
            last, seen = self._after, 0
            for pack in packs.every(reader, after=self._after):
                last, seen = pack.number, seen + 1
                verdict = self._judge(reader, pack, rules, protected)
                if verdict is not None and self._may_condemn(reader, pack, verdict):
                    found.append(pack.number)
                if seen == PACKS_AT_ONCE:
                    break
        for number in found:
            self._condemn(number, rules)
        self._after = last
        if seen < PACKS_AT_ONCE:
            self._after = PackNumber(0)
            self._look_not_before = self._clock.monotonic() + LOOK_SECONDS
        return True

    def _judge(
        self, reader: Reader, pack: Pack, rules: Mapping[RepositoryId, Repository], protected: set[Name]
    ) -> Verdict | None:
        """How much of a pack is needed; None while that may not be asked."""
        age = self._clock.now() - pack.closed
        rule = rules.get(pack.repository)
        if 0 <= age < self._settings.young_seconds * NANOSECONDS or (rule is not None and _is_frozen(rule)):
            return None
        used = contents.used_of_run(reader, pack.contents_first, pack.contents_count)
        if pack.contents_count and len(used) == pack.contents_count:
            return ALL_NEEDED
        own = list(contents.of_pack(reader, pack.contents_first, pack.contents_count))
        leaning = [
            content
            for number in list(contents.leaning_on(reader, pack.number))
            if (content := contents.get(reader, number)) is not None
        ]
        if any((content.repository, content.sha256) in protected for content in (*own, *leaning)):
            return None
        live = [content for content in own if content.number in used or _is_coming(reader, content)]
        live += [
            content for content in leaning if contents.is_used(reader, content.number) or _is_coming(reader, content)
        ]
        return Verdict(
            sum(content.size_bytes for content in own), sum(content.size_bytes for content in live), is_dead=not live
        )

    def _may_condemn(self, reader: Reader, pack: Pack, verdict: Verdict) -> bool:
        if condemned.find(reader, pack.number) is not None:
            return False
        if verdict.is_dead:
            return True
        if not self._is_thin(verdict) or self._failures.get(pack.number, 0) >= ATTEMPTS:
            return False
        counted = targets.current(reader)
        return any(c.state is CopyState.VERIFIED and c.target in counted for c in copies.of_pack(reader, pack.number))

    def _is_thin(self, verdict: Verdict) -> bool:
        return verdict.live_bytes * 100 < self._settings.live_percent_min * verdict.total_bytes

    def _condemn(self, number: PackNumber, rules: Mapping[RepositoryId, Repository]) -> None:
        with self._store.write() as tx:
            pack = packs.get(tx, number)
            verdict = None if pack is None else self._judge(tx, pack, rules, _protected(tx))
            if pack is None or verdict is None or not self._may_condemn(tx, pack, verdict):
                return
            row = Condemned(pack.id, pack.sha256, pack.size_bytes, Stage.CONDEMNED, self._clock.now())
            condemned.put(tx, number, row)
        self.collected.condemned += 1
        log.info(
            "collect.condemned",
            extra={"pack": pack.id.hex(), "size_bytes": pack.size_bytes, "live_bytes": verdict.live_bytes},
        )
        self._faults.reach("collect.condemned")

    # -- packing again what is needed of condemned packs ---------------------------------------------------------

    def _empty(self) -> bool:
        """Move the files of one content over, or pack it again; whether anything was done."""
        for content in self._needed():
            with self._store.read() as reader:
                others = self._others(reader, content)
                enough = any(self._has_copies(reader, other) for other in others)
            if others and not enough:
                continue  # on its way to the targets
            if enough:
                self._move(content)
                return True
            if not self._repacker.is_under_way(content) and self._repack(content):
                return True
        return False

    def _needed(self) -> Iterator[Content]:
        """The contents of condemned packs that somebody has, as far as they may be worked on now."""
        now = self._clock.monotonic()
        with self._store.read() as reader:
            rows = list(condemned.in_stage(reader, Stage.CONDEMNED))
        for number, row in rows:
            if not self._goes(row.id, number) or self._not_before.get(number, now) > now:
                continue
            with self._store.read() as reader:
                pack = packs.get(reader, number)
                used = [] if pack is None else _used(reader, pack)
                needed = [content for one in used if (content := contents.get(reader, one)) is not None]
            yield from needed

    def _goes(self, identity: PackId, number: PackNumber) -> bool:
        """Whether a condemned pack is emptied now: always, or where nothing is collected because of an erasure."""
        if self._settings.after_seconds:
            return True
        with self._store.read() as reader:
            return erasing.is_emptied(reader, number, identity)

    def _others(self, reader: Reader, content: Content) -> list[Content]:
        """Contents with the same bytes in packs that are not condemned."""
        return [
            twin
            for twin in contents.twins(reader, content.sha256, content.repository)
            if twin.number != content.number and not condemned.any_of(reader, twin.packs())
        ]

    def _has_copies(self, reader: Reader, content: Content) -> bool:
        """Whether as many targets have all of it as its repository asks for."""
        held = copies.verified_on(reader, content.packs()).keys() & targets.current(reader).keys()
        try:
            wanted = self._namespace.repository(content.repository).copies_min
        except NotFound:
            wanted = 1
        return len(held) >= max(1, wanted)

    def _move(self, content: Content) -> None:
        """Its files have the other content from now on."""
        with self._store.write() as tx:
            other = next((one for one in self._others(tx, content) if self._has_copies(tx, one)), None)
            if other is None or contents.get(tx, content.number) is None:
                return
            for inode, version in list(contents.uses(tx, content.number)):
                contents.add_use(tx, other.number, inode, version)
                contents.drop_use(tx, content.number, inode, version)
        self._store.sync(self._store.position)
        self._faults.reach("collect.moved")
        self._gone()

    def _repack(self, content: Content) -> bool:
        with self._store.read() as reader:
            inode, version = next(contents.uses(reader, content.number), (None, None))
            bad = [n for n in content.packs() if (row := condemned.find(reader, n)) and row.stage is Stage.CONDEMNED]
        if inode is None or version is None:
            return False
        try:
            self._repacker.repack(content, inode, version)
        except NotFound:
            return False  # that version is over, and its use is dropped in a moment
        except VnaError as problem:
            log.warning("collect.not_repacked", extra={"content": content.number, "why": str(problem)})
            for number in bad:
                self._failed(number)
            return False
        self.collected.repacked += 1
        self._faults.reach("collect.repacked")
        return True

    def _failed(self, number: PackNumber) -> None:
        self._not_before[number] = self._clock.monotonic() + AGAIN_SECONDS
        self._failures[number] = self._failures.get(number, 0) + 1
        if self._failures[number] < ATTEMPTS:
            return
        with self._store.write() as tx:
            row = condemned.find(tx, number)
            if row is not None and row.stage is Stage.CONDEMNED:
                condemned.forget(tx, number)
        log.warning("collect.needed_again", extra={"pack_number": number})

    # -- removing ------------------------------------------------------------------------------------------------

    def _remove(self) -> bool:
        """Remove the rows of packs that were condemned for long enough, after the tree was asked; whether any were."""
        aged = list(self._aged())
        if not aged:
            return False
        self._fold()
        with self._store.read() as reader:
            wanted = {
                (content.repository, content.sha256) for pack in aged for content in doomed.contents_of(reader, pack)
            }
        found = named(self._tree, wanted, self._pause)
        self._faults.reach("collect.walked")
        removed = [pack for pack in aged if self._remove_pack(pack, found)]
        if not removed:
            return False
        # nothing of them goes anywhere before these rows are there to stay
        self._store.sync(self._store.position)
        self._faults.reach("collect.removed")
        for pack in removed:
            self._shelf.remove(pack)
            self.collected.removed += 1
            self.collected.removed_bytes += pack.size_bytes
            log.info("collect.removed", extra={"pack": pack.id.hex(), "size_bytes": pack.size_bytes})
        self._gone()
        return True

    def _aged(self) -> Iterator[Pack]:
        now, here = self._clock.now(), self._clock.monotonic()
        before = now - int(self._settings.after_seconds * NANOSECONDS)
        # an erasure does not wait, but for what is on its way to the rows that say so
        soon = now - int(self._settings.young_seconds * NANOSECONDS)
        rules = _rules(self._namespace)
        count = 0
        with self._store.read() as reader:
            for number, row in condemned.in_stage(reader, Stage.CONDEMNED):
                pack = packs.get(reader, number)
                is_erased = erasing.is_emptied(reader, number, row.id)
                if not is_erased and not self._settings.after_seconds:
                    continue
                if (
                    pack is None
                    or row.since > (soon if is_erased else before)
                    or self._not_before.get(number, here) > here
                ):
                    continue
                rule = rules.get(pack.repository)
                if rule is not None and _is_frozen(rule):
                    continue
                if _used(reader, pack):
                    continue
                count += max(1, pack.contents_count)
                yield pack
                if count >= CONTENTS_AT_ONCE:
                    return

    def _remove_pack(self, pack: Pack, found: set[Name]) -> bool:
        """In one transaction: look once more, and forget."""
        try:
            frozen = _is_frozen(self._namespace.repository(pack.repository))
        except NotFound:
            frozen = False
        if frozen or self._namespace.returned(1):  # of some version the use is not noted yet
            return False
        now = self._clock.now()
        later = {
            number: Asked(Removal.LATER, Instant(pack.closed + int(seconds * NANOSECONDS)))
            for number, seconds in self._storage_seconds_min().items()
            if pack.closed + int(seconds * NANOSECONDS) > now
        }
        with self._store.write() as tx:
            row, known = condemned.find(tx, pack.number), packs.get(tx, pack.number)
            if row is None or row.stage is not Stage.CONDEMNED or known is None:
                return False
            protected = _protected(tx)
            for content in doomed.contents_of(tx, known):
                name = content.repository, content.sha256
                if contents.is_used(tx, content.number) or name in protected:
                    return False
                if name in found and not any(self._has_copies(tx, other) for other in self._others(tx, content)):
                    self._spare(pack)
                    return False
            is_erased = erasing.is_emptied(tx, pack.number, pack.id)  # whatever a target charges for that
            doomed.forget(tx, known)
            condemned.put(
                tx,
                pack.number,
                dataclasses.replace(row, stage=Stage.REMOVED, feed=feeds.end(tx), asked={} if is_erased else later),
            )
        return True

    def _spare(self, pack: Pack) -> None:
        self.collected.spared += 1
        self._not_before[pack.number] = self._clock.monotonic() + LOOK_SECONDS
        log.warning("collect.still_named", extra={"pack": pack.id.hex()})

    def _pause(self) -> None:
        if self._stopping.wait(WALK_PAUSE_SECONDS):
            raise _Stopped

    # -- objects on targets ---------------------------------------------------------------------------------------

    def _ask(self) -> bool:
        """Ask targets that know of a pack's end to remove its object; forget packs that are gone everywhere."""
        now = self._clock.now()
        with self._store.read() as reader:
            counted = targets.current(reader)
            rows = []
            for number, row in condemned.in_stage(reader, Stage.REMOVED):
                if not self._settings.after_seconds and not erasing.is_emptied(reader, number, row.id):
                    continue
                due = [target for target in counted if _is_due(row.asked.get(target), now)]
                if due or all(_is_gone(row.asked.get(target)) for target in counted):
                    rows.append((number, row, due))
                if len(rows) == REMOVED_AT_ONCE:
                    break
        asked = 0
        for number, row, due in rows:
            covered = [target for target in due if self._covers(target, row.feed)]
            if not covered and due:
                continue
            with self._store.write() as tx:
                for target in covered:
                    condemned.note(tx, number, target, Asked(Removal.ASKED))
                    copies.enqueue(tx, copies.Transfer(target, now, number, 0))
                    asked += 1
                # the highest number would be given out again
                if not due and number < packs.last_number(tx):
                    condemned.forget(tx, number)
        if asked:
            self._faults.reach("collect.asked")
            self._kick()
        return bool(asked)

    # -- before it runs -------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What it would come to, from rows alone. Takes as long as there are packs."""
        rules = _rules(self._namespace)
        plan, early = Plan(), dict[int, tuple[int, int]]()
        now, charged = self._clock.now(), self._storage_seconds_min()
        with self._store.read() as reader:
            protected = _protected(reader)
            since = [row.since for _, row in condemned.in_stage(reader, Stage.CONDEMNED)]
            for pack in packs.every(reader):
                plan = dataclasses.replace(plan, packs=plan.packs + 1)
                verdict = self._judge(reader, pack, rules, protected)
                if verdict is None or not (verdict.is_dead or self._is_thin(verdict)):
                    continue
                size_bytes = pack.size_bytes
                if verdict.is_dead:
                    plan = dataclasses.replace(plan, dead=plan.dead + 1, dead_bytes=plan.dead_bytes + size_bytes)
                else:
                    plan = dataclasses.replace(
                        plan,
                        thin=plan.thin + 1,
                        thin_bytes=plan.thin_bytes + size_bytes,
                        thin_live_bytes=plan.thin_live_bytes + verdict.live_bytes,
                    )
                for target, seconds in charged.items():
                    left = pack.closed / NANOSECONDS + seconds - now / NANOSECONDS
                    if left > 0:
                        count, byte_seconds = early.get(target, (0, 0))
                        early[target] = count + 1, byte_seconds + int(left * size_bytes)
        removable = min(since, default=0)
        if removable:
            removable += int(self._settings.after_seconds * NANOSECONDS)
        frozen = tuple(sorted(rule.name for rule in rules.values() if _is_frozen(rule)))
        return dataclasses.replace(plan, removable_ns=removable, early=early, frozen=frozen)


class _Stopped(Exception):
    """The process ends in the middle of a walk."""


def _rules(namespace: Namespace) -> Mapping[RepositoryId, Repository]:
    return {repository.id: repository for repository in namespace.repositories()}


def _is_frozen(rule: Repository) -> bool:
    """Whether something is wrong with a repository, or on its way: then it needs all that it had."""
    return bool(rule.tripped_ns or rule.rolling_to_ns or rule.limbo)


def _protected(reader: Reader) -> set[Name]:
    """The contents that are copies of files that stay open; no use tells of them."""
    return {(row.repository, copy.sha256) for row in protections.every(reader) for copy in row.copies()}


def _used(reader: Reader, pack: Pack) -> list[ContentNumber]:
    """The contents that cannot be without a pack and that somebody has."""
    own = sorted(contents.used_of_run(reader, pack.contents_first, pack.contents_count))
    return own + [one for one in list(contents.leaning_on(reader, pack.number)) if contents.is_used(reader, one)]


def _is_coming(reader: Reader, content: Content) -> bool:
    """Whether it was packed again for files that have not moved over yet."""
    return any(
        twin.number != content.number
        and condemned.any_of(reader, twin.packs())
        and contents.is_used(reader, twin.number)
        for twin in contents.twins(reader, content.sha256, content.repository)
    )


def _is_gone(asked: Asked | None) -> bool:
    return asked is not None and asked.removal is Removal.GONE


def _is_due(asked: Asked | None, now: Instant) -> bool:
    return asked is None or (asked.removal is Removal.LATER and asked.not_before <= now)
