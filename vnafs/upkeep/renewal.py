"""Renewal: no lock of anything that is needed runs out.

Each target that locks what is put there is walked over four times in the length of a lock: every pack that the index
knows to be verified there, what a restore needs of the manifests, and the keyrings. A lock with less than half left is
put to its full length again. So what is looked at just before its half still has a quarter left at the next look.
What the index no longer knows, or is about to collect, is not renewed, and may go when its lock ends. A pack that a
committed file needs is locked until that file's date, if it is later.

One thread, one object at a time, at a limited rate; a cursor for each target says where it goes on after a restart.
A target that does not answer is left alone for a while, and holds up no other. It changes nothing but locks, and only
ever makes them longer.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from vnafs.content import keyring
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import ObjectMissing, VnaError
from vnafs.domain.ids import ObjectName, PackNumber, TargetName, pack_object_name
from vnafs.domain.locks import Lock, LockMode
from vnafs.index import condemned, copies, counts, meta, packs
from vnafs.index.condemned import Stage
from vnafs.index.engine import Engine, Reader
from vnafs.index.packs import Pack
from vnafs.pipeline import doomed
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

WALKS = 4
"""Over one target, in the length of a lock."""
OBJECT_SECONDS = 0.05
"""Between two objects; less where a walk over all of them would take more than half of its time."""
AWAY_SECONDS = 300.0
"""Between attempts on a target that did not answer, and between looks for a snapshot that is still on its way."""
IDLE_SECONDS = 10.0
STOP_SECONDS_MAX = 1.0
PACKS_AT_ONCE = 256


class Holder(Protocol):
    """A target, and the lock that objects get there."""

    @property
    def number(self) -> int:
        """The target's number."""
        ...

    @property
    def name(self) -> TargetName:
        """Its name."""
        ...

    @property
    def target(self) -> Target:
        """The target."""
        ...

    @property
    def lock(self) -> Lock | None:
        """None where nothing is locked."""
        ...


@dataclasses.dataclass(slots=True)
class Progress:
    """How far this run of the process is with one target, for status."""

    looked_at: int = 0
    renewed: int = 0
    why: str = ""
    """What keeps locks there from being renewed, if anything."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An object, and until when it is locked at least."""

    name: ObjectName
    until: Instant = Instant(0)


class Renewal:
    """See the module.

    *needed* names what a restore from a target needs of the manifests there; *retained* says until when a pack must
    stay, as far as a lock of that mode may say so.
    """

    def __init__(
        self,
        store: Engine,
        *,
        holders: Callable[[], Collection[Holder]],
        needed: Callable[[int], Iterator[ObjectName]],
        retained: Callable[[Pack, LockMode], Instant],
        clock: Clock,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._holders = holders
        self._needed = needed
        self._retained = retained
        self._clock = clock
        self._fatal = fatal
        self.progress: dict[TargetName, Progress] = {}
        self._walks: dict[int, Iterator[Wanted]] = {}
        self._not_before: dict[int, float] = {}
        self._others_not_before: dict[int, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End. False when a request hangs and is given up with the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._stopping.wait(self.step())
        except BaseException as problem:
            self._fatal(problem)

    def step(self) -> float:
        """Look at one object of each target that is due; how many seconds to wait before the next step."""
        pause = IDLE_SECONDS
        holders = self._holders()
        for gone in self.progress.keys() - {holder.name for holder in holders if holder.lock is not None}:
            del self.progress[gone]
        for holder in holders:
            lock = holder.lock
            if lock is None or self._clock.monotonic() < self._not_before.get(holder.number, 0.0):
                continue
            pause = min(pause, lock.seconds / WALKS / 2)
            shown = self.progress.setdefault(holder.name, Progress())
            try:
                wanted = self._next(holder, lock)
                if wanted is not None:
                    self._look_at(holder, lock, wanted, shown)
                    pause = min(pause, self._pause_seconds(holder, lock))
                shown.why = ""
            except (VnaError, OSError) as problem:
                shown.why = str(problem)
                log.warning("renewal.later", extra={"target": holder.name, "why": str(problem)})
                self._leave(holder, _soon_seconds(lock))
        return pause

    def _leave(self, holder: Holder, seconds: float) -> None:
        """The walk begins again at its cursor."""
        self._walks.pop(holder.number, None)
        self._not_before[holder.number] = self._clock.monotonic() + seconds

    def _pause_seconds(self, holder: Holder, lock: Lock) -> float:
        with self._store.read() as reader:
            rows = counts.get(reader, counts.verified(holder.number)).rows
        return min(OBJECT_SECONDS, lock.seconds / WALKS / 2 / (rows + 1))

    def _look_at(self, holder: Holder, lock: Lock, wanted: Wanted, shown: Progress) -> None:
        now = self._clock.now()
        try:
            until = holder.target.retained(wanted.name)
            if lock.is_worn(until, now) or (until or 0) < wanted.until:
                holder.target.retain(wanted.name, max(lock.until(now), wanted.until))
                shown.renewed += 1
        except ObjectMissing:
            # whether that is a loss is for scrub to say
            log.warning("renewal.missing", extra={"target": holder.name, "object": wanted.name})
        shown.looked_at += 1

    # -- the walk ----------------------------------------------------------------------------------------------

    def _next(self, holder: Holder, lock: Lock) -> Wanted | None:
        """The next object of a walk that is due; None when there is nothing to look at now."""
        while True:
            walk = self._walks.get(holder.number) or self._begun(holder, lock)
            if walk is None:
                return None
            self._walks[holder.number] = walk
            found = next(walk, None)
            if found is not None:
                return found
            del self._walks[holder.number]

    def _begun(self, holder: Holder, lock: Lock) -> Iterator[Wanted] | None:
        """A walk that is due, if one is: over packs, or over what is less and begins again with each process."""
        if self._is_due(holder, lock):
            return self._packs(holder, lock)
        if self._clock.monotonic() >= self._others_not_before.get(holder.number, 0.0):
            return self._others(holder, lock)
        return None

    def _is_due(self, holder: Holder, lock: Lock) -> bool:
        with self._store.read() as reader:
            began = meta.get_int(reader, _began(holder))
            under_way = meta.get_int(reader, _cursor(holder)) is not None
        now = self._clock.now()
        # one from the future was recorded before the clock was set back
        return began is None or under_way or began > now or now - began >= lock.seconds * NANOSECONDS // WALKS

    def _others(self, holder: Holder, lock: Lock) -> Iterator[Wanted]:
        """What a restore needs of the manifests, and the keyrings."""
        any_needed = False
        for name in self._needed(holder.number):
            any_needed = True
            yield Wanted(name)
        for name in holder.target.list(keyring.KEYRINGS):
            if keyring.number_in(name) is not None:
                yield Wanted(name)
        # else a snapshot is on its way: what it needs may have been put, and locked, long ago
        seconds = lock.seconds / WALKS if any_needed else _soon_seconds(lock)
        self._others_not_before[holder.number] = self._clock.monotonic() + seconds

    def _packs(self, holder: Holder, lock: Lock) -> Iterator[Wanted]:
        with self._store.write() as tx:
            after = PackNumber(meta.get_int(tx, _cursor(holder)) or 0)
            if not after:
                meta.set_int(tx, _cursor(holder), after)
                meta.set_int(tx, _began(holder), self._clock.now())
        while True:
            batch: list[Pack] = []
            last = after
            with self._store.read() as reader:
                for seen, pack in enumerate(packs.every(reader, after=after), 1):
                    last = pack.number
                    if _is_held(reader, pack, holder):
                        batch.append(pack)
                    if seen == PACKS_AT_ONCE:
                        break
            for pack in batch:
                yield Wanted(pack_object_name(pack.id), self._retained(pack, lock.mode))
            with self._store.write() as tx:
                if last == after:
                    meta.remove(tx, _cursor(holder))
                    return
                meta.set_int(tx, _cursor(holder), last)
            after = last


def _is_held(reader: Reader, pack: Pack, holder: Holder) -> bool:
    """Whether a target has a pack verified, and it is not about to be collected."""
    row = condemned.find(reader, pack.number)
    if row is not None and row.stage is Stage.CONDEMNED and not doomed.used(reader, pack):
        return False
    known = copies.of_pack(reader, pack.number)
    return any(copy.target == holder.number and copy.state is CopyState.VERIFIED for copy in known)


def _soon_seconds(lock: Lock) -> float:
    return min(AWAY_SECONDS, lock.seconds / WALKS / 2)


def _cursor(holder: Holder) -> str:
    return f"renewal.{holder.number}.pack"


def _began(holder: Holder) -> str:
    return f"renewal.{holder.number}.began"
