"""Versions in hand: between being found in a queue row and the tree's answer. Memory only; any thread.

A version in hand is not taken up again. One that has just landed is not either, for as long as readers of the
namespace may still see its old row: that would be the same work twice.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable

from vnafs.domain.clock import Clock
from vnafs.domain.files import Candidate, FileState, Proposal, Seal
from vnafs.domain.ids import Inode, Version

SEALED_SAY_SECONDS = 1.0
"""In an open pack for so long, a version is called sealed."""
LANDED_SECONDS = 0.5
"""Until the tree's answer is visible to readers: several times the age at which its log is folded."""


@dataclasses.dataclass(slots=True)
class _Flight:
    since: float
    seal: Seal | None = None
    said_sealed: bool = False
    landed: float | None = None


class Flights:
    """What is in hand."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[tuple[Inode, Version], _Flight] = {}

    def fresh(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that are not in hand."""
        with self._lock:
            return [c for c in candidates if (c.inode, c.version) not in self._flights]

    def begin(self, candidate: Candidate) -> None:
        """It is in hand from now on."""
        with self._lock:
            self._flights[candidate.inode, candidate.version] = _Flight(self._clock.monotonic())

    def sealed(self, candidate: Candidate, seal: Seal) -> None:
        """Its bytes are in an open pack."""
        with self._lock:
            flight = self._flights.get((candidate.inode, candidate.version))
            if flight is not None and flight.landed is None:
                flight.seal = seal

    def land(self, inode: Inode, version: Version, seal: Seal | None = None) -> None:
        """It is not in hand any more; with *seal* only if it is the one that was sealed so."""
        with self._lock:
            flight = self._flights.get((inode, version))
            if flight is None or flight.landed is not None:
                return
            if seal is not None and flight.seal is not None and flight.seal != seal:
                return
            flight.landed = self._clock.monotonic()

    def tidy(self) -> None:
        """Forget those that landed a while ago."""
        before = self._clock.monotonic() - LANDED_SECONDS
        with self._lock:
            for key in [k for k, f in self._flights.items() if f.landed is not None and f.landed <= before]:
                del self._flights[key]

    def unsaid(self) -> list[Proposal]:
        """Versions that are sealed, whose pack is still open and of which the tree was not told; told of once."""
        before = self._clock.monotonic() - SEALED_SAY_SECONDS
        found = []
        with self._lock:
            for (inode, version), flight in self._flights.items():
                waits = flight.seal is not None and flight.landed is None and not flight.said_sealed
                if waits and flight.since <= before:
                    flight.said_sealed = True
                    found.append(Proposal(inode, version, FileState.SEALED, flight.seal))
        return found

    def __len__(self) -> int:
        with self._lock:
            return sum(1 for flight in self._flights.values() if flight.landed is None)
