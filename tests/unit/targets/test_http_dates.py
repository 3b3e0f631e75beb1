from __future__ import annotations

import datetime as dt

import pytest

from tests.servers.clocks import NOON, ManualClock
from vnafs.targets.http_dates import is_skewed, retry_after_seconds


def stamp(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(("step", "skewed"), [(0, False), (600, False), (-600, False), (3600, True), (-3600, True)])
def test_an_hour_is_too_far_and_ten_minutes_are_not(step: float, skewed: bool) -> None:
    clock = ManualClock()
    clock.step(step)
    assert is_skewed(stamp(NOON), clock) is skewed


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 99 Foo 2026 00:00:00 GMT"])
def test_a_date_that_makes_no_sense_accuses_nobody(date: str) -> None:
    assert not is_skewed(date, ManualClock())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("17", 17), (" 3 ", 3), ("", None), ("soon", None), (stamp(NOON + 90), 90), (stamp(NOON - 9), 0)],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    assert retry_after_seconds(text, ManualClock()) == expected
