"""Replicate: bring every pack to every target and verify it there.

Each target has its own queue rows, its own threads and its own back-off, so a dead one delays nobody. A pack's
bytes come from the local pack folder, or from another target that holds a verified copy. Order is safety: object
on the target, verified, row on stable storage, tree told, local pack removed. A pack that fails goes to the end of
the queue, so that one that never works holds up no other.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, CopyState, VerifiedBy
from vnafs.domain.errors import (
    Damaged,
    NoSpace,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    ObjectStays,
    RecallFailed,
    TargetError,
    TargetRefused,
    TargetUnavailable,
    VnaError,
)
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ObjectName, PackNumber, TargetName, pack_object_name
from vnafs.domain.locks import Lock
from vnafs.index import condemned, copies, packs, targets
from vnafs.index.condemned import Asked, Removal, Stage
from vnafs.index.engine import Engine
from vnafs.local.quarantine import Quarantine
from vnafs.local.turns import go_behind
from vnafs.pipeline.aside import about_pack, from_target, keep_object
from vnafs.pipeline.shelf import Shelf
from vnafs.targets.discarding import discard
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
ASKED_SECONDS_MAX = 60.0
"""After the collector looked whether a target is still ours alone."""
REFUSED_SECONDS = 3600.0
"""Before a target that does not let go of a collected pack is asked again."""
STAYING_SECONDS = 3600.0
"""Between attempts to replace an object that is wrong and cannot be deleted: each reads all of it."""
STAYING_MAX = 10_000
"""Such objects remembered; more are tried as often as what fails otherwise."""


class Doubt(Protocol):
    """See `pipeline.condemn`."""

    def __call__(self, number: PackNumber, *, is_absent: bool) -> bool:
        """Whether the pack was given up; *is_absent*: the target answered that it has nothing, or nothing right."""
        ...


@dataclasses.dataclass(slots=True)
class Health:
    """How a target does, for status; replaced as a whole."""

    reachable: bool = True
    why: str = ""
    since: Instant = Instant(0)


class Replicator:
    """All transfers to one target.

    *prepare* brings what a target needs before its first pack; *verified* is told of each pack whose copy was just
    recorded, *lost* that a copy counts no more; *doubt* is asked about a pack that did not get there and says whether
    it was given up. What is wrong there is kept in *quarantine* before it is replaced.
    """

    def __init__(  # noqa: PLR0913 - a stage's parts and exits, each named where it is wired
        self,
        number: int,
        target: Target,
        store: Engine,
        shelf: Shelf,
        *,
        transfers_max: int,
        storage_seconds_min: float = 0.0,
        prepare: Callable[[Target, Callable[[], Capabilities]], None],
        clock: Clock,
        faults: Faults,
        verified: Callable[[PackNumber], None],
        lost: Callable[[], None],
        doubt: Doubt,
        quarantine: Quarantine,
        fatal: Callable[[BaseException], None],
        lock: Lock | None = None,
    ) -> None:
        self.number = number
        self.target = target
        self.storage_seconds_min = storage_seconds_min
        self.lock = lock
        self.health = Health()
        self._store = store
        self._shelf = shelf
        self._clock = clock
        self._faults = faults
        self._prepare = prepare
        self._verified = verified
        self._lost = lost
        self._doubt = doubt
        self._quarantine = quarantine
        self._fatal = fatal
        self._capabilities: Capabilities | None = None
        self._changed = threading.Condition()
        self._in_flight: set[PackNumber] = set()
        self._staying: dict[PackNumber, float] = {}
        """Packs whose object there is wrong and cannot be deleted, and when each is tried again."""
        self._staying_why = ""
        self._not_before = 0.0
        self._failures = 0
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"to-{target.name}-{n}", daemon=True) for n in range(transfers_max)
        ]

    @property
    def name(self) -> TargetName:
        """The target's name."""
        return self.target.name

    def start(self) -> None:
        """Begin to work off the queue."""
        for thread in self._threads:
            thread.start()

    def kick(self) -> None:
        """There may be new rows."""
        with self._changed:
            self._changed.notify()

    def hurry(self) -> None:
        """Forget the back-off: an administrator says that the target is well again."""
        with self._changed:
            self._not_before = 0.0
            self._staying.clear()
            self._changed.notify_all()

    @property
    def why(self) -> str:
        """What keeps the target from having everything, if anything."""
        with self._changed:
            if not self.health.reachable or not self._staying:
                return self.health.why
            return f"{len(self._staying)} objects there are wrong and cannot be replaced: {self._staying_why}"

    def ask_to_stop(self) -> None:
        """Let it end after the transfers under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, seconds_max: float) -> bool:
        """Wait for its end; whether that came. An upload that hangs is given up with the process."""
        until = time.monotonic() + seconds_max
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> bool:
        """Finish the transfers under way and end; whether that came to pass within a while."""
        self.ask_to_stop()
        return self.join(STOP_SECONDS_MAX)

    # -- the threads -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        go_behind()
        try:
            while not self._stopping:
                if not self.step():
                    self._wait()
        except BaseException as problem:
            self._fatal(problem)

    def step(self) -> bool:
        """Make one transfer that is due and that no other thread has; whether there was one."""
        with self._changed:
            transfer = self._take()
        if transfer is None:
            return False
        try:
            self._one(transfer)
        except NoSpace as problem:
            # not even a row can be written: the transfer is still asked for, and found again
            log.warning("replicate.no_space", extra={"target": self.name, "why": str(problem)})
            with self._changed:
                self._not_before = self._clock.monotonic() + BACKOFF_SECONDS_MIN
        finally:
            with self._changed:
                self._in_flight.discard(transfer.pack)
                self._changed.notify()
        return True

    def _take(self) -> copies.Transfer | None:
        # while the target is down one thread tries and the others wait
        trying = self._failures == 0 or not self._in_flight
        if self._stopping or not trying or self._clock.monotonic() < self._not_before:
            return None
        transfer = self._due()
        if transfer is not None:
            self._in_flight.add(transfer.pack)
        return transfer

    def _wait(self) -> None:
        with self._changed:
            wait = self._not_before - self._clock.monotonic()
            if not self._stopping:
                self._changed.wait(min(IDLE_SECONDS, wait) if wait > 0 else IDLE_SECONDS)

    def _due(self) -> copies.Transfer | None:
        now = self._clock.now()
        with self._store.read() as reader:
            for transfer in copies.transfers(reader, self.number):
                if transfer.pack in self._in_flight or self._stays(transfer.pack):
                    continue
                # a clock that stepped back an hour must not hold transfers for an hour
                if transfer.due <= now or transfer.due > now + 2 * BACKOFF_SECONDS_MAX * NANOSECONDS:
                    return transfer
                return None
        return None

    def _stays(self, number: PackNumber) -> bool:
        return self._staying.get(number, 0.0) > self._clock.monotonic()

    def _one(self, transfer: copies.Transfer) -> None:
        try:
            how = self._transfer(transfer.pack)
        except (TargetUnavailable, TargetRefused) as problem:
            self._fell_back(transfer, problem, whole_target=True)
        except ObjectStays as problem:
            with self._changed:
                if len(self._staying) < STAYING_MAX or transfer.pack in self._staying:
                    self._staying[transfer.pack] = self._clock.monotonic() + STAYING_SECONDS
                self._staying_why = str(problem)
            self._fell_back(transfer, problem, whole_target=False)
        except (TargetError, Damaged, NoSpace, RecallFailed, OSError) as problem:
            self._fell_back(transfer, problem, whole_target=False)
        else:
            self._succeeded()
            with self._changed:
                self._staying.pop(transfer.pack, None)
            self._record(transfer, how)

    def _transfer(self, number: PackNumber) -> VerifiedBy:
        """Put and verify one pack; NOTHING when there is no such pack any more."""
        with self._store.read() as reader:
            pack = packs.get(reader, number)
            given_up = condemned.find(reader, number)
        if pack is None:
            if given_up is not None and given_up.stage is Stage.REMOVED:
                self._remove(number, given_up)
            elif given_up is not None:
                self._remove_if_wrong(given_up)
            return VerifiedBy.NOTHING
        self._prepare(self.target, self.capabilities)  # what is wrong with that is no news of the pack
        try:
            return self._put(pack)
        except (TargetError, Damaged, RecallFailed, OSError) as problem:
            is_absent = isinstance(problem, Damaged | ObjectMissing | ObjectStays)
            if is_absent:
                self._note_hope_lost(number)
            if self._doubt(number, is_absent=is_absent):
                return VerifiedBy.NOTHING
            raise

    def _remove_if_wrong(self, given_up: condemned.Condemned) -> None:
        """What is here of a pack that was given up goes only if it is wrong: whole, it may be somebody's last copy."""
        if given_up.sha256 is None:
            return
        name = pack_object_name(given_up.id)
        try:
            verify(self.target, name, given_up.size_bytes, given_up.sha256, self.capabilities())
        except ObjectMissing:
            return
        except Damaged:
            try:
                discard(self.target, name)
            except ObjectStays as problem:  # of no use to anybody, and in nobody's way
                log.warning("replicate.given_up_and_stays", extra={"target": self.name, "why": str(problem)})
        else:
            log.warning("replicate.given_up_and_whole", extra={"target": self.name, "pack": given_up.id.hex()})

    def _remove(self, number: PackNumber, removed: condemned.Condemned) -> None:
        """Remove the object of a pack that was collected, if this target's turn has come."""
        asked = removed.asked.get(self.number)
        if asked is None or asked.removal is not Removal.ASKED:
            return  # the transfer was to bring it
        if not 0 <= self._clock.now() - asked.when <= ASKED_SECONDS_MAX * NANOSECONDS:
            # somebody else may have written there since it was looked at
            with self._store.write() as tx:
                condemned.note(tx, number, self.number, Asked(Removal.LATER))
            return
        became = Asked(Removal.GONE)
        soon = self._clock.now() + int(REFUSED_SECONDS * NANOSECONDS)
        try:
            self.target.delete(pack_object_name(removed.id))
        except ObjectLocked as problem:
            became = Asked(Removal.LATER, Instant(max(soon, int(str(problem.fields["until_ns"])))))
            log.info("collect.locked", extra={"target": self.name, "why": str(problem)})
        except TargetRefused as problem:
            became = Asked(Removal.LATER, Instant(soon))
            log.warning("collect.refused", extra={"target": self.name, "why": str(problem)})
        self._faults.reach("collect.deleted")
        with self._store.write() as tx:
            condemned.note(tx, number, self.number, became)

    def _put(self, pack: packs.Pack) -> VerifiedBy:
        number = pack.number
        capabilities = self.capabilities()
        name = pack_object_name(pack.id)
        was_there = self._was_there(number, name)
        self._faults.reach("replicate.started")
        try:
            with self._shelf.body(pack, besides=self.number) as body:
                self.target.put(name, body)
        except RecallFailed:
            # There is nothing to put. What is there may be good all the same: it was unreachable, or garbled on its
            # way to us, when it was looked at. If it is not, it may be good in part, and stays.
            return verify(self.target, name, pack.size_bytes, pack.sha256, capabilities)
        except ObjectExists:
            # it differs from what was put; which of the two is wrong is another question
            try:
                return verify(self.target, name, pack.size_bytes, pack.sha256, capabilities)
            except Damaged as problem:
                self._set_aside(pack, name, problem)
                self._discard(number, name)
                raise
        self._faults.reach("replicate.uploaded")
        try:
            how = verify(self.target, name, pack.size_bytes, pack.sha256, capabilities)
        except Damaged as problem:
            if was_there:
                self._set_aside(pack, name, problem)
            self._discard(number, name)
            raise
        self._faults.reach("replicate.verified")
        return how

    def _was_there(self, number: PackNumber, name: ObjectName) -> bool:
        """Whether something is at *name* that was a copy once: what garbles our own bytes on their way is no loss."""
        with self._store.read() as reader:
            if all(copy.target != self.number for copy in copies.of_pack(reader, number)):
                return False
        try:
            self.target.evidence(name)
        except VnaError:
            return False
        return True

    def _set_aside(self, pack: packs.Pack, name: ObjectName, problem: Damaged) -> None:
        """Keep what is there and wrong; of what cannot be deleted once in the life of a process."""
        with self._changed:
            if pack.number in self._staying:
                return
        keep_object(self._quarantine, self.target, name, about_pack(pack, from_target(self.target), str(problem)))

    def _discard(self, number: PackNumber, name: ObjectName) -> None:
        """What is at *name* is ours by its name, wrong, and counts for nothing: the next attempt puts it again."""
        self._note_damage(number)
        discard(self.target, name)

    # -- what the target can do ------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """As probed once and remembered. Raises what the target raises."""
        if self._capabilities is None:
            with self._store.read() as reader:
                known = targets.current(reader).get(self.number)
            if known is None or known.capabilities is None:
                return self.probe_again()
            self._capabilities = known.capabilities
        return self._capabilities

    def probe_again(self) -> Capabilities:
        """Probe now and remember."""
        found = self.target.probe()
        with self._store.write() as tx:
            known = targets.current(tx).get(self.number)
            if known is not None:
                targets.put(tx, dataclasses.replace(known, capabilities=found))
        self._capabilities = found
        return found

    # -- what became of a copy -------------------------------------------------------------------------------

    def damaged(self, number: PackNumber) -> None:
        """A copy that counted is wrong or gone: it counts no more, and is put again from a good one."""
        log.error("replicate.damaged", extra={"target": self.name, "pack": number})
        with self._store.write() as tx:
            if packs.get(tx, number) is None:
                return
            copies.put(tx, copies.PackCopy(number, self.number, CopyState.DAMAGED))
            copies.enqueue(tx, copies.Transfer(self.number, self._clock.now(), number, 0))
        self._lost()
        self.kick()

    def reverified(self, number: PackNumber, how: VerifiedBy) -> None:
        """A copy was read again and is right."""
        with self._store.write() as tx:
            if packs.get(tx, number) is not None:
                copies.put(tx, copies.PackCopy(number, self.number, CopyState.VERIFIED, how, self._clock.now()))

    def _note_damage(self, number: PackNumber) -> None:
        log.error("replicate.damaged", extra={"target": self.name, "pack": number})
        with self._store.write() as tx:
            if packs.get(tx, number) is not None:
                copies.put(tx, copies.PackCopy(number, self.number, CopyState.DAMAGED))

    def _note_hope_lost(self, number: PackNumber) -> None:
        """A copy that was there by hearsay is not, or is wrong: the target says so itself."""
        with self._store.write() as tx:
            known = (c for c in copies.of_pack(tx, number) if c.target == self.number)
            if any(copy.state is CopyState.UPLOADED for copy in known):
                copies.put(tx, copies.PackCopy(number, self.number, CopyState.DAMAGED))

    def _record(self, transfer: copies.Transfer, how: VerifiedBy) -> None:
        with self._store.write() as tx:
            copies.dequeue(tx, transfer)
            # a pack that was given up meanwhile has one more transfer, which removes what was put
            is_known = packs.get(tx, transfer.pack) is not None
            if how is not VerifiedBy.NOTHING and is_known and self.number in targets.current(tx):
                condemned.pardon(tx, transfer.pack)
                copies.put(
                    tx,
                    copies.PackCopy(transfer.pack, self.number, CopyState.VERIFIED, how, self._clock.now()),
                )
        # local bytes may go for what this row says
        self._store.sync(self._store.position)
        self._faults.reach("replicate.recorded")
        self._verified(transfer.pack)
        self._faults.reach("replicate.proposed")
        self._shelf.release(transfer.pack)
        self._faults.reach("replicate.dropped")

    def _succeeded(self) -> None:
        with self._changed:
            if not self.health.reachable:
                log.info("target.back", extra={"target": self.name})
            self.health = Health()
            self._failures = 0
            self._changed.notify_all()

    def _fell_back(self, transfer: copies.Transfer, problem: Exception, *, whole_target: bool) -> None:
        log.warning("replicate.later", extra={"target": self.name, "attempts": transfer.attempts, "why": str(problem)})
        asked = problem.fields.get("retry_after_seconds") if isinstance(problem, VnaError) else None
        with self._changed:
            if whole_target and self._failures:
                due = self._clock.now()  # the fault is hardly this pack's: it goes behind those that are due
            else:
                due = Instant(self._clock.now() + int(_pause_seconds(transfer.attempts + 1, asked) * NANOSECONDS))
            if whole_target:
                self._failures += 1
                self._not_before = self._clock.monotonic() + _pause_seconds(self._failures, asked)
                since = self.health.since if not self.health.reachable else self._clock.now()
                self.health = Health(reachable=False, why=str(problem), since=since)
        with self._store.write() as tx:
            copies.dequeue(tx, transfer)
            copies.enqueue(tx, dataclasses.replace(transfer, due=due, attempts=transfer.attempts + 1))


def _pause_seconds(failures: int, asked: object) -> float:
    """How long to leave a target alone after so many failures, and what it *asked* for; never all at once again."""
    pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 10))
    if isinstance(asked, int | float):
        pause = min(max(pause, float(asked)), BACKOFF_SECONDS_MAX)
    return pause * random.uniform(0.75, 1.25)


def backfill(store: Engine, number: int, *, now: Instant, batch: int = 1000) -> int:
    """Ask for a transfer of every pack that a target does not hold yet; repeatable. Returns how many."""
    asked = 0
    after = PackNumber(0)
    with store.read() as reader:
        # packs that are recorded from now on bring their own
        waiting = {transfer.pack for transfer in copies.transfers(reader, number)}
    while True:
        with store.write() as tx:
            seen = 0
            for pack in packs.every(tx, after=after):
                seen += 1
                after = pack.number
                held = any(
                    c.target == number and c.state is CopyState.VERIFIED for c in copies.of_pack(tx, pack.number)
                )
                if not held and pack.number not in waiting:
                    copies.enqueue(tx, copies.Transfer(number, now, pack.number, 0))
                    asked += 1
                if seen == batch:
                    break
        if seen < batch:
            return asked
