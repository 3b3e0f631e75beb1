"""How long a target is left alone."""

from __future__ import annotations

from vnafs.pipeline.replicate import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, _pause_seconds


def spread(failures: int, asked: object = None) -> tuple[float, float]:
    pauses = [_pause_seconds(failures, asked) for _ in range(300)]
    return min(pauses), max(pauses)


def test_pauses_double_up_to_a_limit_and_never_all_end_together() -> None:
    for failures, middle in ((1, BACKOFF_SECONDS_MIN), (2, 2.0), (4, 8.0), (7, BACKOFF_SECONDS_MAX), (5_000, 60.0)):
        low, high = spread(failures)
        assert 0.75 * middle <= low < high <= 1.25 * middle


def test_what_a_target_asks_for_is_heeded_within_the_limit() -> None:
    assert spread(1, 20)[0] >= 15
    assert spread(1, 100_000)[1] <= BACKOFF_SECONDS_MAX * 1.25
    assert spread(7, 1)[0] >= BACKOFF_SECONDS_MAX * 0.75
    assert spread(1, "soon")[1] <= 1.25
