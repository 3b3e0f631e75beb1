from __future__ import annotations

import threading

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets.body import BytesBody
from vnafs.targets.limits import Limits
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.throttled import ThrottledTarget, TokenBucket

A = ObjectName("packs/a")


def test_a_minute_carries_a_minutes_worth() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000, clock)
    for _ in range(60):
        bucket.take(1000)
    assert 58 <= clock.monotonic() <= 60


def test_an_idle_hour_saves_up_one_second() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000, clock)
    clock.advance(3600)
    for _ in range(10):
        bucket.take(1000)
    assert 3607 <= clock.monotonic() <= 3610


def test_what_is_larger_than_a_second_passes_and_is_paid_for_by_the_next() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000, clock)
    bucket.take(11_000)
    assert clock.slept == []
    bucket.take(1)
    assert clock.slept == [10]


def test_puts_and_gets_share_one_limit() -> None:
    clock = ManualClock()
    target = ThrottledTarget(MemoryTarget(TargetName("t")), clock, Limits(bytes_per_second_max=1000))
    target.put(A, BytesBody(bytes(5000)))
    assert len(b"".join(target.get(A))) == 5000
    target.put(ObjectName("b"), BytesBody(b"1"))
    assert clock.monotonic() == pytest.approx(9)


class Counting(MemoryTarget):
    """Counts how many calls are inside at once."""

    def __init__(self) -> None:
        super().__init__(TargetName("t"))
        self.inside = 0
        self.most = 0
        self.counting = threading.Lock()
        self.go = threading.Event()

    def evidence(self, name: ObjectName):  # type: ignore[no-untyped-def]  # the parent's
        with self.counting:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.go.wait(10)
        with self.counting:
            self.inside -= 1
        return super().evidence(name)


def test_no_more_calls_at_once_than_allowed() -> None:
    inner = Counting()
    inner.put(A, BytesBody(b"1"))
    target = ThrottledTarget(inner, ManualClock(), Limits(requests_max=3))
    threads = [threading.Thread(target=target.evidence, args=(A,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        if inner.inside == 3:
            break
        threading.Event().wait(0.005)
    inner.go.set()
    for thread in threads:
        thread.join()
    assert inner.most == 3


def test_a_transfer_that_is_given_up_returns_its_place() -> None:
    inner = MemoryTarget(TargetName("t"))
    inner.put(A, BytesBody(bytes(3 << 20)))
    target = ThrottledTarget(inner, ManualClock(), Limits(requests_max=1))
    transfer = target.get(A)
    next(transfer)
    transfer.close()  # type: ignore[attr-defined]  # it is a generator
    assert target.evidence(A).size_bytes == 3 << 20
