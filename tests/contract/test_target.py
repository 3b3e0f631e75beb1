"""What every target promises, run against every kind: in memory, on a disk, and on real object servers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from typing import BinaryIO

import pytest

from tests.contract.conftest import SMALL_PARTS, Place
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.errors import Damaged, ObjectExists, ObjectMissing
from vnafs.domain.ids import ObjectName, Sha256, Span
from vnafs.targets.body import BytesBody
from vnafs.targets.limits import MEBIBYTE
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify

A = ObjectName("packs/aa/aa01.pack")
B = ObjectName("packs/ab/ab01.pack")


def whole(target: Target, name: ObjectName) -> bytes:
    return b"".join(target.get(name))


class BreakingBody(BytesBody):
    """A local file on a disk that fails in the middle."""

    def open(self) -> BinaryIO:
        return BreakingReader(self.data)


class BreakingReader(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        half = len(self.getvalue()) // 2
        if self.tell() >= half:
            raise OSError(5, "the local disk failed")
        return super().read(half - self.tell() if size is None or size < 0 else min(size, half - self.tell()))


@dataclasses.dataclass(frozen=True)
class ShortBody:
    """A local file that lost its end."""

    data: bytes
    size_bytes: int
    sha256: Sha256

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@pytest.mark.parametrize("size", [0, 1, MEBIBYTE - 1, MEBIBYTE, 3 * MEBIBYTE + 1])
def test_what_was_put_comes_back(target: Target, size: int) -> None:
    body = BytesBody(os.urandom(size))
    evidence = target.put(A, body)
    assert evidence.size_bytes == size
    assert whole(target, A) == body.data
    assert b"".join(target.read_back(A)) == body.data


def test_blocks_are_never_larger_than_a_mebibyte(target: Target) -> None:
    target.put(A, BytesBody(bytes(2 * MEBIBYTE + 5)))
    assert max(len(block) for block in target.get(A)) <= MEBIBYTE
    assert max(len(block) for block in target.read_back(A)) <= MEBIBYTE


def test_a_repeated_put_is_answered_with_evidence_of_what_is_there(target: Target) -> None:
    first = BytesBody(b"first")
    target.put(A, first)
    assert target.put(A, BytesBody(b"other")).size_bytes == 5
    assert whole(target, A) == first.data


def test_a_put_over_an_object_of_another_size_is_refused(target: Target) -> None:
    target.put(A, BytesBody(b"first"))
    with pytest.raises(ObjectExists):
        target.put(A, BytesBody(b"longer than the first"))
    assert whole(target, A) == b"first"


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(0, 3), b"012"),
        (Span(3, 4), b"3456"),
        (Span(7, None), b"789"),
        (Span(9, 1), b"9"),
        (Span(0, None), b"0123456789"),
        (Span(0, 10), b"0123456789"),
        (Span(0, 11), b"0123456789"),
        (Span(8, 100), b"89"),
        (Span(4, 0), b""),
        (Span(10, None), b""),
        (Span(10, 1), b""),
        (Span(500, 3), b""),
    ],
)
def test_a_span_gives_the_bytes_there_are_in_it(target: Target, span: Span, expected: bytes) -> None:
    target.put(A, BytesBody(b"0123456789"))
    assert b"".join(target.get(A, span)) == expected


@pytest.mark.parametrize("span", [Span(), Span(5, 2), Span(5, 0), Span(5)])
def test_a_missing_object_is_missing_in_every_span(target: Target, span: Span) -> None:
    with pytest.raises(ObjectMissing):
        list(target.get(A, span))


def test_a_missing_object_has_no_evidence_and_nothing_to_read_back(target: Target) -> None:
    with pytest.raises(ObjectMissing):
        target.evidence(A)
    with pytest.raises(ObjectMissing):
        list(target.read_back(A))


def test_an_object_is_no_directory_of_others(target: Target) -> None:
    target.put(A, BytesBody(b"x"))
    with pytest.raises(ObjectMissing):
        target.evidence(ObjectName("packs/aa"))
    with pytest.raises(ObjectMissing):
        list(target.get(ObjectName("packs")))


def test_names_are_listed_in_order_of_their_text(target: Target) -> None:
    names = ["a/b", "a-b", "a.b", "a/a/z", "a/a-z", "b", "a0", "A", "manifest/00000001.seg", "packs/ab/x", "packs/aa/y"]
    for name in names:
        target.put(ObjectName(name), BytesBody(b"."))
    assert list(target.list()) == sorted(names)


@pytest.mark.parametrize("prefix", ["packs/", "packs/a", "packs/aa/aa01", "packs/aa/aa01.pack", "nothing/"])
def test_a_prefix_is_a_prefix_of_the_text(target: Target, prefix: str) -> None:
    names = ["packs/aa/aa01.pack", "packs/aa/aa02.pack", "packs/ab/ab01.pack", "packs/b/1", "packs-old/a", "zz"]
    for name in names:
        target.put(ObjectName(name), BytesBody(b"."))
    assert list(target.list(prefix)) == [name for name in sorted(names) if name.startswith(prefix)]


def test_listing_an_empty_place_gives_nothing(target: Target) -> None:
    assert list(target.list()) == []


def test_a_listing_goes_on_past_one_page(target: Target) -> None:
    names = [ObjectName(f"packs/{number:05d}") for number in range(1005)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: target.put(name, BytesBody(b".")), names))
    assert list(target.list("packs/")) == names


def test_a_deleted_object_is_gone_and_may_be_put_again(target: Target) -> None:
    target.put(A, BytesBody(b"one"))
    target.delete(A)
    assert list(target.list()) == []
    with pytest.raises(ObjectMissing):
        target.evidence(A)
    target.put(A, BytesBody(b"another"))
    assert whole(target, A) == b"another"


def test_what_exists_is_told_and_nothing_else(target: Target) -> None:
    assert not target.exists(A)
    target.put(A, BytesBody(b"one"))
    assert target.exists(A)
    assert not target.exists(ObjectName(A[:-1]))
    assert not target.exists(ObjectName("no/such/directory/object"))
    target.delete(A)
    assert not target.exists(A)


def test_deleting_what_is_not_there_is_no_error(target: Target) -> None:
    target.delete(A)
    target.delete(ObjectName("no/such/directory/object"))


@pytest.mark.parametrize("size", [64 * 1024, 9 * MEBIBYTE, 20 * MEBIBYTE])
def test_a_put_whose_body_fails_leaves_nothing_and_says_so_itself(target: Target, size: int) -> None:
    with pytest.raises(OSError, match="the local disk failed"):
        target.put(A, BreakingBody(os.urandom(size)))
    with pytest.raises(ObjectMissing):
        target.evidence(A)
    assert list(target.list()) == []
    target.put(A, BytesBody(b"now"))
    assert whole(target, A) == b"now"


def test_a_body_that_ends_early_is_damage_of_ours_and_leaves_nothing(target: Target) -> None:
    with pytest.raises(Damaged):
        target.put(A, ShortBody(b"short", 50, Sha256(bytes(32))))
    with pytest.raises(ObjectMissing):
        target.evidence(A)


def test_eight_threads_put_and_get_at_once(target: Target) -> None:
    bodies = {ObjectName(f"packs/{number:02d}/x"): BytesBody(os.urandom(200_000 + number)) for number in range(32)}
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: target.put(*item), bodies.items()))
        back = dict(zip(bodies, threads.map(lambda name: whole(target, name), bodies), strict=True))
    assert back == {name: body.data for name, body in bodies.items()}


def test_of_rivals_for_one_name_one_wins_and_the_others_hear_of_it(target: Target) -> None:
    bodies = [BytesBody(bytes([number]) * (1000 + number)) for number in range(8)]

    def put(body: BytesBody) -> bool:
        try:
            return target.put(A, body).size_bytes == body.size_bytes
        except ObjectExists:
            return False

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        won = [body for body, yes in zip(bodies, threads.map(put, bodies), strict=True) if yes]
    assert len(won) == 1
    assert whole(target, A) == won[0].data


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".hidden", "ä", "a b", "a\n", "a\0", "x" * 513]
)
def test_a_name_that_not_every_target_can_hold_is_refused(target: Target, name: str) -> None:
    with pytest.raises(ValueError, match="not an object name"):
        target.put(ObjectName(name), BytesBody(b""))
    with pytest.raises(ValueError, match="not an object name"):
        list(target.get(ObjectName(name)))
    with pytest.raises(ValueError, match="not an object name"):
        target.delete(ObjectName(name))


def test_long_names_and_every_allowed_character_work(target: Target) -> None:
    names = [ObjectName("/".join(["d" * 100] * 5)), ObjectName("a.b-c_d=e@f+g/0.~"[:-1] + "9")]
    for name in names:
        target.put(name, BytesBody(name.encode()))
    assert [whole(target, name) for name in names] == [name.encode() for name in names]
    assert list(target.list()) == sorted(names)


def test_a_large_object_goes_up_in_parts_and_comes_back_whole(target: Target) -> None:
    body = BytesBody(os.urandom(40 * MEBIBYTE + 17))
    evidence = target.put(A, body)
    assert evidence.size_bytes == body.size_bytes
    assert evidence.sha256 in {None, body.sha256}
    found = hashlib.sha256()
    for block in target.get(A):
        found.update(block)
    assert found.digest() == body.sha256
    border = 8 * MEBIBYTE
    assert b"".join(target.get(A, Span(border - 3, 6))) == body.data[border - 3 : border + 3]
    assert target.put(A, body).size_bytes == body.size_bytes
    with pytest.raises(ObjectExists):
        target.put(A, BytesBody(bytes(9 * MEBIBYTE)))


def test_evidence_is_of_what_is_there(target: Target) -> None:
    body = BytesBody(os.urandom(5000))
    target.put(A, body)
    evidence = target.evidence(A)
    assert evidence.size_bytes == 5000
    assert evidence.sha256 in {None, body.sha256}


STRONG = {"memory", "retrying", "throttled", "faulty"}


def test_verify_believes_a_checksum_only_where_the_target_checks_it(place: Place) -> None:
    target = place.open()
    body = BytesBody(os.urandom(2 * MEBIBYTE + 3))
    target.put(A, body)
    expected = VerifiedBy.TARGET_CHECKSUM if place.kind in STRONG else VerifiedBy.READ_BACK
    assert verify(target, A, body.size_bytes, body.sha256, target.probe()) is expected


@pytest.mark.parametrize("change", ["one byte", "shorter", "longer"])
def test_verify_finds_what_changed_behind_our_back(place: Place, change: str) -> None:
    target = place.open()
    body = BytesBody(os.urandom(MEBIBYTE + 3))
    target.put(A, body)
    spoiled = {
        "one byte": body.data[:-9] + bytes([body.data[-9] ^ 1]) + body.data[-8:],
        "shorter": body.data[:-1],
        "longer": body.data + b"x",
    }[change]
    place.spoil(A, spoiled)
    with pytest.raises(Damaged):
        verify(target, A, body.size_bytes, body.sha256, target.probe())


def test_verify_of_a_missing_object_says_missing(target: Target) -> None:
    with pytest.raises(ObjectMissing):
        verify(target, A, 1, Sha256(bytes(32)), target.probe())


# (exclusive create, the same in parts, SHA-256 checked, MD5 checked, parts)
TRUTH = {
    "memory": (True, True, True, False, False),
    "memory-plain": (True, True, False, False, False),
    "directory": (True, True, False, False, False),
    "opened": (True, True, False, False, False),
    "moto": (True, True, False, False, True),
    "radosgw": (True, False, False, True, True),
    "radosgw-versions": (False, False, False, True, True),
    "azurite": (True, True, False, True, True),
}


def test_the_probe_tells_the_truth_and_leaves_nothing(place: Place) -> None:
    target = place.open()
    found = target.probe()
    assert (
        found.exclusive_create,
        found.exclusive_create_multipart,
        found.checksum_sha256,
        found.checksum_md5,
        found.multipart,
    ) == TRUTH.get(place.kind, TRUTH["memory"])
    assert found.list_consistent
    assert found.versioning == found.object_lock == (place.kind == "radosgw-versions")
    assert list(target.list()) == []


def test_two_targets_on_one_place_see_the_same_objects(place: Place) -> None:
    first, second = place.open(), place.open(dataclasses.replace(SMALL_PARTS, requests_max=2))
    first.put(A, BytesBody(b"a"))
    second.put(B, BytesBody(b"b"))
    assert list(first.list()) == list(second.list()) == [A, B]


def test_close_may_be_called_twice(place: Place) -> None:
    target = place.open()
    target.put(A, BytesBody(b"a"))
    target.close()
    target.close()
