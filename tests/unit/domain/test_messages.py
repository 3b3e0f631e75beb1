"""What errors say."""

from __future__ import annotations

from vnafs.domain.errors import NotFound


class _Read:
    """Counts how often it is shown."""

    def __init__(self) -> None:
        self.times = 0

    def __str__(self) -> str:
        self.times += 1
        return "That name"


def test_a_message_is_made_when_somebody_reads_it_and_not_before() -> None:
    what = _Read()
    error = NotFound(what=what)
    assert what.times == 0
    assert str(error) == "That name does not exist."


def test_a_field_that_was_left_out_shows_its_name() -> None:
    assert str(NotFound()) == "<what> does not exist."
