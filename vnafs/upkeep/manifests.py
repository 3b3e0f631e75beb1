"""Manifests: what rebuilds this archive elsewhere, recorded while it changes and sent to every target.

One thread records, one for each target sends. At the start, and with every object, it shows whether a target went on
without this index; then nothing more is recorded or sent, and *superseded* is told.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol, TypeVar

from vnafs.domain.clock import Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import Damaged, ObjectExists, ObjectStays, StorageFailed, Superseded, TargetError, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.index import meta
from vnafs.index.engine import Engine
from vnafs.local.quarantine import Quarantine
from vnafs.pipeline.keys import Keys
from vnafs.targets.port import Target
from vnafs.upkeep.ledger import Ledger, Sent, oldest_of, sent, set_trim_wanted, trim_wanted
from vnafs.upkeep.record import Record
from vnafs.upkeep.send import Send

log = logging.getLogger(__name__)

TELL_SECONDS = 1.0
"""Between attempts to say that the archive is superseded."""
STOP_SECONDS_MAX = 1.0
"""Waited for each that sends, at the end."""
COMPARE_SECONDS_MAX = 15.0
"""Waited for targets at the start; those that do not answer are compared with the first object sent."""


Looked = TypeVar("Looked")


def _mended(look: Callable[[], Looked]) -> Looked:
    """What *look* says, at once or after what was wrong has been removed: then it can be put."""
    try:
        return look()
    except (Damaged, ObjectExists):
        return look()


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

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far one target is, for status."""

    name: TargetName
    sent: Sent
    why: str


class Manifests:
    """See the module."""

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        folder: str,
        store: Engine,
        namespace: Engine,
        *,
        archive: bytes,
        fold: Callable[[], None],
        configuration: Callable[[], str],
        places: Callable[[], Collection[Place]],
        superseded: Callable[[str], None],
        seconds_max: float,
        kept_seconds: float = 0.0,
        keys: Keys | None = None,
        quarantine: Quarantine | None = None,
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._keys = keys
        self._quarantine = quarantine
        self.ledger = Ledger(folder, store)
        self._record = Record(
            self.ledger,
            store,
            namespace,
            archive=archive,
            fold=fold,
            configuration=configuration,
            kept=self._is_kept,
            keys=keys,
            clock=clock,
            faults=faults,
        )
        self._store = store
        self._namespace = namespace
        self._archive = archive
        self._places = places
        self._superseded = superseded
        self._seconds_max = seconds_max
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._lock = threading.Lock()
        self._senders: dict[int, Send] = {}
        self._started = False
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self.rival = ""
        """Why nothing is recorded any more, or nothing."""
        self.why = ""
        """Why the last change was not recorded, or nothing."""
        self._told = False
        self._after = 0
        """The highest number that an earlier life used on some target."""
        self._again = threading.Event()
        self._forgotten = 0
        """Segments up to this one are not on the local disk any more, as far as none is needed."""
        self._thread = threading.Thread(target=self._run, name="manifests", daemon=True)

    # -- life ----------------------------------------------------------------------------------------------------

    def compare(self) -> str:
        """Whether an earlier run, or a target that answers soon, says that the archive went on without us; why."""
        with self._namespace.read() as reader:
            known = meta.get_bytes(reader, meta.SUPERSEDED)
        if known is not None:
            self._stop_for(known.decode())
            return self.rival
        asked = [threading.Thread(target=self._compare, args=(send,), daemon=True) for send in self._current()]
        for thread in asked:
            thread.start()
        until = self._clock.monotonic() + COMPARE_SECONDS_MAX
        for thread in asked:
            thread.join(max(0.0, until - self._clock.monotonic()))
        return self.rival

    def _compare(self, send: Send) -> None:
        try:
            send.compare()
        except Superseded as problem:
            self._stop_for(str(problem))
        except TargetError as problem:
            log.warning("manifest.not_compared", extra={"target": send.name, "why": str(problem)})

    def start(self) -> None:
        """Begin to record and send."""
        self._started = True
        self._thread.start()

    def stop(self) -> bool:
        """End; what is recorded is sent by the next run. False when something hangs and is given up."""
        self._stopping.set()
        self._hurry.set()
        with self._lock:
            senders = list(self._senders.values())
        for send in senders:
            send.ask_to_stop()
        ended = [send.join(STOP_SECONDS_MAX) for send in senders]
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return all(ended) and not self._thread.is_alive()

    def hurry(self) -> None:
        """Record now instead of when it is time."""
        self._hurry.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._hurry.clear()
                self.step()
                self._hurry.wait(TELL_SECONDS if self.rival and not self._told else self._seconds_max)
        except BaseException as problem:
            self._fatal(problem)

    # -- work ----------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Record once, and wake those that send, or send here when not started; whether all is sent then."""
        if self.rival:
            if not self._told:
                self._tell()
            return False
        try:
            self._record.go_on_after(self._after)
            if self._again.is_set():
                self._again.clear()
                self._record.snapshot()
            self._record.step()
            self._settle_trim()
            self._forget_older()
            self.why = ""
        except StorageFailed:
            raise
        except VnaError as problem:
            self.why = str(problem)
            log.warning("manifest.not_recorded", extra={"why": str(problem)})
        current = self._current()
        if self._started:
            for send in current:
                send.kick()
            return False
        done = [send.step() for send in current]  # all of them, whatever became of the first
        return all(done)

    # -- what is not needed any more -----------------------------------------------------------------------------

    def trim_now(self) -> None:
        """Have everything that was recorded so far go from each target, once a newer snapshot is there; soon.

        It is remembered: a crash does not make it undone. `oldest` says how far it is.
        """
        with self._store.write() as tx:
            set_trim_wanted(tx, 0)
        self._store.sync(self._store.position)
        self.hurry()

    def _settle_trim(self) -> None:
        """Make the snapshot that such a trim needs; what is before it goes from the local disk at once."""
        with self._store.read() as reader:
            wanted = trim_wanted(reader)
        if wanted is None or 0 < wanted <= self.ledger.position().snapshot_from:
            return
        if not wanted:
            with self._store.write() as tx:
                set_trim_wanted(tx, self.ledger.position().number)
            self._store.sync(self._store.position)
        self._record.snapshot()
        with self._lock:
            senders = list(self._senders.values())
        for send in senders:
            send.trim_soon()

    def _forget_older(self) -> None:
        """After such a trim the local disk keeps no older segments either, but those that some target still lacks.

        What a target may have although its answer was lost must be known for ours when it is found there.
        """
        with self._store.read() as reader:
            wanted = trim_wanted(reader)
        if not wanted:
            return
        everywhere = min((send.sent().number for send in self._current()), default=wanted)
        if everywhere > self._forgotten:
            self._record.forget_older(everywhere)
            self._forgotten = everywhere

    def oldest(self, target: int) -> int | None:
        """The lowest number of a segment or snapshot of which anything is left on a target; None: nobody knows."""
        with self._store.read() as reader:
            return oldest_of(reader, target)

    def leads(self, target: int) -> bool:
        """Whether nobody but us has written manifests to a target, looked at now; False when it does not answer."""
        for send in self._current():
            if send.number != target or self.rival:
                continue
            try:
                return send.leads()
            except Superseded as problem:
                self._stop_for(str(problem))
            except (VnaError, OSError) as problem:
                log.info("manifest.not_compared", extra={"target": send.name, "why": str(problem)})
        return False

    def snapshot(self) -> None:
        """Make a new snapshot now. Raises DaemonUnreachable, NoSpace, StorageFailed."""
        self._record.snapshot()

    def _current(self) -> list[Send]:
        places: Mapping[int, Place] = {place.number: place for place in self._places()}
        with self._lock:
            for number in self._senders.keys() - places.keys():
                self._senders.pop(number).ask_to_stop()
            for number in places.keys() - self._senders.keys():
                place = places[number]
                self._senders[number] = Send(
                    number,
                    place.target,
                    place.capabilities,
                    self.ledger,
                    self._store,
                    self._archive,
                    clock=self._clock,
                    faults=self._faults,
                    rival=self._stop_for,
                    rotten=self._write_again,
                    epoch=self._epoch,
                    go_on_after=self._go_on_after,
                    keys=self._keys,
                    kept_seconds=self._kept_seconds,
                    quarantine=self._quarantine,
                    fatal=self._fatal,
                )
            if self._started:
                for send in self._senders.values():
                    send.start()
            return list(self._senders.values())

    def look_again(self) -> Iterator[tuple[TargetName, int, bool]]:
        """Each object that a restore needs, on each target that answers: the target, bytes, and whether it was wrong.

        What was wrong is put again. Ends early for a target that does not answer, and when the archive is superseded.
        """
        for send in self._current():
            if self.rival:
                return
            try:
                if self._keys is not None:
                    yield send.name, 0, _mended(functools.partial(self._look_at_keys, self._keys, send))
                for name in send.needed():
                    try:
                        size_bytes, was_wrong = _mended(functools.partial(send.look_again, name))
                    except ObjectStays as problem:
                        log.error("manifest.stays", extra={"target": send.name, "why": str(problem)})  # noqa: TRY400 - it is an answer
                        size_bytes, was_wrong = 0, True
                    yield send.name, size_bytes, was_wrong
            except Superseded as problem:
                self._stop_for(str(problem))
            except (VnaError, OSError) as problem:
                log.warning("manifest.not_looked_at", extra={"target": send.name, "why": str(problem)})

    def needed(self, number: int) -> Iterator[ObjectName]:
        """What a restore from one target needs, and it has; nothing while a snapshot is on its way. Raises VnaError."""
        for send in self._current():
            if send.number == number:
                yield from send.needed()

    @staticmethod
    def _look_at_keys(keys: Keys, send: Send) -> bool:
        return keys.look_again(send.target, send.capabilities())

    def _stop_for(self, why: str) -> None:
        with self._lock:
            first = not self.rival
            self.rival = self.rival or why
            senders = list(self._senders.values())
        for send in senders:
            send.ask_to_stop()
        if first:
            log.critical("manifest.superseded", extra={"why": why})
            self._tell()

    def _tell(self) -> None:
        """Until it was heard: mount may still be starting."""
        try:
            self._superseded(self.rival)
        except VnaError as problem:
            log.warning("manifest.superseded_not_told", extra={"why": str(problem)})
        else:
            self._told = True

    def _write_again(self, name: ObjectName) -> None:
        log.error("manifest.rotten", extra={"object": name})
        self._again.set()
        self._hurry.set()

    def _epoch(self) -> int:
        with self._namespace.read() as reader:
            return meta.get_int(reader, meta.EPOCH) or 0

    def _go_on_after(self, number: int) -> None:
        self._after = max(self._after, number)
        self._hurry.set()

    def covers(self, target: int, feed: int) -> bool:
        """Whether a target has manifests of ours that tell of everything in the store's feed before a number.

        They were created there exclusively: no other life of this archive has written to it since.
        """
        if self.rival:
            return False
        here = self.ledger.position()
        with self._store.read() as reader:
            there = sent(reader, target)
        is_told = here.store_cursor >= feed and here.snapshot is not None
        return is_told and there.snapshot == here.snapshot and there.number >= here.number

    def _is_kept(self, snapshot: int) -> bool:
        with self._lock:
            senders = list(self._senders.values())
        return not senders or any(send.sent().snapshot == snapshot for send in senders)

    def progress(self) -> list[Progress]:
        """How far every target is."""
        with self._lock:
            senders = list(self._senders.values())
        return [Progress(send.name, send.sent(), send.why) for send in senders]
