"""Readers that wait for a dead target are nobody else's business."""

import pytest

from tests.bench.dead_target import measure

pytestmark = pytest.mark.system


def test_64_opens_of_stubs_on_a_dead_target_do_not_slow_writers(tmp_path):
    """A short run; `python -m tests.bench.dead_target` gives figures. One that waited would wait for seconds."""
    found = measure(tmp_path, rounds=1, seconds=6, openers=64)
    assert found["alone"]["files"] > 100
    assert found["beside"]["files"] > 100
    assert found["beside"]["p99_ms"] < 3 * found["alone"]["p99_ms"] + 20, found
    assert found["beside"]["p50_ms"] < 2 * found["alone"]["p50_ms"] + 5, found
