"""Readers that wait for a dead target are nobody else's business."""

import pytest

from tests.bench.dead_target import measure

pytestmark = pytest.mark.system


def test_64_opens_of_stubs_on_a_dead_target_do_not_slow_writers(tmp_path):
    """A writer that waited for a reader would wait for seconds: the bounds leave room for what else the machine does.

    `python -m tests.bench.dead_target` gives figures, and itself fails when an open did not wait or gave wrong bytes.
    """
    found = measure(tmp_path, rounds=1, seconds=6, openers=64)
    assert found["beside"]["files"] > found["alone"]["files"] / 4, found
    assert found["beside"]["p50_ms"] < 3 * found["alone"]["p50_ms"] + 20, found
    assert found["beside"]["p99_ms"] < 3 * found["alone"]["p99_ms"] + 500, found
