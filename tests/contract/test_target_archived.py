"""Archive classes on real servers: asked back once, refused until then, read afterwards."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator

import pytest
from azure.storage.blob import ContainerClient

from tests.contract.conftest import Place
from tests.servers.azurite import azurite
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.moto import moto
from tests.servers.proxy import Fault, proxy
from vnafs.domain.clock import SystemClock
from vnafs.domain.errors import ObjectArchived, ObjectMissing
from vnafs.domain.ids import ObjectName, Span, TargetName
from vnafs.domain.rehydration import READY, Thaw
from vnafs.targets.address import parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import find_credentials
from vnafs.targets.open import open_target
from vnafs.targets.port import Target

A = ObjectName("packs/aa/aa01.pack")
DATA = os.urandom(5000)


def test_what_is_in_no_archive_class_is_ready(place: Place) -> None:
    target = place.open()
    target.put(A, BytesBody(DATA))
    assert target.rehydrate(A) == READY


def test_a_missing_object_cannot_be_asked_back(target: Target) -> None:
    with pytest.raises(ObjectMissing):
        target.rehydrate(A)


@pytest.fixture(scope="module")
def slow_moto() -> Iterator[S3Endpoint]:
    """Of its own: what was asked back is there after three looks."""
    with moto() as server:
        rule = {"model_name": "s3::keyrestore", "transition": {"progression": "manual", "times": 4}}
        address = f"{server.url}/moto-api/state-manager/set-transition"
        urllib.request.urlopen(urllib.request.Request(address, json.dumps(rule).encode())).close()
        yield server


@pytest.mark.parametrize(
    ("kind", "hours", "days"),
    [("GLACIER", 5, 7), ("DEEP_ARCHIVE", 12, 7), ("GLACIER_IR", 0, None), ("STANDARD_IA", 0, None)],
)
def test_s3_objects_in_archive_classes_are_asked_back_once(
    slow_moto: S3Endpoint, kind: str, hours: int, days: int | None
) -> None:
    bucket = slow_moto.make_bucket()
    address = parse_address(slow_moto.target_url(bucket))
    credentials = find_credentials(address, environ=slow_moto.environ())
    target = open_target(TargetName("t"), address, credentials, SystemClock())
    target.put(A, BytesBody(DATA))
    client = slow_moto.client()
    client.copy_object(Bucket=bucket, Key=A, CopySource={"Bucket": bucket, "Key": A}, StorageClass=kind)
    if days is None:
        assert b"".join(target.get(A)) == DATA
        assert target.rehydrate(A) == READY
        return
    for span in (Span(), Span(5, 10)):
        with pytest.raises(ObjectArchived):
            list(target.get(A, span))
    assert target.evidence(A).size_bytes == len(DATA)
    asked = target.rehydrate(A)
    assert (asked.thaw, asked.seconds_expected) == (Thaw.ASKED, hours * 3600)
    assert target.rehydrate(A).thaw is Thaw.PENDING
    while target.rehydrate(A) != READY:
        pass
    assert b"".join(target.get(A, Span(5, 10))) == DATA[5:15]
    target.close()


def test_azure_blobs_in_the_archive_tier_are_asked_back_once() -> None:
    with azurite(in_memory=True) as server:
        container = server.make_container()
        address = parse_address(server.target_url(container))
        credentials = find_credentials(address, environ=server.environ())
        target = open_target(TargetName("t"), address, credentials, SystemClock())
        target.put(A, BytesBody(DATA))
        with ContainerClient(f"{server.url}/{server.account}", container, credential=server.account_key) as client:
            client.get_blob_client(A).set_standard_blob_tier("Archive")
        for span in (Span(), Span(5, 10)):
            with pytest.raises(ObjectArchived):
                list(target.get(A, span))
        assert target.evidence(A).size_bytes == len(DATA)
        assert target.rehydrate(A).thaw is Thaw.ASKED
        assert target.rehydrate(A) == READY  # the emulator has it back at once
        assert b"".join(target.get(A)) == DATA
        target.close()


def test_what_real_services_say_while_it_is_on_its_way_is_understood(
    moto_server: S3Endpoint, azurite_server: AzureEndpoint
) -> None:
    """The emulators never say these; the services document them."""
    bucket, container = moto_server.make_bucket(), azurite_server.make_container()
    client = moto_server.client()
    client.put_object(Bucket=bucket, Key=A, Body=DATA, StorageClass="GLACIER")
    with proxy(moto_server.url) as s3, proxy(azurite_server.url) as azure:
        address = parse_address(moto_server.target_url(bucket, "", s3.url))
        target = open_target(
            TargetName("s3"), address, find_credentials(address, environ=moto_server.environ()), SystemClock()
        )
        s3.script(Fault(method="POST", answer=409, code="RestoreAlreadyInProgress"))
        assert target.rehydrate(A).thaw is Thaw.PENDING
        assert s3.waiting == 0
        target.close()
        address = parse_address(azurite_server.target_url(container, "", azure.url))
        target = open_target(
            TargetName("az"), address, find_credentials(address, environ=azurite_server.environ()), SystemClock()
        )
        target.put(A, BytesBody(DATA))
        azure.script(Fault(method="GET", answer=409, code="BlobBeingRehydrated"))
        with pytest.raises(ObjectArchived):
            list(target.get(A))
        assert azure.waiting == 0
        target.close()
