"""Targets of every kind for the contract suites, each test in a place of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import pytest

from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.fixtures import *  # noqa: F403  # fixtures work by being names here
from vnafs.domain.clock import Clock, SystemClock
from vnafs.domain.copies import Capabilities
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets.address import DirectoryAddress, S3Address, parse_address
from vnafs.targets.credentials import NoCredentials, find_credentials
from vnafs.targets.faulty import FaultyTarget
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.open import open_adapter, open_target
from vnafs.targets.port import Target
from vnafs.targets.retrying import RetryingTarget
from vnafs.targets.throttled import ThrottledTarget

SMALL_PARTS = Limits(single_put_bytes_max=8 * MEBIBYTE, part_bytes=8 * MEBIBYTE, attempts_max=2)
"""So that a forty-megabyte object goes up in parts."""
NAME = TargetName("t")


@dataclasses.dataclass
class Place:
    """Somewhere a target keeps its objects, and ways to open it and to tamper with it."""

    kind: str
    opener: Callable[[Limits], Target]
    spoil: Callable[[ObjectName, bytes], None]
    """Replace an object's bytes behind the target's back."""
    stack: contextlib.ExitStack
    bucket: str = ""
    prefix: str = ""

    def open(self, limits: Limits = SMALL_PARTS) -> Target:
        """One more target on the same place; closed at the end of the test."""
        target = self.opener(limits)
        self.stack.callback(target.close)
        return target


KINDS = (
    "memory",
    "memory-plain",
    "retrying",
    "throttled",
    "faulty",
    "directory",
    "opened",
    "moto",
    "radosgw",
    "radosgw-versions",
    "azurite",
)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        kind = str(request.param)
        if kind in {"moto", "radosgw"}:
            yield s3_place(request.getfixturevalue(f"{kind}_server"), stack)
        elif kind == "radosgw-versions":
            yield versioned_place(request.getfixturevalue("radosgw_server"), stack)
        elif kind == "azurite":
            yield azure_place(request.getfixturevalue("azurite_server"), stack)
        elif kind in {"directory", "opened"}:
            yield directory_place(os.path.join(tmp_path, "target"), stack, kind)
        else:
            yield memory_place(kind, stack)


@pytest.fixture
def target(place: Place) -> Target:
    return place.open()


def memory_place(kind: str, stack: contextlib.ExitStack) -> Place:
    memory = MemoryTarget(NAME, checksums=kind != "memory-plain")
    clock = SystemClock()

    def opener(limits: Limits) -> Target:
        wrapped: dict[str, Callable[[], Target]] = {
            "retrying": lambda: RetryingTarget(memory, clock, limits),
            "throttled": lambda: ThrottledTarget(
                memory, clock, dataclasses.replace(limits, requests_max=8, bytes_per_second_max=1 << 33)
            ),
            "faulty": lambda: FaultyTarget(memory, clock),
        }
        return wrapped.get(kind, lambda: memory)()

    return Place(kind, opener, memory.replace, stack)


def directory_place(root: str, stack: contextlib.ExitStack, kind: str = "directory") -> Place:
    clock = SystemClock()
    address = DirectoryAddress(root)

    def opener(limits: Limits) -> Target:
        first = open_adapter(NAME, address, NoCredentials(), clock, limits)
        known = first.probe()
        open_it = open_target if kind == "opened" else open_adapter
        return open_it(NAME, address, NoCredentials(), clock, limits, known)

    def spoil(name: ObjectName, data: bytes) -> None:
        with open(os.path.join(root, name), "wb") as file:
            file.write(data)

    return Place(kind, opener, spoil, stack)


_PROBED: dict[str, Capabilities] = {}
"""What each server was seen to do: once a run is enough, but for the tests of the probe itself."""


def s3_place(
    server: S3Endpoint,
    stack: contextlib.ExitStack,
    *,
    url: str = "",
    bucket: str = "",
    clock: Clock | None = None,
    kind: str = "",
) -> Place:
    """A fresh prefix of a bucket on *server*, reached by *url*."""
    bucket = bucket or server.make_bucket("contract")
    prefix = f"p{os.urandom(6).hex()}"
    address = parse_address(server.target_url(bucket, prefix, url or None))
    credentials = find_credentials(address, environ=server.environ())
    assert isinstance(address, S3Address)
    kind = kind or server.kind

    def opener(limits: Limits) -> Target:
        target = open_adapter(NAME, address, credentials, clock or SystemClock(), limits, _PROBED.get(kind))
        if kind not in _PROBED:
            _PROBED[kind] = target.probe()
        return target

    def spoil(name: ObjectName, data: bytes) -> None:
        server.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)

    return Place(kind, opener, spoil, stack, bucket, prefix)


def versioned_place(server: S3Endpoint, stack: contextlib.ExitStack, kind: str = "radosgw-versions") -> Place:
    """A fresh prefix of a bucket with Object Lock, which keeps versions."""
    bucket = server.make_bucket("contract-locked", ObjectLockEnabledForBucket=True)
    place = s3_place(server, stack, bucket=bucket, kind=kind)
    place.spoil = functools.partial(_spoil_first, server, place)
    return place


def _spoil_first(server: S3Endpoint, place: Place, name: ObjectName, data: bytes) -> None:
    """What is put over an object is not read: the object itself has to change."""
    client = server.client()
    key = f"{place.prefix}/{name}"
    for row in client.list_object_versions(Bucket=place.bucket, Prefix=key).get("Versions", []):
        client.delete_object(Bucket=place.bucket, Key=row["Key"], VersionId=row["VersionId"])
    client.put_object(Bucket=place.bucket, Key=key, Body=data)


def azure_place(
    server: AzureEndpoint, stack: contextlib.ExitStack, *, url: str = "", clock: Clock | None = None
) -> Place:
    """A fresh prefix of a container on *server*, reached by *url*."""
    container = server.make_container("contract")
    prefix = f"p{os.urandom(6).hex()}"
    address = parse_address(server.target_url(container, prefix, url or None))
    credentials = find_credentials(address, environ=server.environ())

    def opener(limits: Limits) -> Target:
        return open_adapter(NAME, address, credentials, clock or SystemClock(), limits)

    def spoil(name: ObjectName, data: bytes) -> None:
        server.put_blob(container, f"{prefix}/{name}", data)

    return Place("azurite", opener, spoil, stack)
