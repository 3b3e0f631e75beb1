from __future__ import annotations

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.errors import Damaged, TargetUnavailable
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets.body import BytesBody
from vnafs.targets.faulty import Fault, FaultyTarget
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.verifying import verify

A = ObjectName("a")
BODY = BytesBody(bytes(range(256)) * 8192)


@pytest.fixture
def faulty() -> FaultyTarget:
    target = FaultyTarget(MemoryTarget(TargetName("t"), checksums=False), ManualClock())
    target.put(A, BODY)
    return target


@pytest.mark.parametrize(
    "fault", [Fault(wrong_byte_at=1_500_000), Fault(truncated_at=1_500_000), Fault(truncated_at=0)]
)
def test_lies_are_told_and_verify_is_not_fooled(faulty: FaultyTarget, fault: Fault) -> None:
    capabilities = faulty.probe()
    for operation in ("get", "read_back"):
        faulty.script(Fault(operation=operation, wrong_byte_at=fault.wrong_byte_at, truncated_at=fault.truncated_at))
    assert b"".join(faulty.get(A)) != BODY.data
    with pytest.raises(Damaged):
        verify(faulty, A, BODY.size_bytes, BODY.sha256, capabilities)
    verify(faulty, A, BODY.size_bytes, BODY.sha256, capabilities)


def test_a_cut_gives_exactly_so_many_bytes_and_then_breaks(faulty: FaultyTarget) -> None:
    faulty.script(Fault(cut_at=1_500_000))
    came: list[bytes] = []
    with pytest.raises(TargetUnavailable):
        came.extend(faulty.get(A))
    assert b"".join(came) == BODY.data[:1_500_000]


def test_a_stale_listing_lacks_the_last_names(faulty: FaultyTarget) -> None:
    faulty.put(ObjectName("b"), BODY)
    faulty.script(Fault(operation="list", hidden=1))
    assert list(faulty.list()) == ["a"]
    assert list(faulty.list()) == ["a", "b"]


def test_death_lasts_as_long_as_it_was_told(faulty: FaultyTarget) -> None:
    clock = ManualClock()
    target = FaultyTarget(MemoryTarget(TargetName("t")), clock)
    target.die(7200)
    clock.advance(7199)
    with pytest.raises(TargetUnavailable):
        target.probe()
    clock.advance(1)
    target.probe()


def test_slowness_passes_on_the_clock_that_was_given() -> None:
    clock = ManualClock()
    target = FaultyTarget(MemoryTarget(TargetName("t")), clock)
    target.script(Fault(operation="put", slow_seconds=90))
    target.put(A, BODY)
    assert clock.slept == [90]
