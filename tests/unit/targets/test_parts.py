from __future__ import annotations

import concurrent.futures
import threading

import pytest

from vnafs.targets.limits import MEBIBYTE
from vnafs.targets.parts import all_or_first_failure, cut


@pytest.mark.parametrize(
    ("size", "part", "expected"),
    [
        (0, 10, []),
        (1, 10, [(0, 1)]),
        (10, 10, [(0, 10)]),
        (25, 10, [(0, 10), (10, 10), (20, 5)]),
    ],
)
def test_parts_cover_the_object_once(size: int, part: int, expected: list[tuple[int, int]]) -> None:
    assert cut(size, part, 100) == expected


def test_parts_grow_when_there_would_be_too_many() -> None:
    size = 10_000 * 32 * MEBIBYTE + 1
    pieces = cut(size, 32 * MEBIBYTE, 10_000)
    assert len(pieces) <= 10_000
    assert sum(length for _, length in pieces) == size
    assert pieces[0][1] == 33 * MEBIBYTE


def test_after_a_failure_nothing_is_still_running() -> None:
    running = threading.Semaphore(0)
    finished: list[int] = []

    def part(number: int) -> int:
        if number == 1:
            raise ValueError("part 1")
        running.acquire(timeout=0.2)
        finished.append(number)
        return number

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(part, number) for number in range(20)]
        with pytest.raises(ValueError, match="part 1"):
            all_or_first_failure(futures)
        assert all(future.done() for future in futures)
        assert len(finished) < 19
