"""What a bad network and a bad day of a server do to an object target: each caught, typed, and never believed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Iterator

import pytest

from tests.contract.conftest import NAME, SMALL_PARTS, Place, azure_place, s3_place
from tests.servers.azurite import azurite_servers
from tests.servers.clocks import ManualClock
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.moto import moto_servers
from tests.servers.proxy import Fault, Proxy, proxy
from vnafs.domain.clock import SystemClock
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.errors import Damaged, ObjectMissing, TargetError, TargetRefused, TargetUnavailable
from vnafs.domain.ids import ObjectName, Span
from vnafs.targets.address import AzureAddress, parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials, S3Credentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.open import open_adapter
from vnafs.targets.port import Target
from vnafs.targets.retrying import RetryingTarget
from vnafs.targets.verifying import verify

A = ObjectName("packs/aa/aa01.pack")
BODY = BytesBody(os.urandom(2 * MEBIBYTE + 11))
LARGE = BytesBody(os.urandom(20 * MEBIBYTE + 11))
IMPATIENT = dataclasses.replace(SMALL_PARTS, connect_seconds_max=1.0, read_seconds_max=0.3)


@dataclasses.dataclass
class Line:
    """A real server, reached through a line that a test can disturb."""

    place: Place
    proxy: Proxy
    direct: Place
    """The same objects without the line between."""

    def retrying(self) -> Target:
        return RetryingTarget(self.place.open(), ManualClock(), Limits(attempts_max=4))


@pytest.fixture(params=["radosgw", "azurite"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    server = request.getfixturevalue(f"{request.param}_server")
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(proxy(server.url))
        make = s3_place if isinstance(server, S3Endpoint) else azure_place
        yield Line(make(server, stack, url=between.url), between, make(server, stack))


@pytest.fixture
def target(line: Line) -> Target:
    found = line.place.open()
    line.proxy.forgive()
    return found


def call(target: Target, operation: str) -> object:
    return {
        "put": lambda: target.put(ObjectName("packs/new"), BytesBody(b"new")),
        "put in parts": lambda: target.put(ObjectName("packs/large"), LARGE),
        "get": lambda: b"".join(target.get(A)),
        "read back": lambda: b"".join(target.read_back(A)),
        "evidence": lambda: target.evidence(A),
        "list": lambda: list(target.list()),
        "delete": lambda: target.delete(A),
    }[operation]()


OPERATIONS = ["put", "put in parts", "get", "read back", "evidence", "list", "delete"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", TargetRefused),
        (401, "", TargetRefused),
        (429, "", TargetUnavailable),
        (500, "InternalError", TargetUnavailable),
        (502, "", TargetUnavailable),
        (503, "SlowDown", TargetUnavailable),
        (503, "", TargetUnavailable),
        (501, "NotImplemented", TargetRefused),
    ],
)
def test_a_status_is_typed_whatever_was_asked(
    line: Line, target: Target, operation: str, status: int, code: str, expected: type[TargetError]
) -> None:
    target.put(A, BODY)
    line.proxy.script(Fault(answer=status, code=code, times=40))
    with pytest.raises(expected) as caught:
        call(target, operation)
    assert NAME in str(caught.value)


@pytest.mark.parametrize("operation", ["put", "evidence", "list"])
def test_retry_after_is_handed_on(line: Line, target: Target, operation: str) -> None:
    target.put(A, BODY)
    line.proxy.script(Fault(answer=503, code="SlowDown", headers=(("Retry-After", "17"),)))
    with pytest.raises(TargetUnavailable) as caught:
        call(target, operation)
    assert caught.value.fields["retry_after_seconds"] == 17


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_dead_server_is_unavailable_and_nothing_is_missing(line: Line, target: Target, operation: str) -> None:
    target.put(A, BODY)
    line.proxy.close()
    with pytest.raises(TargetUnavailable):
        call(target, operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_silent_server_is_unavailable_after_the_time_that_was_set(line: Line, operation: str) -> None:
    line.place.open().put(A, BODY)
    impatient = line.place.open(IMPATIENT)
    line.proxy.script(Fault(delay_seconds=1.5, times=10))
    with pytest.raises(TargetUnavailable):
        call(impatient, operation)


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["whole", "in parts"])
def test_an_upload_that_breaks_leaves_nothing_and_succeeds_when_repeated(
    line: Line, target: Target, body: BytesBody
) -> None:
    line.proxy.script(Fault(method="PUT", cut_request_at=MEBIBYTE))
    with pytest.raises(TargetUnavailable):
        target.put(A, body)
    assert line.proxy.waiting == 0
    with pytest.raises(ObjectMissing):
        target.evidence(A)
    assert target.put(A, body).size_bytes == body.size_bytes
    assert verify(target, A, body.size_bytes, body.sha256, target.probe()) is VerifiedBy.READ_BACK


def test_an_upload_that_breaks_is_repeated_by_the_patient_wrapper(line: Line) -> None:
    patient = line.retrying()
    line.proxy.script(Fault(method="PUT", cut_request_at=MEBIBYTE, times=2))
    assert patient.put(A, BODY).size_bytes == BODY.size_bytes
    assert line.proxy.waiting == 0


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["whole", "in parts"])
def test_a_reply_lost_after_the_commit_does_no_harm(line: Line, target: Target, body: BytesBody) -> None:
    if body is BODY:
        fault = Fault(method="PUT", contains="packs", drop_reply=True)
    elif line.place.kind == "azurite":
        fault = Fault(method="PUT", contains="comp=blocklist", drop_reply=True)
    else:
        fault = Fault(method="POST", contains="uploadId=", drop_reply=True)
    line.proxy.script(fault)
    with pytest.raises(TargetUnavailable):
        target.put(A, body)
    assert line.proxy.waiting == 0
    assert target.put(A, body).size_bytes == body.size_bytes
    assert verify(target, A, body.size_bytes, body.sha256, target.probe()) is VerifiedBy.READ_BACK


def test_a_lost_reply_to_a_delete_does_no_harm(line: Line) -> None:
    patient = line.retrying()
    patient.put(A, BODY)
    line.proxy.script(Fault(method="DELETE", drop_reply=True))
    patient.delete(A)
    assert line.proxy.waiting == 0
    assert list(patient.list()) == []


def test_an_upload_spoiled_on_the_way_is_refused_by_the_server(line: Line, target: Target) -> None:
    line.proxy.script(Fault(method="PUT", corrupt_request_at=1000))
    with pytest.raises(TargetUnavailable, match="bytes changed on the way"):
        target.put(A, BODY)
    with pytest.raises(ObjectMissing):
        target.evidence(A)


def test_a_part_spoiled_on_the_way_is_refused_by_the_server(line: Line, target: Target) -> None:
    contains = "comp=block&" if line.place.kind == "azurite" else "partNumber="
    line.proxy.script(Fault(method="PUT", contains=contains, corrupt_request_at=1000))
    with pytest.raises(TargetUnavailable, match="bytes changed on the way"):
        target.put(A, LARGE)
    assert line.proxy.waiting == 0
    with pytest.raises(ObjectMissing):
        target.evidence(A)


def test_a_download_that_breaks_never_ends_as_if_it_were_whole(line: Line, target: Target) -> None:
    target.put(A, BODY)
    line.proxy.script(Fault(method="GET", cut_reply_at=MEBIBYTE + 5, times=3))
    with pytest.raises(TargetUnavailable):
        list(target.get(A))


def test_a_download_that_breaks_goes_on_where_it_broke(line: Line) -> None:
    patient = line.retrying()
    patient.put(A, BODY)
    line.proxy.script(Fault(method="GET", cut_reply_at=MEBIBYTE + 5), Fault(method="GET", cut_reply_at=7))
    assert b"".join(patient.get(A)) == BODY.data
    assert line.proxy.waiting == 0


def test_a_range_that_breaks_goes_on_where_it_broke(line: Line) -> None:
    patient = line.retrying()
    patient.put(A, BODY)
    line.proxy.script(Fault(method="GET", cut_reply_at=MEBIBYTE + 5))
    assert b"".join(patient.get(A, Span(3, 2 * MEBIBYTE))) == BODY.data[3 : 2 * MEBIBYTE + 3]
    assert line.proxy.waiting == 0


def test_a_spoiled_download_is_not_taken_for_a_verified_copy(line: Line, target: Target) -> None:
    target.put(A, BODY)
    capabilities = target.probe()
    line.proxy.script(Fault(method="GET", corrupt_reply_at=MEBIBYTE + 5))
    with pytest.raises(Damaged):
        verify(target, A, BODY.size_bytes, BODY.sha256, capabilities)
    assert line.proxy.waiting == 0
    assert verify(target, A, BODY.size_bytes, BODY.sha256, capabilities) is VerifiedBy.READ_BACK


def test_a_listing_that_breaks_is_no_shorter_listing(line: Line, target: Target) -> None:
    target.put(A, BytesBody(b"a"))
    line.proxy.script(Fault(method="GET", cut_reply_at=60, times=3))
    with pytest.raises(TargetUnavailable):
        list(target.list())


def test_a_server_that_comes_back_is_used_again_by_the_same_target(line: Line) -> None:
    patient = line.retrying()
    patient.put(A, BODY)
    line.proxy.script(Fault(answer=503, times=3))
    assert b"".join(patient.get(A)) == BODY.data


def test_a_key_that_may_not_delete_can_still_be_probed(line: Line, target: Target) -> None:
    line.proxy.script(Fault(method="DELETE", answer=403, code="AccessDenied", times=40))
    assert target.probe().exclusive_create


def test_a_wrong_clock_is_named(radosgw_server: S3Endpoint) -> None:
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(proxy(radosgw_server.url))
        place = s3_place(radosgw_server, stack, url=between.url, kind="radosgw")
        target = place.open()
        between.script(Fault(answer=403, code="RequestTimeTooSkewed", times=2))
        with pytest.raises(TargetUnavailable, match="clock"):
            list(target.list())
        between.forgive()
        far_off = ((dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT"),)
        between.script(Fault(method="HEAD", answer=403, headers=(("Date", far_off[0]),)))
        with pytest.raises(TargetUnavailable, match="clock"):
            target.evidence(A)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_keys_are_refused(operation: str, radosgw_server: S3Endpoint, azurite_server: AzureEndpoint) -> None:
    s3 = parse_address(radosgw_server.target_url(radosgw_server.make_bucket("contract"), "wrong"))
    azure = parse_address(azurite_server.target_url(azurite_server.make_container("contract"), "wrong"))
    for address, credentials in (
        (s3, S3Credentials("test", "not the secret")),
        (s3, S3Credentials("nobody", "testtest")),
        (azure, AzureCredentials(account_key="AAAA" + azurite_server.account_key[4:])),
    ):
        target = open_adapter(NAME, address, credentials, SystemClock(), SMALL_PARTS)
        with contextlib.closing(target), pytest.raises(TargetRefused):
            call(target, operation)


@pytest.mark.parametrize("operation", ["put", "put in parts", "get", "read back", "evidence", "list"])
def test_a_missing_bucket_is_refused_and_no_object_is_missing(
    operation: str, radosgw_server: S3Endpoint, moto_server: S3Endpoint, azurite_server: AzureEndpoint
) -> None:
    cases = [
        (parse_address(server.target_url("no-such-bucket")), S3Credentials("test", "testtest"))
        for server in (radosgw_server, moto_server)
    ]
    azure = parse_address(azurite_server.target_url("no-such-container"))
    for address, credentials in (*cases, (azure, AzureCredentials(account_key=azurite_server.account_key))):
        target = open_adapter(NAME, address, credentials, SystemClock(), SMALL_PARTS)
        with contextlib.closing(target), pytest.raises(TargetRefused, match="does not exist"):
            call(target, operation)


def test_a_killed_server_is_unavailable() -> None:
    with contextlib.ExitStack() as stack:
        moto_process, moto = stack.enter_context(moto_servers())
        azurite_process, azurite = stack.enter_context(azurite_servers(in_memory=True))
        targets = [s3_place(moto, stack, kind="moto").open(), azure_place(azurite, stack).open()]
        for target in targets:
            target.put(A, BODY)
        moto_process.stop()
        azurite_process.stop()
        for target in targets:
            for operation in OPERATIONS:
                with pytest.raises(TargetUnavailable):
                    call(target, operation)


# -- checksums that a server checks: moto behind a line that does what Amazon does ---------------------------


@pytest.fixture
def checking(moto_server: S3Endpoint) -> Iterator[Line]:
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(proxy(moto_server.url, checks_sha256=True))
        place = s3_place(moto_server, stack, url=between.url, kind="checking")
        yield Line(place, between, place)


def test_a_server_that_checks_sha256_is_believed(checking: Line) -> None:
    target = checking.place.open()
    capabilities = target.probe()
    assert capabilities.checksum_sha256
    assert target.put(A, BODY).sha256 == BODY.sha256
    assert target.evidence(A).sha256 == BODY.sha256
    assert verify(target, A, BODY.size_bytes, BODY.sha256, capabilities) is VerifiedBy.TARGET_CHECKSUM


def test_of_a_put_in_parts_it_vouches_for_no_sha256_of_the_whole(checking: Line) -> None:
    target = checking.place.open()
    capabilities = target.probe()
    assert target.put(A, LARGE).sha256 is None
    assert target.evidence(A).sha256 is None
    assert verify(target, A, LARGE.size_bytes, LARGE.sha256, capabilities) is VerifiedBy.READ_BACK


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["whole", "in parts"])
def test_a_spoiled_upload_is_refused_by_its_sha256(checking: Line, body: BytesBody) -> None:
    target = checking.place.open()
    target.probe()
    wrong = dataclasses.replace(body, data=body.data[:-1] + bytes([body.data[-1] ^ 1]))

    class Lying:
        size_bytes = body.size_bytes
        sha256 = body.sha256
        open = wrong.open

    if body is BODY:
        with pytest.raises(TargetUnavailable, match="bytes changed on the way"):
            target.put(A, Lying())
        with pytest.raises(ObjectMissing):
            target.evidence(A)
    else:
        target.put(A, Lying())
        with pytest.raises(Damaged):
            verify(target, A, body.size_bytes, body.sha256, target.probe())


def test_a_checksum_that_differs_from_ours_is_damage(checking: Line) -> None:
    target = checking.place.open()
    capabilities = target.probe()
    other = BytesBody(BODY.data[:-1] + bytes([BODY.data[-1] ^ 1]))
    target.put(A, other)
    with pytest.raises(Damaged):
        verify(target, A, BODY.size_bytes, BODY.sha256, capabilities)


def test_an_echoed_checksum_of_a_server_that_checks_nothing_is_not_believed(moto_server: S3Endpoint) -> None:
    with contextlib.ExitStack() as stack:
        target = s3_place(moto_server, stack).open()
        target.put(A, BODY)
        assert target.evidence(A).sha256 is None


# -- buckets with a past -------------------------------------------------------------------------------------


def test_versioning_and_object_lock_are_seen(radosgw_server: S3Endpoint) -> None:
    bucket = radosgw_server.make_bucket(ObjectLockEnabledForBucket=True)
    with contextlib.ExitStack() as stack:
        found = s3_place(radosgw_server, stack, bucket=bucket, kind="locked").open().probe()
    assert found.versioning
    assert found.object_lock


def test_unfinished_uploads_are_aborted_after_a_day_and_only_ours(radosgw_server: S3Endpoint) -> None:
    server = radosgw_server
    bucket, client = server.make_bucket(), server.client()
    tomorrow = ManualClock(dt.datetime.now(dt.UTC).timestamp() + 25 * 3600)
    address = parse_address(server.target_url(bucket, "ours"))
    for key in ("ours/packs/x", "theirs/packs/x"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    for clock, left in ((SystemClock(), ["ours/packs/x", "theirs/packs/x"]), (tomorrow, ["theirs/packs/x"])):
        target = open_adapter(NAME, address, S3Credentials("test", "testtest"), clock, SMALL_PARTS)
        with contextlib.closing(target):
            target.probe()
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        assert [upload["Key"] for upload in uploads] == left


@pytest.mark.parametrize("kind", ["radosgw", "moto"])
def test_a_failed_put_in_parts_leaves_no_unfinished_upload(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    bucket, client = server.make_bucket(), server.client()
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(proxy(server.url))
        target = s3_place(server, stack, bucket=bucket, url=between.url).open()
        between.script(Fault(method="PUT", contains="partNumber=2", answer=503))
        with pytest.raises(TargetUnavailable):
            target.put(A, LARGE)
    assert between.waiting == 0
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_folder_markers_of_a_console_are_no_objects_of_ours(radosgw_server: S3Endpoint) -> None:
    bucket = radosgw_server.make_bucket()
    address = parse_address(radosgw_server.target_url(bucket, "ours"))
    radosgw_server.client().put_object(Bucket=bucket, Key="ours/packs/", Body=b"")
    radosgw_server.client().put_object(Bucket=bucket, Key="ours/A name with spaces", Body=b"")
    target = open_adapter(NAME, address, S3Credentials("test", "testtest"), SystemClock(), SMALL_PARTS)
    with contextlib.closing(target):
        assert list(target.list()) == []


def test_azure_addresses_are_told_apart_from_buckets(azurite_server: AzureEndpoint) -> None:
    address = parse_address(azurite_server.target_url("container", "a/b"))
    assert isinstance(address, AzureAddress)
    assert address.account_url == f"{azurite_server.url}/{azurite_server.account}"
