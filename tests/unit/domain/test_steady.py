"""The steady clock, and which rules of retention are weaker."""

from __future__ import annotations

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.retention import RetentionMode, weakens
from vnafs.domain.steady import Steady, moved_on

DAY = 86400 * 10**9
START = Steady(Instant(1000 * DAY), "boot", 5 * DAY)
OFF, GOVERNANCE, COMPLIANCE = RetentionMode


def after(known: Steady | None, passed: int, *, boot: str = "boot", wall: int = 5000 * DAY) -> float:
    since = 5 * DAY if known is None else known.since_boot_ns
    return moved_on(known, boot=boot, since_boot_ns=since + passed, wall=Instant(wall)).now / DAY


def test_it_begins_at_the_wall_clock() -> None:
    assert after(None, 0, wall=7 * DAY) == 7


def test_it_runs_with_the_kernels_count_and_gains_a_week_in_a_year_at_most() -> None:
    assert after(START, 365 * DAY) == 1000 + 365 + 7
    assert after(START, 365 * DAY, wall=1365 * DAY) == 1365


def test_what_passed_between_two_boots_proves_nothing() -> None:
    assert after(START, 50 * DAY, boot="another") == 1000
    assert after(START, -4 * DAY) == 1000
    assert after(Steady(START.now, "", 0), 9 * DAY, boot="") == 1000


@pytest.mark.parametrize("wall", [0, 10 * DAY, 1000 * DAY])
def test_it_never_goes_back_and_never_past_the_wall_clock(wall: int) -> None:
    assert after(START, DAY, wall=wall) == 1000


def test_many_small_steps_are_as_one() -> None:
    known = START
    for step in range(1, 25):
        known = moved_on(known, boot="boot", since_boot_ns=5 * DAY + step * DAY // 24, wall=Instant(5000 * DAY))
    assert abs(known.now / DAY - after(START, DAY)) < 1e-9


@pytest.mark.parametrize(
    ("before", "now", "is_weaker"),
    [
        ((GOVERNANCE, 10, 10), (OFF, 0, 0), False),
        ((COMPLIANCE, 10, 10), (COMPLIANCE, 10, 10), False),
        ((COMPLIANCE, 10, 10), (COMPLIANCE, 11, 9), False),
        ((COMPLIANCE, 10, 0), (COMPLIANCE, 10, 99), False),
        ((COMPLIANCE, 10, 10), (GOVERNANCE, 10, 10), True),
        ((COMPLIANCE, 10, 10), (COMPLIANCE, 9, 10), True),
        ((COMPLIANCE, 10, 10), (COMPLIANCE, 10, 0), True),
        ((COMPLIANCE, 10, 10), (COMPLIANCE, 10, 11), True),
    ],
)
def test_rules_of_compliance_only_become_stronger(before, now, is_weaker) -> None:
    assert bool(weakens(before, now)) == is_weaker
