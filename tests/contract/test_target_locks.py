"""Locks, versions, and a credential that cannot delete: what targets promise, and what a real server refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from tests.contract.conftest import NAME, SMALL_PARTS, azure_place, directory_place, s3_place
from tests.servers.clocks import ManualClock
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.policies import daily_policy
from tests.servers.radosgw import DAILY, DAILY_SECRET_KEY
from vnafs.domain.clock import NANOSECONDS, Clock, Instant, SystemClock
from vnafs.domain.errors import ObjectLocked, ObjectMissing, ObjectStays, TargetRefused
from vnafs.domain.ids import ObjectName
from vnafs.domain.locks import FOR_EVER, Lock, LockMode, Powers
from vnafs.targets.address import parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials, S3Credentials
from vnafs.targets.discarding import discard
from vnafs.targets.faulty import FaultyTarget
from vnafs.targets.limits import MEBIBYTE
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.open import open_adapter, open_target
from vnafs.targets.port import Target
from vnafs.targets.retrying import RetryingTarget
from vnafs.targets.s3_versions import VERSIONS_AT_ONCE
from vnafs.targets.throttled import ThrottledTarget
from vnafs.targets.verifying import verify

A = ObjectName("packs/aa/aa01.pack")
B = ObjectName("packs/ab/ab01.pack")
OURS = BytesBody(b"what was acknowledged")
SHORT = Lock(2)
OWNER = S3Credentials("test", "testtest")
APPLIANCE = S3Credentials(DAILY, DAILY_SECRET_KEY)


@dataclasses.dataclass
class Vault:
    """A bucket with Object Lock of radosgw, seen by its owner and by the daily credential of README's policy."""

    server: S3Endpoint
    bucket: str
    stack: contextlib.ExitStack

    def open(self, credentials: S3Credentials = APPLIANCE, **options: Any) -> Target:
        address = parse_address(self.server.target_url(self.bucket, "p"))
        target = open_target(NAME, address, credentials, SystemClock(), SMALL_PARTS, **options)
        self.stack.callback(target.close)
        return target

    @property
    def owner(self) -> Any:
        return self.server.client()

    @property
    def attacker(self) -> Any:
        return dataclasses.replace(
            self.server, access_key_id=APPLIANCE.access_key_id, secret_access_key=APPLIANCE.secret_access_key
        ).client()

    def versions(self, prefix: str = "") -> list[str]:
        page = self.owner.list_object_versions(Bucket=self.bucket, Prefix=prefix)
        return [row["Key"] for row in (*page.get("Versions", []), *page.get("DeleteMarkers", []))]


@pytest.fixture
def vault(radosgw_server: S3Endpoint) -> Iterator[Vault]:
    bucket = radosgw_server.make_bucket(ObjectLockEnabledForBucket=True)
    radosgw_server.client().put_bucket_policy(Bucket=bucket, Policy=daily_policy(bucket, DAILY))
    with contextlib.ExitStack() as stack:
        yield Vault(radosgw_server, bucket, stack)


def whole(target: Target, name: ObjectName) -> bytes:
    return b"".join(target.get(name))


# -- locks, on every kind that has them ----------------------------------------------------------------------


@dataclasses.dataclass
class Locking:
    """A target that locks each object for two seconds, and how to let time pass."""

    target: Target
    clock: Clock

    def until(self, instant: Instant) -> None:
        self.clock.sleep(max(0.0, (instant - self.clock.now()) / NANOSECONDS) + 1.1)


@pytest.fixture(params=["memory", "faulty", "retrying", "throttled", "radosgw", "moto"])
def locking(request: pytest.FixtureRequest) -> Iterator[Locking]:
    kind = str(request.param)
    clock = ManualClock()
    memory = MemoryTarget(NAME, clock=clock, lock=SHORT)
    with contextlib.ExitStack() as stack:
        if kind in {"radosgw", "moto"}:
            server: S3Endpoint = request.getfixturevalue(f"{kind}_server")
            address = parse_address(server.target_url(server.make_bucket(ObjectLockEnabledForBucket=True), "p"))
            target = open_adapter(NAME, address, OWNER, SystemClock(), SMALL_PARTS, lock=SHORT)
            stack.callback(target.close)
            yield Locking(target, SystemClock())
        else:
            wrapped: dict[str, Target] = {
                "memory": memory,
                "faulty": FaultyTarget(memory, clock),
                "retrying": RetryingTarget(memory, clock, SMALL_PARTS),
                "throttled": ThrottledTarget(memory, clock, SMALL_PARTS),
            }
            yield Locking(wrapped[kind], clock)


def test_what_is_put_is_locked_and_stays_until_the_lock_ends(locking: Locking) -> None:
    target = locking.target
    target.put(A, OURS)
    until = target.retained(A)
    assert until is not None
    assert until - locking.clock.now() <= 3 * NANOSECONDS
    with pytest.raises(ObjectLocked) as caught:
        target.delete(A)
    assert caught.value.fields["until_ns"] == until
    assert whole(target, A) == OURS.data
    locking.until(until)
    target.delete(A)
    with pytest.raises(ObjectMissing):
        target.evidence(A)


def test_a_lock_is_extended_and_never_shortened(locking: Locking) -> None:
    target = locking.target
    target.put(A, OURS)
    first = target.retained(A)
    assert first is not None
    later = Instant(first + 2 * NANOSECONDS)
    target.retain(A, later)
    assert target.retained(A) == later
    target.retain(A, first)
    assert target.retained(A) == later


def test_locks_of_what_is_missing_are_missing(locking: Locking) -> None:
    with pytest.raises(ObjectMissing):
        locking.target.retained(A)
    with pytest.raises(ObjectMissing):
        locking.target.retain(A, locking.clock.now())


@pytest.mark.parametrize("kind", ["memory", "directory", "azurite", "radosgw"])
def test_a_target_without_locks_says_so(kind: str, request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            target: Target = MemoryTarget(NAME)
        elif kind == "directory":
            target = directory_place(os.path.join(tmp_path, "target"), stack).open()
        else:
            server = request.getfixturevalue(f"{kind}_server")
            make = azure_place if isinstance(server, AzureEndpoint) else s3_place
            target = make(server, stack).open()
        target.put(A, OURS)
        assert target.retained(A) is None
        with pytest.raises(TargetRefused, match="lock"):
            target.retain(A, Instant(SystemClock().now() + NANOSECONDS))
        target.delete(A)


def test_a_lock_that_a_bucket_cannot_give_is_refused_before_anything_is_put(radosgw_server: S3Endpoint) -> None:
    address = parse_address(radosgw_server.target_url(radosgw_server.make_bucket(), "p"))
    with contextlib.closing(open_adapter(NAME, address, OWNER, SystemClock(), SMALL_PARTS, lock=SHORT)) as target:
        with pytest.raises(TargetRefused, match=r"lock_seconds .* Set lock_seconds = 0"):
            target.put(A, OURS)
        assert list(target.list()) == []


# -- on a real server with Object Lock -----------------------------------------------------------------------


def test_an_object_in_parts_is_locked_too(vault: Vault) -> None:
    target = vault.open(lock=Lock(30))
    target.put(A, BytesBody(os.urandom(9 * MEBIBYTE)))
    assert target.retained(A) is not None


def test_a_lock_in_compliance_mode_is_put_and_extended_as_such(vault: Vault) -> None:
    target = vault.open(lock=Lock(2, LockMode.COMPLIANCE))
    target.put(A, OURS)
    target.retain(A, Instant(SystemClock().now() // NANOSECONDS * NANOSECONDS + 4 * NANOSECONDS))
    assert vault.attacker.head_object(Bucket=vault.bucket, Key=f"p/{A}")["ObjectLockMode"] == "COMPLIANCE"


def test_a_legal_hold_is_a_lock_without_an_end(vault: Vault) -> None:
    target = vault.open(OWNER)
    target.put(A, OURS)
    vault.owner.put_object_legal_hold(Bucket=vault.bucket, Key=f"p/{A}", LegalHold={"Status": "ON"})
    with pytest.raises(ObjectLocked, match="somebody lifts it"):
        target.delete(A)
    vault.owner.put_object_legal_hold(Bucket=vault.bucket, Key=f"p/{A}", LegalHold={"Status": "OFF"})
    target.delete(A)


def test_the_daily_credential_puts_reads_and_is_probed_and_leaves_a_fixed_few(vault: Vault) -> None:
    target = vault.open()
    found = target.probe()
    assert found.object_lock
    assert found.multipart
    left = set(vault.versions("p/probe/"))
    vault.open().probe()
    target.powers()
    vault.open().powers()
    assert set(vault.versions("p/probe/")) == left | {"p/probe/kept/powers"}
    assert len(left) <= 8
    target.put(A, OURS)
    verify(target, A, OURS.size_bytes, OURS.sha256, found)
    assert [name for name in target.list() if not name.startswith("probe/")] == [A]


def test_what_is_wrong_and_may_not_be_deleted_stays_and_is_told(vault: Vault) -> None:
    target = vault.open()
    target.put(A, OURS)
    with pytest.raises(ObjectStays, match="removal_credentials_file"):
        discard(target, A)
    assert whole(target, A) == OURS.data


def test_the_second_credential_deletes_and_nothing_else(vault: Vault) -> None:
    target = vault.open(removal=OWNER)
    target.put(A, OURS)
    assert target.powers().can_delete is False
    target.delete(A)
    assert vault.versions(f"p/{A}") == []


def test_the_second_credential_is_told_until_when_a_lock_lasts_also_of_what_it_may_not_look_at(vault: Vault) -> None:
    target = vault.open(removal=OWNER, lock=Lock(30))
    target.put(A, OURS)
    with pytest.raises(ObjectLocked) as caught:
        target.delete(A)
    assert caught.value.fields["until_ns"] == target.retained(A)
    with pytest.raises(ObjectLocked) as caught:
        vault.open(OWNER).delete(A)
    assert caught.value.fields["until_ns"] == FOR_EVER
    with pytest.raises(ObjectStays, match="locked until"):
        discard(target, A)
    assert whole(target, A) == OURS.data


# -- what is written over, or hidden -------------------------------------------------------------------------


def test_what_is_written_over_or_hidden_is_read_as_it_was(vault: Vault) -> None:
    target = vault.open()
    for name in (A, B):
        target.put(name, OURS)
    vault.attacker.put_object(Bucket=vault.bucket, Key=f"p/{A}", Body=b"pay us" * 10)
    for name in (A, B):
        vault.owner.delete_object(Bucket=vault.bucket, Key=f"p/{name}")
    for reader in (target, vault.open()):  # whoever has read it before, and whoever never has
        assert list(reader.list("packs/")) == [A, B]
        for name in (A, B):
            assert whole(reader, name) == OURS.data
            verify(reader, name, OURS.size_bytes, OURS.sha256, reader.probe())
        assert reader.put(A, OURS).size_bytes == OURS.size_bytes
        assert whole(reader, A) == OURS.data


@pytest.mark.parametrize("kind", ["radosgw", "moto"])
def test_however_often_it_is_written_over_the_first_is_read(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Endpoint = request.getfixturevalue(f"{kind}_server")
    bucket, client = server.make_bucket(ObjectLockEnabledForBucket=True), server.client()
    address = parse_address(server.target_url(bucket, "p"))
    with contextlib.closing(open_adapter(NAME, address, OWNER, SystemClock(), SMALL_PARTS)) as target:
        target.put(A, OURS)
        target.put(ObjectName(f"{A}.later"), OURS)
        for number in range(VERSIONS_AT_ONCE * 2 + 3):
            client.put_object(Bucket=bucket, Key=f"p/{A}", Body=b"pay us %d" % number)
            client.delete_object(Bucket=bucket, Key=f"p/{A}")
    with contextlib.closing(open_adapter(NAME, address, OWNER, SystemClock(), SMALL_PARTS)) as target:
        assert whole(target, A) == OURS.data
        assert list(target.list("packs/")) == [A, f"{A}.later"]
        target.delete(A)
        assert list(target.list("packs/")) == [f"{A}.later"]
        with pytest.raises(ObjectMissing):
            target.evidence(A)
        target.put(A, OURS)


def test_removing_what_was_written_over_never_makes_the_rubbish_the_object(vault: Vault) -> None:
    target = vault.open(OWNER, lock=Lock(3))
    target.put(A, OURS)
    vault.owner.put_object(Bucket=vault.bucket, Key=f"p/{A}", Body=b"pay us")
    with pytest.raises(ObjectLocked) as caught:
        target.delete(A)
    assert whole(target, A) == OURS.data
    assert len(vault.versions(f"p/{A}")) == 1
    time.sleep(max(0.0, (caught.value.fields["until_ns"] - SystemClock().now()) / NANOSECONDS) + 1.1)  # type: ignore[operator]
    target.delete(A)
    assert vault.versions(f"p/{A}") == []


def test_whatever_is_left_under_a_name_exists_a_version_and_a_delete_marker_alike(vault: Vault) -> None:
    target = vault.open()
    owner = vault.open(OWNER)
    target.put(A, OURS)
    vault.owner.delete_object(Bucket=vault.bucket, Key=f"p/{A}")
    assert target.exists(A), "it is hidden, and its bytes are there"
    owner.delete(A)
    assert not target.exists(A)
    vault.owner.delete_object(Bucket=vault.bucket, Key=f"p/{A}")
    assert target.exists(A), "nothing but a delete marker"
    owner.delete(A)
    assert not target.exists(A)


def test_versions_from_before_versioning_was_suspended_exist(radosgw_server: S3Endpoint) -> None:
    bucket = radosgw_server.make_bucket()
    address = parse_address(radosgw_server.target_url(bucket, "p"))
    client = radosgw_server.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=bucket, Key=f"p/{A}", Body=OURS.data)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    with contextlib.closing(open_adapter(NAME, address, OWNER, SystemClock(), SMALL_PARTS)) as target:
        target.probe()
        client.delete_object(Bucket=bucket, Key=f"p/{A}")
        assert list(target.list("packs/")) == []
        assert target.exists(A)


def test_a_bucket_whose_versions_may_not_be_read_is_read_as_ever(radosgw_server: S3Endpoint) -> None:
    bucket = radosgw_server.make_bucket(ObjectLockEnabledForBucket=True)
    for forbidden in ('"s3:ListBucketVersions", ', '"s3:GetObjectVersion", '):
        policy = daily_policy(bucket, DAILY).replace(forbidden, "")
        radosgw_server.client().put_bucket_policy(Bucket=bucket, Policy=policy)
        with contextlib.closing(
            open_adapter(
                NAME, parse_address(radosgw_server.target_url(bucket, "p")), APPLIANCE, SystemClock(), SMALL_PARTS
            )
        ) as target:
            target.put(A, OURS)
            assert whole(target, A) == OURS.data
            assert A in list(target.list())
            if "List" in forbidden:
                with pytest.raises(TargetRefused, match="ListBucketVersions"):  # nobody can say that nothing is left
                    target.exists(A)


# -- what a credential can do --------------------------------------------------------------------------------


def test_a_credential_that_can_too_much_is_told_apart(vault: Vault) -> None:
    owner, daily = vault.open(OWNER).powers(), vault.open().powers()
    assert owner == Powers(
        can_delete=True, can_remove_versions=True, can_lock=True, can_shorten=True, can_configure=True
    )
    assert daily == Powers(
        can_delete=False, can_remove_versions=False, can_lock=True, can_shorten=False, can_configure=False
    )
    assert len(owner.warnings(locks=True, versioning=True)) == 3
    assert daily.warnings(locks=True, versioning=True) == []


def test_trying_a_credential_changes_nothing(vault: Vault) -> None:
    client = vault.owner
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    setting: dict[str, Any] = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    client.put_object_lock_configuration(Bucket=vault.bucket, ObjectLockConfiguration=setting)
    vault.open(OWNER).put(A, OURS)
    before = client.head_object(Bucket=vault.bucket, Key=f"p/{A}")["ObjectLockRetainUntilDate"]
    assert vault.open(OWNER).powers().default_retention == "1 days, governance"
    found = client.get_object_lock_configuration(Bucket=vault.bucket)["ObjectLockConfiguration"]
    assert found == setting
    assert client.get_bucket_versioning(Bucket=vault.bucket)["Status"] == "Enabled"
    assert client.head_object(Bucket=vault.bucket, Key=f"p/{A}")["ObjectLockRetainUntilDate"] == before
    assert before > dt.datetime.now(dt.UTC)


def test_hiding_is_told_from_deleting(vault: Vault) -> None:
    policy = daily_policy(vault.bucket, DAILY).replace('["s3:DeleteObject", ', "[")
    policy = policy.replace('["s3:GetObject", ', '["s3:GetObject", "s3:DeleteObject", ')
    vault.owner.put_bucket_policy(Bucket=vault.bucket, Policy=policy)
    found = vault.open().powers()
    assert (found.can_delete, found.can_remove_versions) == (True, False)
    assert "delete markers" in found.warnings(locks=True, versioning=True)[0]


def test_where_versions_are_not_kept_deleting_is_deleting(radosgw_server: S3Endpoint) -> None:
    with contextlib.ExitStack() as stack:
        found = s3_place(radosgw_server, stack).open().powers()
    assert found == Powers(can_delete=True)
    assert "destroy" in found.warnings(locks=False, versioning=False)[0]


def test_an_azure_token_that_may_not_delete_is_probed_and_leaves_a_fixed_few(azurite_server: AzureEndpoint) -> None:
    server = azurite_server
    container = server.make_container()
    token = generate_container_sas(
        server.account,
        container,
        server.account_key,
        permission=ContainerSasPermissions(read=True, add=True, create=True, write=True, list=True),
        expiry=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
    )
    address = parse_address(server.target_url(container, "p"))
    target = open_target(NAME, address, AzureCredentials(sas_token=token), SystemClock(), SMALL_PARTS)
    with contextlib.closing(target):
        found = target.probe()
        assert found.exclusive_create
        assert found.exclusive_create_multipart
        left = list(target.list("probe/"))
        assert len(left) <= 3
        assert target.probe() == found
        assert target.powers() == Powers(can_delete=False)
        assert list(target.list("probe/")) == left
        target.put(A, OURS)
        with pytest.raises(ObjectStays):
            discard(target, A)
    removal = AzureCredentials(account_key=server.account_key)
    target = open_target(NAME, address, AzureCredentials(sas_token=token), SystemClock(), SMALL_PARTS, removal=removal)
    with contextlib.closing(target):
        target.delete(A)
        assert A not in list(target.list())


def test_an_azure_credential_that_can_delete_is_told(azurite_server: AzureEndpoint) -> None:
    with contextlib.ExitStack() as stack:
        target = azure_place(azurite_server, stack).open()
        assert target.powers() == Powers(can_delete=True)
        assert list(target.list()) == []
