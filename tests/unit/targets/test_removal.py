"""A second credential, and what is wrong and has to go."""

from __future__ import annotations

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import ConfigurationInvalid, ObjectLocked, ObjectMissing, ObjectStays, TargetUnavailable
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.domain.locks import Lock, LockMode, Powers
from vnafs.targets.address import parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.discarding import discard
from vnafs.targets.faulty import Fault, FaultyTarget
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.open import check_lock
from vnafs.targets.port import Target
from vnafs.targets.removal import RemovalTarget

NAME = TargetName("t")
A = ObjectName("packs/aa/aa01.pack")


class Pair:
    """One place, and both ways to it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.memory = MemoryTarget(NAME, clock=self.clock)
        self.daily = FaultyTarget(self.memory, self.clock)
        self.removal = FaultyTarget(self.memory, self.clock)
        self.opened: list[Capabilities | None] = []
        self.target = RemovalTarget(self.daily, self._open)

    def _open(self, known: Capabilities | None) -> Target:
        self.opened.append(known)
        return self.removal


def test_everything_but_deleting_is_the_daily_credentials() -> None:
    pair = Pair()
    target = pair.target
    known = target.probe()
    target.put(A, BytesBody(b"1"))
    assert b"".join(target.get(A)) == b"".join(target.read_back(A)) == b"1"
    target.evidence(A)
    target.rehydrate(A)
    target.retain(A, Instant(1))
    target.retained(A)
    target.powers()
    assert list(target.list()) == [A]
    assert pair.opened == []
    target.delete(A)
    target.delete(A)
    assert pair.opened == [known]
    assert pair.removal.calls == ["delete", "delete"]
    assert "delete" not in pair.daily.calls
    with pytest.raises(ObjectMissing):
        target.evidence(A)


def test_what_is_left_is_seen_with_the_second_credential_where_the_daily_one_may_not() -> None:
    pair = Pair()
    pair.target.put(A, BytesBody(b"1"))
    assert pair.target.exists(A)
    assert pair.opened == []
    pair.daily.script(Fault(operation="exists", status=403, times=2))
    assert pair.target.exists(A)
    pair.target.delete(A)
    assert not pair.target.exists(A)
    assert pair.removal.calls == ["exists", "delete", "exists"]


def test_a_refusal_because_of_a_lock_is_told_as_such_whoever_can_see_it() -> None:
    pair = Pair()
    pair.target.put(A, BytesBody(b"1"))
    until = Instant(pair.clock.now() + 100 * NANOSECONDS)
    pair.target.retain(A, until)
    pair.removal.script(Fault(operation="delete", status=403))
    with pytest.raises(ObjectLocked) as caught:
        pair.target.delete(A)
    assert caught.value.fields["until_ns"] == until


def test_what_may_not_go_stays_and_what_cannot_be_asked_is_asked_again() -> None:
    pair = Pair()
    pair.target.put(A, BytesBody(b"1"))
    pair.removal.script(Fault(operation="delete", status=403))
    with pytest.raises(ObjectStays, match="removal_credentials_file"):
        discard(pair.target, A)
    pair.removal.script(Fault(operation="delete", status=503))
    with pytest.raises(TargetUnavailable):
        discard(pair.target, A)
    discard(pair.target, A)
    assert list(pair.target.list()) == []


@pytest.mark.parametrize(
    ("url", "seconds", "mode", "key"),
    [
        ("file:///srv/copies", 60, "governance", r"target\[0\]\.lock_seconds = 60"),
        ("azure://account/container", 60, "governance", r"target\[0\]\.lock_seconds = 60: .* policy on the container"),
        ("s3://bucket", 60, "firm", r"target\[0\]\.lock_mode = 'firm'"),
        ("s3://bucket", 0, "firm", r"target\[0\]\.lock_mode = 'firm'"),
    ],
)
def test_a_lock_that_cannot_be_is_refused_by_key_and_value(url: str, seconds: int, mode: str, key: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=key):
        check_lock(parse_address(url), seconds, mode, file="vnafs.toml", key="target[0]")


def test_no_lock_is_asked_for_unless_one_is() -> None:
    assert check_lock(parse_address("file:///srv"), 0, "governance", file="", key="") is None
    found = check_lock(parse_address("s3://bucket"), 60, "compliance", file="", key="")
    assert found == Lock(60, LockMode.COMPLIANCE)


def test_a_lock_is_worn_when_less_than_half_is_left() -> None:
    lock, now = Lock(100), Instant(1_000 * NANOSECONDS)
    assert lock.until(now) == 1_101 * NANOSECONDS
    assert lock.is_worn(None, now)
    assert lock.is_worn(Instant(now + 49 * NANOSECONDS), now)
    assert not lock.is_worn(Instant(now + 51 * NANOSECONDS), now)


def test_nothing_is_warned_of_what_nobody_could_tell() -> None:
    assert Powers().warnings(locks=True, versioning=True) == []
    unable = Powers(can_lock=False)
    assert unable.warnings(locks=False, versioning=False) == []
    assert "s3:PutObjectRetention" in unable.warnings(locks=True, versioning=True)[0]
