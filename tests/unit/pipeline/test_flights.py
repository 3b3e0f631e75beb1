"""Versions in hand: none is taken up twice, and none is forgotten because of old news."""

from __future__ import annotations

from tests.servers.clocks import ManualClock
from vnafs.domain.clock import Instant
from vnafs.domain.files import Candidate, FileState, Fingerprint, Proposal, Seal
from vnafs.domain.ids import Inode, Sha256, Version
from vnafs.pipeline.flights import LANDED_SECONDS, SEALED_SAY_SECONDS, Flights

FILE = Candidate(Inode(5), Version(1), FileState.OPEN, Instant(0))
FIRST, SECOND = (Seal(Sha256(bytes([n]) * 32), Fingerprint(1, n, n)) for n in (1, 2))


def in_hand(flights: Flights) -> bool:
    return flights.fresh([FILE]) == []


def test_a_version_in_hand_is_not_taken_up_again() -> None:
    flights = Flights(ManualClock())
    assert flights.fresh([FILE]) == [FILE]
    flights.begin(FILE)
    assert in_hand(flights)
    assert len(flights) == 1


def test_one_that_landed_is_free_only_once_readers_see_the_trees_answer() -> None:
    clock = ManualClock()
    flights = Flights(clock)
    flights.begin(FILE)
    flights.land(FILE.inode, FILE.version)
    flights.tidy()
    assert in_hand(flights)
    assert len(flights) == 0
    clock.advance(LANDED_SECONDS)
    flights.tidy()
    assert not in_hand(flights)


def test_news_of_an_earlier_seal_lands_nothing() -> None:
    flights = Flights(ManualClock())
    flights.begin(FILE)
    flights.sealed(FILE, SECOND)
    flights.land(FILE.inode, FILE.version, FIRST)
    assert len(flights) == 1
    flights.land(FILE.inode, FILE.version, SECOND)
    assert len(flights) == 0


def test_a_version_whose_pack_stays_open_is_called_sealed_once() -> None:
    clock = ManualClock()
    flights = Flights(clock)
    flights.begin(FILE)
    clock.advance(SEALED_SAY_SECONDS)
    assert flights.unsaid() == []
    flights.sealed(FILE, FIRST)
    assert flights.unsaid() == [Proposal(FILE.inode, FILE.version, FileState.SEALED, FIRST)]
    assert flights.unsaid() == []
