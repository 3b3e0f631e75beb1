"""Packs in an archive class that were asked back: since when, and when they are expected.

A row in the store for each, so that a restart asks nobody again and status can tell; no more rows than ROWS_MAX, past
which a pack is asked back all the same and only its time is not remembered. A target is looked at again no sooner than
LOOK_SECONDS after the last look: a thousand readers of one pack cost one request. Any thread.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import struct
import threading
import time
from collections.abc import Callable

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.errors import Damaged, TargetError
from vnafs.domain.ids import PackNumber, pack_object_name
from vnafs.domain.rehydration import Rehydration, Thaw
from vnafs.index import keys, meta, packs
from vnafs.index.engine import Engine, prefix_stop
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
ROWS_MAX = 10_000
_RECORD = struct.Struct(">QQ")  # since, until
_PREFIX = "thawing."


@dataclasses.dataclass(frozen=True, slots=True)
class Thawing:
    """One pack on one target."""

    since: Instant
    until: Instant
    """When the provider usually has it ready."""


class Thaws:
    """What is on its way."""

    def __init__(self, store: Engine, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._turns: collections.defaultdict[int, threading.Lock] = collections.defaultdict(threading.Lock)
        """One for each target: who comes second finds the answer that the first one got."""
        self._looked: dict[tuple[PackNumber, int], float] = {}
        with store.read() as reader:
            prefix = keys.meta(_PREFIX)
            self._known = {
                _key_of(key[len(prefix) :].decode("ascii")): _decode(raw)
                for key, raw in reader.scan(prefix, prefix_stop(prefix))
            }

    def waits(self, pack: PackNumber, target: int) -> Thawing | None:
        """What is known of a pack that was looked at moments ago; None when it is to be tried."""
        with self._lock:
            found = self._known.get((pack, target))
            looked = self._looked.get((pack, target))
        if found is None or looked is None or self._clock.monotonic() >= looked + LOOK_SECONDS:
            return None
        return found

    def of(self, pack: PackNumber) -> Thawing | None:
        """The soonest of what is known of a pack."""
        with self._lock:
            found = [thawing for (number, _), thawing in self._known.items() if number == pack]
        return min(found, key=lambda thawing: thawing.until, default=None)

    def ask(
        self, pack: packs.Pack, number: int, target: Target, *, paying: Callable[[], Callable[[], None]]
    ) -> Thawing:
        """Ask a pack back, or see how it stands. Raises what the target raises.

        *paying* is called before a pack is asked back for the first time, and what it returns when that was not needed.
        """
        with self._lock:
            turn = self._turns[number]
        with turn:
            found = self.waits(pack.number, number)
            if found is not None:
                return found
            is_known = (pack.number, number) in self._known
            return self._ask(pack, number, target, _nothing if is_known else paying())

    def _ask(self, pack: packs.Pack, number: int, target: Target, pay_back: Callable[[], None]) -> Thawing:
        try:
            answer = target.rehydrate(pack_object_name(pack.id))
        except TargetError:
            pay_back()
            raise
        if answer.thaw is not Thaw.ASKED:
            pay_back()
        return self._heed(pack, number, target, answer)

    def _heed(self, pack: packs.Pack, number: int, target: Target, answer: Rehydration) -> Thawing:
        """Remember how a pack stands."""
        key = (pack.number, number)
        if answer.thaw is Thaw.READY:
            self.forget(pack.number, number)
            return Thawing(self._clock.now(), self._clock.now())
        if answer.thaw is Thaw.ASKED:
            log.info("recall.asked_back", extra={"pack": pack.id.hex(), "target": target.name})
        now = self._clock.now()
        fresh = Thawing(now, Instant(now + answer.seconds_expected * NANOSECONDS))
        with self._lock:
            self._looked[key] = self._clock.monotonic()
            found = self._known.get(key)
            is_new = found is None or answer.thaw is Thaw.ASKED
            if not is_new and found is not None:
                return found
            if len(self._known) >= ROWS_MAX:
                self._looked.pop(key)
                return fresh
            self._known[key] = fresh
        with self._store.write() as tx:
            meta.set_bytes(tx, _name(key), _RECORD.pack(fresh.since, fresh.until))
        return fresh

    def forget(self, pack: PackNumber, target: int) -> None:
        """It was read, or can be."""
        key = (pack, target)
        with self._lock:
            if self._known.pop(key, None) is None:
                return
            self._looked.pop(key, None)
        with self._store.write() as tx:
            meta.remove(tx, _name(key))


def _nothing() -> None:
    """It was paid for when it was asked back."""


def shown(instant: Instant) -> str:
    """A time for a reason, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(instant // NANOSECONDS))


def _name(key: tuple[PackNumber, int]) -> str:
    return f"{_PREFIX}{key[0]:x}.{key[1]:x}"


def _key_of(name: str) -> tuple[PackNumber, int]:
    pack, _, target = name.partition(".")
    return PackNumber(int(pack, 16)), int(target, 16)


def _decode(raw: bytes) -> Thawing:
    if len(raw) != _RECORD.size:
        raise Damaged(what="a pack that was asked back")
    since, until = _RECORD.unpack(raw)
    return Thawing(Instant(since), Instant(until))
