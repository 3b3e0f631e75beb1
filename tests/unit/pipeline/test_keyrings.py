"""Keyrings on targets: gathered, mended, never taken away from whoever needs them."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from tests.semantics.test_format_encryption import (
    ARCHIVE,
    MASTER,
    NOW,
    RECOVERY,
    REPOSITORY,
    checked,
    keys_object,
    made,
)
from vnafs.content import keyring
from vnafs.domain import errors
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.pipeline.keys import Keys, unlocked_from
from vnafs.targets.body import BytesBody
from vnafs.targets.memory import MemoryTarget

OTHER_PAPER = b"\x01" * 20


def a_target(name: str = "a") -> MemoryTarget:
    return MemoryTarget(TargetName(name))


def bring(keys: Keys, target: MemoryTarget) -> None:
    keys.bring(target, target.probe())


def opens(target: MemoryTarget, secret: bytes) -> set[bytes]:
    found = unlocked_from(target, secret)
    assert found is not None
    return {key.id for key in found.keyring.keys}


def renewed(keys: Keys, target: MemoryTarget) -> set[bytes]:
    """The keys after a renewal that reached the target."""
    keys.renew(master=b"another secret one", recovery=OTHER_PAPER)
    bring(keys, target)
    return opens(target, OTHER_PAPER)


def test_an_older_paper_is_told_so_and_never_costs_the_newer_keyring() -> None:
    target, first = a_target(), made()
    live = keys_object(first)
    bring(live, target)
    known = renewed(live, target)
    with pytest.raises(errors.KeyWrong, match="older"):
        unlocked_from(target, RECOVERY)
    forced = unlocked_from(target, RECOVERY, may_be_older=True)
    assert forced is not None
    restored = keys_object(forced.with_master(b"a fresh secret one", NOW, os.urandom))
    bring(restored, target)
    assert len(list(target.list("keys/"))) == 3
    names = {name: b"".join(target.get(name)) for name in target.list("keys/")}
    assert known == {key.id for key in keyring.unlock(names[keyring.keyring_name(3)], OTHER_PAPER).keyring.keys}


@pytest.mark.parametrize("changes", [1, 2])
def test_a_reverted_disk_never_takes_the_renewed_keyring_away(changes: int) -> None:
    target, first = a_target(), made()
    live, reverted = keys_object(first), keys_object(first)
    bring(live, target)
    known = renewed(live, target)
    for _ in range(changes):
        reverted.rotate(REPOSITORY)
    for _ in range(3):
        with contextlib.suppress(errors.TargetRefused):
            bring(reverted, target)
    there = [b"".join(target.get(name)) for name in target.list("keys/")]
    assert any(known == set(keyring_ids(data)) for data in there)


def keyring_ids(data: bytes) -> list[bytes]:
    return [bytes.fromhex(entry["id"]) for entry in json.loads(data)["keys"]]


def test_a_keyring_that_is_gone_or_spoilt_is_back_when_it_is_looked_at() -> None:
    target, keys = a_target(), keys_object(made())
    bring(keys, target)
    (name,) = target.list("keys/")
    whole = b"".join(target.get(name))
    assert not keys.look_again(target, target.probe())
    target.delete(name)
    assert keys.look_again(target, target.probe())
    assert b"".join(target.get(name)) == whole
    target.replace(name, whole[:-40] + b"x" + whole[-39:])
    with pytest.raises(errors.Damaged):
        keys.look_again(target, target.probe())
    assert keys.look_again(target, target.probe())
    assert b"".join(target.get(name)) == whole
    assert keys.brought() == {target.name: 2}


def test_another_place_under_the_same_name_gets_its_keyring() -> None:
    keys, first, second = keys_object(made()), a_target(), a_target()
    bring(keys, first)
    bring(keys, second)
    assert opens(second, RECOVERY) == opens(first, RECOVERY)


@pytest.mark.parametrize(
    "junk",
    [
        b'{"format":"vnafs keys","version":Infinity}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"{}",
        b"x" * (keyring.KEYRING_BYTES_MAX + 1),
    ],
)
def test_what_somebody_else_puts_beside_keyrings_stops_nothing(junk: bytes) -> None:
    target, keys = a_target(), keys_object(made())
    target.put(ObjectName("keys/0000000000000007.keys"), BytesBody(junk))
    bring(keys, target)
    keys.rotate(REPOSITORY)
    bring(keys, target)
    assert opens(target, RECOVERY) == {key.id for key in keys.keyring.keys}


@pytest.mark.parametrize("slot", [{"n": 1}, {"n": 3}, {"n": 1 << 23, "r": 1}, {"n": 1 << 20, "r": 8}, {"p": 0}])
def test_a_slot_that_asks_too_much_is_not_tried(slot: dict) -> None:
    document = json.loads(made().encode())
    document["slots"] = [document["slots"][0] | slot, *document["slots"][1:]]
    with pytest.raises((errors.Damaged, errors.KeyWrong)):
        keyring.unlock(checked(document), b"neither of them is it")


def test_the_name_of_an_object_gives_no_number() -> None:
    """A keyring under a name of somebody's choice must not push ours out of sight."""
    target, keys = a_target(), keys_object(made())
    bring(keys, target)
    target.put(ObjectName("keys/ffffffffffffffff.keys"), BytesBody(keys._unlocked.encode()))
    for _ in range(2):
        keys.rotate(REPOSITORY)
        bring(keys_object(keys._unlocked), target)
    assert keys.keyring.number == 4
    assert opens(target, RECOVERY) == opens(target, MASTER) == {key.id for key in keys.keyring.keys}


def test_two_targets_with_different_keyrings_end_with_all_keys() -> None:
    first = made()
    one, two, a, b = keys_object(first), keys_object(first), a_target("a"), a_target("b")
    one.rotate(REPOSITORY)
    bring(one, a)
    two.rotate(REPOSITORY)
    bring(two, b)
    both = keys_object(two._unlocked)
    for _ in range(2):
        bring(both, a)
        bring(both, b)
    assert opens(a, RECOVERY) == opens(b, RECOVERY) >= {key.id for key in (*one.keyring.keys, *two.keyring.keys)}
    assert both.keyring.archive == ARCHIVE
