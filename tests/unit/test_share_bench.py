"""What the bench of shares makes of its figures."""

from __future__ import annotations

from tests.bench import workloads
from tests.bench.report import bars
from tests.bench.share import judge
from tests.bench.workloads import Workload

IMAGES = Workload(workloads.images, "files/s", "ours", (("peer", 1.5),))
DELAY = Workload(workloads.random_read, "ms", "ours", most=2.0)


def test_one_round_gives_no_ratio():
    assert judge({"images": {"ours": [100.0], "peer": [1.0]}}, [IMAGES]) == []


def test_ratios_are_those_of_medians():
    [row] = judge({"images": {"ours": [90.0, 1.0, 30.0], "peer": [20.0, 1000.0, 15.0]}}, [IMAGES])
    assert (row["is"], row["holds"]) == (1.5, True)


def test_where_less_is_better_more_does_not_hold():
    [row] = judge({"random read": {"ours": [1.0, 2.5, 3.0], "peer": [9.0, 9.0, 9.0]}}, [DELAY])
    assert (row["is"], row["holds"]) == (2.5, False)


def test_a_place_that_was_left_out_is_not_judged():
    assert judge({"images": {"ours": [100.0, 100.0]}}, [IMAGES]) == []
    assert judge({"images": {"peer": [100.0, 100.0]}}, [IMAGES]) == []


def test_the_longest_bar_is_the_largest_value(tmp_path):
    bars(tmp_path / "x.svg", {"images, files/s": {"ours": 50.0, "peer": 100.0}})
    text = (tmp_path / "x.svg").read_text()
    assert text.index('width="280.0"') < text.index('width="560.0"')
