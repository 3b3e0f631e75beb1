from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.errors import ObjectExists, ObjectMissing, TargetRefused, TargetUnavailable
from vnafs.domain.ids import ObjectName, Span, TargetName
from vnafs.targets.body import BLOCK_BYTES, BytesBody
from vnafs.targets.faulty import Fault, FaultyTarget
from vnafs.targets.limits import Limits
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.retrying import RetryingTarget

A = ObjectName("packs/a")
LIMITS = Limits(attempts_max=4, retry_seconds_max=100, backoff_seconds_first=1, backoff_seconds_max=30)


class Bench:
    def __init__(self, limits: Limits = LIMITS) -> None:
        self.clock = ManualClock()
        self.memory = MemoryTarget(TargetName("t"))
        self.faulty = FaultyTarget(self.memory, self.clock)
        self.target = RetryingTarget(self.faulty, self.clock, limits, random.Random(1))


@pytest.fixture
def bench() -> Bench:
    return Bench()


CALLS: dict[str, Callable[[RetryingTarget], object]] = {
    "probe": lambda target: target.probe(),
    "put": lambda target: target.put(ObjectName("new"), BytesBody(b"1")),
    "get": lambda target: b"".join(target.get(A)),
    "read_back": lambda target: b"".join(target.read_back(A)),
    "evidence": lambda target: target.evidence(A),
    "list": lambda target: list(target.list()),
    "delete": lambda target: target.delete(A),
}


@pytest.mark.parametrize("operation", CALLS)
def test_what_is_unavailable_for_a_while_succeeds(bench: Bench, operation: str) -> None:
    bench.memory.put(A, BytesBody(b"abc"))
    bench.faulty.script(Fault(operation=operation, status=503, times=3))
    CALLS[operation](bench.target)
    assert bench.faulty.calls == [operation] * 4


@pytest.mark.parametrize("operation", CALLS)
def test_attempts_have_an_end_and_the_last_error_comes_out(bench: Bench, operation: str) -> None:
    bench.memory.put(A, BytesBody(b"abc"))
    bench.faulty.script(Fault(operation=operation, status=503, times=9))
    with pytest.raises(TargetUnavailable, match="503"):
        CALLS[operation](bench.target)
    assert bench.faulty.calls == [operation] * 4


@pytest.mark.parametrize("operation", CALLS)
def test_what_needs_somebody_to_act_is_not_tried_again(bench: Bench, operation: str) -> None:
    bench.memory.put(A, BytesBody(b"abc"))
    bench.faulty.script(Fault(operation=operation, status=403))
    with pytest.raises(TargetRefused):
        CALLS[operation](bench.target)
    assert bench.faulty.calls == [operation]
    assert bench.clock.slept == []


def test_missing_and_taken_are_answers_not_failures(bench: Bench) -> None:
    bench.memory.put(A, BytesBody(b"abc"))
    with pytest.raises(ObjectMissing):
        bench.target.evidence(ObjectName("other"))
    with pytest.raises(ObjectExists):
        bench.target.put(A, BytesBody(b"longer"))
    assert bench.clock.slept == []


def test_each_pause_is_about_twice_the_one_before(bench: Bench) -> None:
    bench.faulty.script(Fault(status=500, times=3))
    bench.target.put(A, BytesBody(b"1"))
    for pause, longest in zip(bench.clock.slept, (1, 2, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_have_a_ceiling() -> None:
    bench = Bench(Limits(attempts_max=20, retry_seconds_max=10_000, backoff_seconds_first=1, backoff_seconds_max=8))
    bench.faulty.script(Fault(status=500, times=15))
    bench.target.put(A, BytesBody(b"1"))
    assert max(bench.clock.slept) <= 8


def test_a_server_that_names_its_time_gets_it(bench: Bench) -> None:
    bench.faulty.script(Fault(status=503, retry_after_seconds=20))
    bench.target.put(A, BytesBody(b"1"))
    assert bench.clock.slept == [20]


def test_a_server_that_asks_for_more_time_than_there_is_ends_the_call(bench: Bench) -> None:
    bench.faulty.script(Fault(status=503, retry_after_seconds=3600))
    with pytest.raises(TargetUnavailable):
        bench.target.put(A, BytesBody(b"1"))
    assert bench.clock.slept == []


def test_time_has_an_end_too() -> None:
    bench = Bench(Limits(attempts_max=1000, retry_seconds_max=100, backoff_seconds_first=1, backoff_seconds_max=30))
    bench.faulty.die(3600)
    with pytest.raises(TargetUnavailable):
        bench.target.put(A, BytesBody(b"1"))
    assert 50 <= sum(bench.clock.slept) <= 100


def test_after_hours_of_death_the_next_call_works(bench: Bench) -> None:
    bench.faulty.die(3 * 3600)
    with pytest.raises(TargetUnavailable):
        bench.target.put(A, BytesBody(b"1"))
    bench.clock.advance(3 * 3600)
    bench.target.put(A, BytesBody(b"1"))
    assert b"".join(bench.target.get(A)) == b"1"


def test_a_get_goes_on_at_the_byte_it_reached(bench: Bench) -> None:
    body = BytesBody(bytes(range(256)) * (BLOCK_BYTES // 64))
    bench.memory.put(A, body)
    bench.faulty.script(Fault(operation="get", cut_at=BLOCK_BYTES + 77), Fault(operation="get", cut_at=5))
    assert b"".join(bench.target.get(A)) == body.data
    assert b"".join(bench.target.get(A, Span(3, 100))) == body.data[3:103]


def test_a_span_that_breaks_at_its_last_byte_asks_for_nothing_more(bench: Bench) -> None:
    bench.memory.put(A, BytesBody(b"0123456789"))
    bench.faulty.script(Fault(operation="get", cut_at=4))
    assert b"".join(bench.target.get(A, Span(2, 4))) == b"2345"
    assert bench.faulty.calls == ["get"]


def test_a_transfer_that_makes_progress_is_never_given_up(bench: Bench) -> None:
    body = BytesBody(bytes(64))
    bench.memory.put(A, body)
    bench.faulty.script(Fault(operation="get", cut_at=2, times=30))
    assert b"".join(bench.target.get(A)) == body.data


def test_a_read_back_reads_again_what_it_had(bench: Bench) -> None:
    body = BytesBody(bytes(range(200)) * 20_000)
    bench.memory.put(A, body)
    bench.faulty.script(Fault(operation="read_back", cut_at=2 * BLOCK_BYTES + 9))
    assert b"".join(bench.target.read_back(A)) == body.data


def test_a_listing_that_breaks_gives_each_name_once(bench: Bench) -> None:
    names = [ObjectName(f"n{number}") for number in range(5)]
    for name in names:
        bench.memory.put(name, BytesBody(b""))
    bench.faulty.script(Fault(operation="list", lost_reply=True))
    assert list(bench.target.list()) == names


def test_a_lost_reply_is_no_failure(bench: Bench) -> None:
    bench.faulty.script(Fault(operation="put", lost_reply=True), Fault(operation="delete", lost_reply=True))
    assert bench.target.put(A, BytesBody(b"abc")).size_bytes == 3
    bench.target.delete(A)
    assert list(bench.memory.list()) == []
