"""What every plain mirror promises: in memory, in a directory, and on real object servers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.test_target import BreakingBody
from tests.mirrormemory import MemoryMirror
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from vnafs.domain.clock import SystemClock
from vnafs.domain.errors import TargetError, TargetRefused, TargetUnavailable, VnaError
from vnafs.domain.ids import Sha256, TargetName
from vnafs.domain.plainnames import METADATA, object_name
from vnafs.targets.address import S3Address, parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials, find_credentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.mirror import MARKER, Mirror, Original
from vnafs.targets.open import open_mirror

NAME = TargetName("m")
ARCHIVE, OTHER = b"a" * 16, b"o" * 16
LIMITS = Limits(single_put_bytes_max=8 * MEBIBYTE, part_bytes=8 * MEBIBYTE, attempts_max=1)
MTIME_NS = 1_600_000_000_123_456_789


@dataclasses.dataclass
class Place:
    """Somewhere a mirror is, and what other software sees there."""

    kind: str
    opener: Callable[[bytes], Mirror]
    objects: Callable[[], dict[str, bytes]]
    spoil: Callable[[str, bytes], None]


@pytest.fixture(params=["directory", "moto", "radosgw", "azurite"])
def place(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> Iterator[Place]:
    kind = str(request.param)
    opened: list[Mirror] = []
    if kind == "directory":
        made = directory_place(os.path.join(tmp_path, "mirror"))
    elif kind == "azurite":
        made = azure_place(request.getfixturevalue("azurite_server"))
    else:
        made = s3_place(request.getfixturevalue(f"{kind}_server"))

    def opener(archive: bytes) -> Mirror:
        opened.append(made.opener(archive))
        return opened[-1]

    yield dataclasses.replace(made, opener=opener)
    for mirror in opened:
        mirror.close()


def directory_place(root: str) -> Place:
    address = parse_address(f"file://{root}")

    def objects() -> dict[str, bytes]:
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = file.read()
        return {name: data for name, data in found.items() if name != MARKER}

    def spoil(name: str, data: bytes) -> None:
        os.makedirs(os.path.dirname(os.path.join(root, name)), exist_ok=True)
        with open(os.path.join(root, name), "wb") as file:
            file.write(data)

    def opener(archive: bytes) -> Mirror:
        return open_mirror(NAME, address, find_credentials(address, environ={}), archive, SystemClock(), LIMITS)

    return Place("directory", opener, objects, spoil)


def s3_place(server: S3Endpoint, *, keeps_versions: bool = False) -> Place:
    bucket = server.make_bucket("mirror-versions" if keeps_versions else "mirror")
    prefix = f"p{os.urandom(6).hex()}"
    address = parse_address(server.target_url(bucket, prefix, None))
    credentials = find_credentials(address, environ=server.environ())
    assert isinstance(address, S3Address)
    client = server.client()
    if keeps_versions:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def objects() -> dict[str, bytes]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        found = {key[len(prefix) + 1 :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        return {name: data for name, data in found.items() if name != MARKER}

    def spoil(name: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)

    def opener(archive: bytes) -> Mirror:
        return open_mirror(NAME, address, credentials, archive, SystemClock(), LIMITS)

    return Place(server.kind, opener, objects, spoil)


def azure_place(server: AzureEndpoint) -> Place:
    container = server.make_container("mirror")
    prefix = f"p{os.urandom(6).hex()}"
    address = parse_address(server.target_url(container, prefix))
    credentials = find_credentials(address, environ=server.environ())

    def objects() -> dict[str, bytes]:
        with server.client(container) as client:
            names = [str(name) for name in client.list_blob_names(name_starts_with=f"{prefix}/")]
            found = {name[len(prefix) + 1 :]: client.download_blob(name).readall() for name in names}
        return {name: data for name, data in found.items() if name != MARKER}

    def spoil(name: str, data: bytes) -> None:
        server.put_blob(container, f"{prefix}/{name}", data)

    def opener(archive: bytes) -> Mirror:
        return open_mirror(NAME, address, credentials, archive, SystemClock(), LIMITS)

    return Place("azurite", opener, objects, spoil)


@pytest.fixture
def mirror(place: Place) -> Mirror:
    made = place.opener(ARCHIVE)
    assert not made.probe(known=False)
    return made


def test_an_object_is_put_replaced_and_removed(place: Place, mirror: Mirror) -> None:
    for data in (b"one", b"", b"three!", b"three?"):
        mirror.replace("r/a/b", BytesBody(data), MTIME_NS)
        assert place.objects() == {"r/a/b": data}
    mirror.replace("r/a/c", BytesBody(b"c"), MTIME_NS)
    mirror.remove("r/a/b")
    mirror.remove("r/a/b")
    mirror.remove("r/x/never")
    assert place.objects() == {"r/a/c": b"c"}
    assert list(mirror.list()) == ["r/a/c"]
    mirror.remove("r/a/c")
    assert place.objects() == {}


def test_a_large_object_goes_up_in_parts_and_is_replaced_whole(place: Place, mirror: Mirror) -> None:
    large = os.urandom(20 * MEBIBYTE + 7)
    mirror.replace("r/large", BytesBody(large), MTIME_NS)
    assert place.objects() == {"r/large": large}
    mirror.replace("r/large", BytesBody(large[::-1]), MTIME_NS)
    assert place.objects() == {"r/large": large[::-1]}
    assert mirror.copy(original("r/large", large[::-1]), "r/moved", MTIME_NS)
    assert place.objects() == {"r/large": large[::-1], "r/moved": large[::-1]}


HOSTILE = [
    b"with space",
    b" lead",
    b"trail ",
    b"...",
    b"%41",
    b"\xff\xfe",
    b"back\\slash",
    b"tab\tnew\nline\rbell\x07\x7f",
    "ümläut\u0085\ufffe日本\U0001f600".encode(),
    b".vna-metadata.jsonl",
    MARKER.encode(),
    b"a?b#c&d=e+f;g:h*i|j\"k<l>'m`n~o^p{q}[r]",
    b"n" * 255,
    b"\xfe" * 255,
]


def test_names_that_are_hard_to_have_are_kept_apart(place: Place, mirror: Mirror) -> None:
    wanted = {object_name([b"r", name]): b"%d" % number for number, name in enumerate(HOSTILE)}
    wanted |= {object_name([b"r", b"d", name, name]): b"deep %d" % number for number, name in enumerate(HOSTILE)}
    wanted[f"r/{METADATA}"] = b"{}"
    assert len(wanted) == 2 * len(HOSTILE) + 1
    for name, data in wanted.items():
        mirror.replace(name, BytesBody(data), MTIME_NS)
    assert place.objects() == wanted
    assert set(mirror.list()) == set(wanted)
    for name in wanted:
        mirror.remove(name)
    assert place.objects() == {}


def original(name: str, data: bytes) -> Original:
    return Original(name, len(data), BytesBody(data).sha256)


def test_an_object_is_copied_without_being_sent_again(place: Place, mirror: Mirror) -> None:
    wanted = {}
    for number, name in enumerate(HOSTILE):
        source, data = object_name([b"r", name]), b"%d" % number
        mirror.replace(source, BytesBody(data), MTIME_NS)
        copy = object_name([b"moved", name, name])
        assert mirror.copy(original(source, data), copy, MTIME_NS)
        wanted |= {source: data, copy: data}
    assert place.objects() == wanted
    mirror.replace("r/with space", BytesBody(b"new"), MTIME_NS)
    mirror.remove("r/..%2E")
    wanted["r/with space"] = b"new"
    del wanted["r/..%2E"]
    assert place.objects() == wanted, "a copy has nothing to do with what it was made of"


def test_what_is_not_there_or_not_the_same_is_not_taken_for_a_copy(place: Place, mirror: Mirror) -> None:
    assert not mirror.copy(original("r/never/was", b"1"), "r/b", MTIME_NS)
    mirror.replace("r/a", BytesBody(b"one"), MTIME_NS)
    for claimed in (b"two", b"three"):
        assert not mirror.copy(original("r/a", claimed), "r/b", MTIME_NS)
    mirror.replace("r/b", BytesBody(b"two"), MTIME_NS)
    assert place.objects() == {"r/a": b"one", "r/b": b"two"}


def test_a_token_of_azure_copies_nothing_because_it_would_be_sent_in_a_name() -> None:
    address = parse_address("azure://account/container")
    mirror = open_mirror(NAME, address, AzureCredentials(sas_token="sig=x"), ARCHIVE, SystemClock(), LIMITS)
    assert not mirror.copy(original("r/a", b"1"), "r/b", MTIME_NS)
    mirror.close()


def test_a_file_with_another_time_or_behind_a_link_is_not_copied(tmp_path: os.PathLike[str]) -> None:
    place = directory_place(os.path.join(tmp_path, "mirror"))
    mirror = place.opener(ARCHIVE)
    mirror.probe(known=False)
    mirror.replace("r/a", BytesBody(b"1"), MTIME_NS)
    os.symlink("a", os.path.join(tmp_path, "mirror", "r", "link"))
    os.symlink("r", os.path.join(tmp_path, "mirror", "folder"))
    assert not mirror.copy(original("r/a", b"1"), "r/b", MTIME_NS + 1)
    for name in ("r/link", "folder/a", "r/a/below", "r"):
        assert not mirror.copy(original(name, b"1"), "r/b", MTIME_NS)
    assert set(mirror.list()) == {"r/a", "r/link", "folder"}
    assert os.listdir(os.path.join(tmp_path, "mirror", ".vnafs-incoming")) == []


def test_a_body_that_breaks_leaves_what_was_there(place: Place, mirror: Mirror) -> None:
    mirror.replace("r/a", BytesBody(b"old"), MTIME_NS)
    with pytest.raises(OSError, match="local disk"):
        mirror.replace("r/a", BreakingBody(os.urandom(1000)), MTIME_NS)
    assert place.objects() == {"r/a": b"old"}


@dataclasses.dataclass(frozen=True)
class OtherBody(BytesBody):
    """Bytes that change on their way: what arrives is not what was meant to be sent."""

    @property
    def sha256(self) -> Sha256:
        return Sha256(hashlib.sha256(b"what was meant").digest())


def test_what_arrived_is_compared_with_what_was_meant(place: Place, mirror: Mirror) -> None:
    mirror.replace("r/a", BytesBody(b"old"), MTIME_NS)
    with pytest.raises(VnaError):
        mirror.replace("r/a", OtherBody(b"what it became"), MTIME_NS)
    if place.kind == "directory":
        assert place.objects() == {"r/a": b"old"}
    mirror.replace("r/a", BytesBody(b"new"), MTIME_NS)
    assert place.objects() == {"r/a": b"new"}


def test_a_place_that_is_not_empty_is_refused(place: Place) -> None:
    place.spoil("somebody/else.txt", b"mine")
    with pytest.raises(TargetRefused, match="not empty"):
        place.opener(ARCHIVE).probe(known=False)
    assert place.objects() == {"somebody/else.txt": b"mine"}


def test_objects_on_azure_carry_their_checksum_and_go_with_their_snapshots(azurite_server: AzureEndpoint) -> None:
    container = azurite_server.make_container()
    address = parse_address(azurite_server.target_url(container))
    credentials = find_credentials(address, environ=azurite_server.environ())
    mirror = open_mirror(NAME, address, credentials, ARCHIVE, SystemClock(), LIMITS)
    mirror.probe(known=False)
    with azurite_server.client(container) as client:
        for data in (b"small", os.urandom(5 * MEBIBYTE)):
            mirror.replace("r/a", BytesBody(data), MTIME_NS)
            found = client.get_blob_client("r/a").get_blob_properties()
            about = {"sha256": hashlib.sha256(data).hexdigest(), "mtime": "1600000000.123456789"}
            assert found.metadata == about
        client.get_blob_client("r/a").create_snapshot()
        mirror.remove("r/a")
        assert [str(name) for name in client.list_blob_names()] == [MARKER]
        client.delete_container()
    with pytest.raises(TargetRefused, match="container does not exist"):
        mirror.probe(known=True)
    with pytest.raises(TargetRefused, match="container does not exist"):
        mirror.remove("r/a")
    mirror.close()


def test_no_error_of_azure_names_an_object(azurite_server: AzureEndpoint) -> None:
    address = parse_address(azurite_server.target_url("never-made"))
    credentials = find_credentials(address, environ=azurite_server.environ())
    mirror = open_mirror(NAME, address, credentials, ARCHIVE, SystemClock(), LIMITS)
    for size_bytes in (10, 5 * MEBIBYTE):
        with pytest.raises(TargetRefused) as refused:
            mirror.replace("r/Doe^Jane", BytesBody(bytes(size_bytes)), MTIME_NS)
        assert "Doe" not in str(refused.value)
    mirror.close()


def test_what_a_killed_process_left_is_removed(tmp_path: os.PathLike[str]) -> None:
    place = directory_place(os.path.join(tmp_path, "mirror"))
    mirror = place.opener(ARCHIVE)
    mirror.probe(known=False)
    mirror.replace("r/a", BytesBody(b"1"), MTIME_NS)
    place.spoil(".vnafs-incoming/0123.part", b"half")
    place.opener(ARCHIVE).probe(known=True)
    assert place.objects() == {"r/a": b"1"}


def test_nothing_is_written_through_links_that_others_put_there(tmp_path: os.PathLike[str]) -> None:
    place = directory_place(os.path.join(tmp_path, "mirror"))
    mirror = place.opener(ARCHIVE)
    mirror.probe(known=False)
    os.mkdir(os.path.join(tmp_path, "outside"))
    os.symlink(os.path.join(tmp_path, "outside"), os.path.join(tmp_path, "mirror", "r"))
    with pytest.raises(TargetError):
        mirror.replace("r/a", BytesBody(b"1"), MTIME_NS)
    with open(os.path.join(tmp_path, "outside", "a"), "wb") as file:
        file.write(b"somebody's")
    mirror.remove("r/a")
    assert os.listdir(os.path.join(tmp_path, "outside")) == ["a"]


def test_a_bucket_that_keeps_versions_shows_the_newest(moto_server: S3Endpoint) -> None:
    place = s3_place(moto_server, keeps_versions=True)
    mirror = place.opener(ARCHIVE)
    mirror.probe(known=False)
    for data in (b"one", b"three", b""):
        mirror.replace("r/a", BytesBody(data), MTIME_NS)
        assert place.objects() == {"r/a": data}
    mirror.remove("r/a")
    assert list(mirror.list()) == []
    assert mirror.probe(known=True)
    mirror.close()


def test_the_mirror_of_another_archive_is_refused(place: Place, mirror: Mirror) -> None:
    assert place.opener(ARCHIVE).probe(known=False)
    assert place.opener(ARCHIVE).probe(known=True)
    for known in (False, True):
        with pytest.raises(TargetRefused, match="another archive"):
            place.opener(OTHER).probe(known=known)


def test_a_place_that_lost_its_marker_is_not_begun_again(place: Place) -> None:
    with pytest.raises(TargetUnavailable):
        place.opener(ARCHIVE).probe(known=True)
    assert place.objects() == {}


def test_the_memory_mirror_of_the_models_keeps_the_same_promises() -> None:
    made = MemoryMirror()
    assert not made.probe(known=False)
    made.replace("a", BytesBody(b"1"), MTIME_NS)
    made.replace("a", BytesBody(b"2"), MTIME_NS)
    assert made.objects == {"a": b"2"}
    assert not made.copy(original("a", b"1"), "b", MTIME_NS)
    assert made.copy(original("a", b"2"), "b", MTIME_NS)
    assert made.objects == {"a": b"2", "b": b"2"}
    made.remove("a")
    made.remove("a")
    assert made.objects == {"b": b"2"}
