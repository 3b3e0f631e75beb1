"""Lengths of time as people write them."""

from __future__ import annotations

import pytest

from appliance.cli.retention import length, length_seconds
from vnafs.domain.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15min", 900), ("12h", 43_200), ("30d", 2_592_000), ("10y", 315_360_000)]
)
def test_a_length_is_read_and_shown(text: str, seconds: int) -> None:
    assert length_seconds(text) == seconds
    assert length_seconds(length(seconds)) == seconds


def test_nothing_is_a_length_too() -> None:
    assert length_seconds(length(0)) == 0


@pytest.mark.parametrize("text", ["", "10", "y", "-1d", "1.5d", "10 years"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        length_seconds(text)
