"""What the bench of writers beside tiering makes of its figures."""

from __future__ import annotations

from tests.bench.beside_tiering import judge, p99


def a_round(idle: float, draining: float) -> dict[str, dict[str, float]]:
    return {
        "idle": {"create_ms": idle, "whole_ms": idle},
        "draining": {"create_ms": draining, "whole_ms": draining},
    }


def test_one_round_gives_no_ratio() -> None:
    assert judge([a_round(1.0, 2.0)]) == {}


def test_the_ratio_is_of_medians_and_three_times_idle_holds() -> None:
    found = judge([a_round(1.0, 3.0), a_round(100.0, 2.0), a_round(0.5, 900.0)])
    assert found["create_ms"] == {"idle": 1.0, "draining": 3.0, "ratio": 3.0}
    assert found["create_ms_holds"] is True
    assert judge([a_round(1.0, 3.1), a_round(1.0, 3.1)])["create_ms_holds"] is False


def test_p99_leaves_out_one_of_a_hundred() -> None:
    assert p99([float(number) for number in range(100)]) == 99.0
    assert p99([1.0] * 198 + [2.0, 900.0]) == 2.0
