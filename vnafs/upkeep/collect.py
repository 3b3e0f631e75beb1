"""Collect: remove packs that no file needs any more from the local disk and from every target.

In two phases, with days between them. A pack whose contents nobody has is *condemned*: nothing leans on it from then
on, and what is written again is packed again. One of which only a little is needed is condemned too, its contents are
packed again, and their files move over once the new ones have their copies, on each target that has the old. When
`after_seconds` have passed since then the tree is asked for a barrier and all its rows are read; only then the pack's
rows go, in one transaction that looks once more. Its object goes from a target when that target has a manifest of ours
that does not name it: created exclusively, so no other life of this archive wrote there since. A target that does not
let it go yet is asked again later.

What was erased (`vnafs.upkeep.erase`) is condemned by whoever proves that, and goes as soon as nothing can be on its
way to need it any more; all else about it is the same.

Only packs that this index has a row of, and condemned itself, are removed; other objects are counted when somebody
asks. Repositories whose tripwire was touched, or that are being rolled back, lose nothing. One thread; every step may
be repeated, and goes on from rows after a crash.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NotFound, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import PackNumber, RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.index import condemned, contents, copies, erasing, feeds, packs, targets
from vnafs.index.condemned import Asked, Condemned, Removal, Stage
from vnafs.index.contents import Content
from vnafs.index.engine import Engine, Reader
from vnafs.index.packs import Pack
from vnafs.pipeline import doomed
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.repack import Repacker
from vnafs.pipeline.shelf import Shelf
from vnafs.upkeep.forecast import Forecast, forecast
from vnafs.upkeep.named import Holder, named
from vnafs.upkeep.needs import Name, Need, Needs, protected

log = logging.getLogger(__name__)

LOOK_SECONDS = 3600.0
"""Between two walks over all packs."""
IDLE_SECONDS = 30.0
STOP_SECONDS_MAX = 1.0
PACKS_AT_ONCE = 64
ASKED_AT_ONCE = 128
"""Removals that wait in a target's queue; uploads wait behind them."""
CONTENTS_AT_ONCE = 200_000
"""Of one walk over the tree; more packs wait for the next one."""
MOVED_AT_ONCE = 1000
"""Files, in one transaction."""
REPACKED_AT_ONCE = 64
"""Contents, before anything else is looked at."""
AGAIN_SECONDS = 600.0
"""After a content could not be packed again."""
ATTEMPTS = 3
"""To empty a pack; then it is needed again, until the next process tries."""
WALK_PAUSE_SECONDS = 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class CollectSettings:
    """How long, and how little."""

    after_seconds: float
    """Between condemning a pack, or emptying it, and removing it; 0: nothing is collected but what was erased."""
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


class Collector:
    """See the module.

    *fold* is the tree's barrier; *covers* says whether a target has a manifest of ours that knows the store's feed up
    to a number, *leads* looks whether nobody else has written there; *storage_seconds_min* is what targets charge for
    at least; *may_pack* says whether there is room for more packs; *gone* is told that contents are not where they
    were.
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
        leads: Callable[[int], bool],
        storage_seconds_min: Callable[[], Mapping[int, float]],
        may_pack: Callable[[], bool],
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
        self._leads = leads
        self._storage_seconds_min = storage_seconds_min
        self._may_pack = may_pack
        self._kick = kick
        self._gone = gone
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._needs = Needs(self._namespace, repacker.leaned_on, young_seconds=settings.young_seconds, clock=clock)
        self.collected = Collected()
        self._after = PackNumber(0)
        self._look_not_before = clock.monotonic()
        self._failures: dict[PackNumber, int] = {}
        self._not_before: dict[PackNumber, float] = {}
        self._anew = threading.Event()
        """All packs are to be looked at from the first on."""
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collect", daemon=True)

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End. False when something hangs, and is given up with the process; or when this is its own thread."""
        self._stopping.set()
        self._hurry.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """Look at all packs now instead of when it is time."""
        self._anew.set()
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
            self._ask()
            done = bool(self._settings.after_seconds) and self._look()
            done |= self._empty()
            return self._remove() or done
        except VnaError as problem:
            log.warning("collect.later", extra={"why": str(problem)})
            return False

    def forecast(self) -> Forecast:
        """What it would come to. Any thread."""
        return forecast(
            self._store,
            self._needs,
            after_seconds=self._settings.after_seconds,
            live_percent_min=self._settings.live_percent_min,
            storage_seconds_min=self._storage_seconds_min(),
            clock=self._clock,
        )

    # -- looking -----------------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Look at some packs, in order of number; condemn those that are not needed, or hardly."""
        if self._anew.is_set():
            self._anew.clear()
            self._after, self._look_not_before = PackNumber(0), self._clock.monotonic()
        if self._clock.monotonic() < self._look_not_before:
            return False
        rules = self._needs.rules()
        found: list[PackNumber] = []
        with self._store.read() as reader:
            last, seen = self._after, 0
            for pack in packs.every(reader, after=self._after):
                last, seen = pack.number, seen + 1
                if self._may_condemn(reader, pack, self._needs.of(reader, pack, rules)):
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

    def _may_condemn(self, reader: Reader, pack: Pack, need: Need | None) -> bool:
        if need is None or condemned.find(reader, pack.number) is not None:
            return False
        if need.is_dead:
            return True
        if not need.is_below(self._settings.live_percent_min) or self._failures.get(pack.number, 0) >= ATTEMPTS:
            return False
        counted = targets.current(reader)
        return any(c.state is CopyState.VERIFIED and c.target in counted for c in copies.of_pack(reader, pack.number))

    def _condemn(self, number: PackNumber, rules: Mapping[RepositoryId, Repository]) -> None:
        with self._store.write() as tx:
            pack = packs.get(tx, number)
            if pack is None or not self._may_condemn(tx, pack, self._needs.of(tx, pack, rules)):
                return
            row = Condemned(pack.id, pack.sha256, pack.size_bytes, Stage.CONDEMNED, self._clock.now())
            condemned.put(tx, number, row)
        self.collected.condemned += 1
        log.info("collect.condemned", extra={"pack": pack.id.hex(), "size_bytes": pack.size_bytes})
        self._faults.reach("collect.condemned")

    # -- packing again what is needed of condemned packs ---------------------------------------------------------

    def _empty(self) -> bool:
        """Move files over to contents that were packed again, and pack others again; whether any moved."""
        moved = repacked = 0
        for content in self._needed():
            with self._store.read() as reader:
                others = self._others(reader, content)
                enough = any(self._replaces(reader, other, content) for other in others)
            if enough:
                moved += self._move(content)
            elif not others and repacked < REPACKED_AT_ONCE and self._may_pack():
                repacked += not self._repacker.is_under_way(content) and self._repack(content)
            if self._stopping.is_set():
                break
        if moved:
            self._gone()
        return moved > 0

    def _needed(self) -> Iterator[Content]:
        """The contents of condemned packs that somebody has, as far as they may be worked on now."""
        now = self._clock.monotonic()
        for number, row in condemned.rows(self._store, Stage.CONDEMNED):
            if not self._goes(number, row) or self._not_before.get(number, now) > now:
                continue
            with self._store.read() as reader:
                pack = packs.get(reader, number)
                used = [] if pack is None else doomed.used(reader, pack)
                needed = [content for one in used if (content := contents.get(reader, one)) is not None]
            yield from needed

    def _goes(self, number: PackNumber, row: Condemned) -> bool:
        """Whether a condemned pack goes: always, or where nothing is collected because of an erasure."""
        return bool(self._settings.after_seconds) or self._is_erased(number, row)

    def _is_erased(self, number: PackNumber, row: Condemned) -> bool:
        with self._store.read() as reader:
            return erasing.is_emptied(reader, number, row.id)

    def _others(self, reader: Reader, content: Content) -> list[Content]:
        """Contents with the same bytes in packs that are not condemned."""
        return [
            twin
            for twin in contents.twins(reader, content.sha256, content.repository)
            if twin.number != content.number and not condemned.any_of(reader, twin.packs())
        ]

    def _replaces(self, reader: Reader, other: Content, content: Content) -> bool:
        """Whether enough targets have all of the other, and each that has all of this one."""
        counted = targets.current(reader).keys()
        held = copies.verified_on(reader, other.packs()).keys() & counted
        try:
            wanted = self._namespace.repository(content.repository).copies_min
        except NotFound:
            wanted = 1
        before = copies.verified_on(reader, content.packs()).keys() & counted
        return len(held) >= max(1, wanted) and before <= held

    def _move(self, content: Content) -> bool:
        """Its files have the other content from now on. Its packs' time begins anew: somebody may still be reading."""
        while True:
            with self._store.write() as tx:
                other = next((one for one in self._others(tx, content) if self._replaces(tx, one, content)), None)
                if other is None or contents.get(tx, content.number) is None:
                    return False
                moving = list(itertools.islice(contents.uses(tx, content.number), MOVED_AT_ONCE))
                for inode, version in moving:
                    contents.add_use(tx, other.number, inode, version)
                    contents.drop_use(tx, content.number, inode, version)
                for number in content.packs():
                    row = condemned.find(tx, number)
                    if row is not None and row.stage is Stage.CONDEMNED:
                        condemned.put(tx, number, dataclasses.replace(row, since=self._clock.now()))
            if len(moving) < MOVED_AT_ONCE:
                break
        self._store.sync(self._store.position)
        self._faults.reach("collect.moved")
        return True

    def _repack(self, content: Content) -> bool:
        with self._store.read() as reader:
            inode, version = next(contents.uses(reader, content.number), (None, None))
        if inode is None or version is None:
            return False
        try:
            self._repacker.repack(content, inode, version)
        except NotFound:
            return False  # that version is over, and its use is dropped in a moment
        except VnaError as problem:
            log.warning("collect.not_repacked", extra={"content": content.number, "why": str(problem)})
            self._failed(content)
            return False
        self.collected.repacked += 1
        self._faults.reach("collect.repacked")
        return True

    def _failed(self, content: Content) -> None:
        """Leave its packs alone for a while; after some attempts they are needed again."""
        for number in content.packs():
            self._not_before[number] = self._clock.monotonic() + AGAIN_SECONDS
            self._failures[number] = self._failures.get(number, 0) + 1
            if self._failures[number] < ATTEMPTS:
                continue
            with self._store.write() as tx:
                row = condemned.find(tx, number)
                if row is not None and row.stage is Stage.CONDEMNED:
                    condemned.forget(tx, number)
                    log.warning("collect.needed_again", extra={"pack": row.id.hex()})

    # -- removing ------------------------------------------------------------------------------------------------

    def _remove(self) -> bool:
        """Remove the rows of packs that were condemned for long enough, after the tree was asked; whether any were."""
        aged = list(self._aged())
        if not aged:
            return False
        self._fold()
        if self._namespace.returned(1):  # of some version the use is not noted yet
            return False
        with self._store.read() as reader:
            wanted = {
                (content.repository, content.sha256) for pack in aged for content in doomed.contents_of(reader, pack)
            }
        found = named(self._tree, wanted, self._pause)
        self._faults.reach("collect.walked")
        removed: list[Pack] = []
        try:
            removed.extend(pack for pack in aged if self._remove_pack(pack, found))
        finally:
            if removed:
                self._removed(removed)
        return bool(removed)

    def _removed(self, removed: list[Pack]) -> None:
        # nothing of them goes anywhere before these rows are there to stay
        self._store.sync(self._store.position)
        self._faults.reach("collect.removed")
        for pack in removed:
            self._shelf.forget(pack.number, pack.id)
            self.collected.removed += 1
            self.collected.removed_bytes += pack.size_bytes
            log.info("collect.removed", extra={"pack": pack.id.hex(), "size_bytes": pack.size_bytes})
        self._gone()

    def _aged(self) -> Iterator[Pack]:
        """Condemned packs that nobody has used for long enough, as many as one walk over the tree is worth."""
        now, here = self._clock.now(), self._clock.monotonic()
        before = now - int(self._settings.after_seconds * NANOSECONDS)
        # an erasure does not wait, but for what is on its way to the rows that say so
        soon = now - int(self._settings.young_seconds * NANOSECONDS)
        rules = self._needs.rules()
        count = 0
        for number, row in condemned.rows(self._store, Stage.CONDEMNED):
            if row.since > now:  # before the clock was set back: nobody knows how long ago
                with self._store.write() as tx:
                    condemned.put(tx, number, dataclasses.replace(row, since=now))
            is_erased = self._is_erased(number, row)
            if row.since > (soon if is_erased else before) or self._not_before.get(number, here) > here:
                continue
            if not is_erased and not self._settings.after_seconds:
                continue
            with self._store.read() as reader:
                pack = packs.get(reader, number)
                if pack is None or doomed.used(reader, pack):
                    continue
            rule = rules.get(pack.repository)
            if rule is not None and rule.loses_nothing:
                continue
            yield pack
            count += max(1, pack.contents_count)
            if count >= CONTENTS_AT_ONCE:
                return

    def _remove_pack(self, pack: Pack, found: Mapping[Name, Holder]) -> bool:
        """In one transaction: look once more, and forget."""
        try:
            frozen = self._namespace.repository(pack.repository).loses_nothing
        except NotFound:
            frozen = False
        if frozen or self._namespace.returned(1):
            return False
        with self._store.write() as tx:
            row, known = condemned.find(tx, pack.number), packs.get(tx, pack.number)
            if row is None or row.stage is not Stage.CONDEMNED or known is None:
                return False
            names = protected(tx)
            for content in doomed.contents_of(tx, known):
                if contents.is_used(tx, content.number):
                    return False
                name = content.repository, content.sha256
                if name not in found and name not in names:
                    continue
                if not any(self._replaces(tx, other, content) for other in self._others(tx, content)):
                    holder = found.get(name)
                    if holder is not None and holder.inode is not None and holder.version is not None:
                        contents.add_use(tx, content.number, holder.inode, holder.version)
                    self._spare(pack)
                    return False
            # what was erased goes whatever a target charges for that
            asked = {} if erasing.is_emptied(tx, pack.number, pack.id) else self._not_yet(pack)
            doomed.forget(tx, known)
            condemned.put(
                tx, pack.number, dataclasses.replace(row, stage=Stage.REMOVED, feed=feeds.end(tx), asked=asked)
            )
        return True

    def _not_yet(self, pack: Pack) -> dict[int, Asked]:
        """Targets that charge for a pack for longer than it is there already, and until when."""
        now = self._clock.now()
        free = {number: pack.closed + int(s * NANOSECONDS) for number, s in self._storage_seconds_min().items()}
        return {number: Asked(Removal.LATER, Instant(when)) for number, when in free.items() if when > now}

    def _spare(self, pack: Pack) -> None:
        self.collected.spared += 1
        self._not_before[pack.number] = self._clock.monotonic() + LOOK_SECONDS
        log.warning("collect.still_named", extra={"pack": pack.id.hex()})

    def _pause(self) -> None:
        if self._stopping.wait(WALK_PAUSE_SECONDS):
            raise _Stopped

    # -- objects on targets ---------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask targets that know of a pack's end to remove its object; forget packs that are gone everywhere."""
        with self._store.read() as reader:
            counted = targets.current(reader).keys()
            last = packs.last_number(reader)
        # manifests that are on their way there, or that nobody could put there, tell of nothing yet
        ready = {target for target in counted if self._covers(target, 0)}
        asked: dict[PackNumber, list[int]] = {}
        over: list[PackNumber] = []
        now = self._clock.now()
        for number, row in condemned.rows(self._store, Stage.REMOVED):
            if not self._goes(number, row):
                continue
            if all(map(row.is_gone_from, counted)):
                if number < last:  # the highest number would be given out again
                    over.append(number)
                continue
            due = [target for target in ready if _is_due(row.asked.get(target), now) and self._covers(target, row.feed)]
            if due:
                asked[number] = due
            if len(asked) == ASKED_AT_ONCE:
                break
        for number in over:
            with self._store.write() as tx:
                condemned.forget(tx, number)
        leading = {target for target in {one for due in asked.values() for one in due} if self._leads(target)}
        for number, due in asked.items():
            with self._store.write() as tx:
                for target in leading.intersection(due):
                    condemned.note(tx, number, target, Asked(Removal.ASKED, now))
                    copies.enqueue(tx, copies.Transfer(target, now, number, 0, is_removal=True))
        if leading:
            self._faults.reach("collect.asked")
            self._kick()


class _Stopped(Exception):
    """The process ends in the middle of a walk."""


def _is_due(asked: Asked | None, now: Instant) -> bool:
    """Never while a transfer is to remove it: that one says what became of it, however long it takes."""
    return asked is None or (asked.removal is Removal.LATER and asked.when <= now)
