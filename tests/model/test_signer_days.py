"""Days of the keys that sign receipts: whatever becomes of machines, the public ones are found again on any target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.test_manifest_model import A, B, Rebuilt, Recorded, rows, secrets_of, settled
from vnafs.content import manifest
from vnafs.content.manifest import Operation
from vnafs.domain.actors import SYSTEM
from vnafs.domain.ids import TargetName
from vnafs.index import signers
from vnafs.index.signers import Signer
from vnafs.pipeline.keys import unlocked_from
from vnafs.receipts import keys as files
from vnafs.upkeep.adopt import adopt
from vnafs.upkeep.plan import Source
from vnafs.upkeep.signing import Signing, after_restore


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def world(request: pytest.FixtureRequest, home: Path) -> Recorded:
    return Recorded(home, encrypted=request.param)


def sign(world: Recorded) -> bytes:
    """The public half of what signs now."""
    key, _ = Signing(world._store, str(world.home / "signs"), world.tiering.keys, clock=world.clock).key()
    return files.public_bytes(key)


def another(world: Recorded) -> bytes:
    """Another key signs from now on."""
    world.clock.advance(50)
    if world.tiering.keys is not None:
        world.tiering.keys.renew(master=b"m", recovery=b"r" * 20)
    else:
        files.remove(str(world.home / "signs"))
    return sign(world)


def history(world: Recorded) -> list[Signer]:
    with world._store.read() as reader:
        return signers.every(reader)


def of_snapshots(world: Recorded, target: TargetName) -> dict[str, set[bytes]]:
    """The public keys in the runs of each snapshot on a target."""
    source = Source(world.stores[target], secrets_of(world.stores[target]))
    found: dict[str, set[bytes]] = {}
    for name in world.stores[target].list(manifest.SNAPSHOTS):
        found[name] = set()
        for row in source.read(name)[1]:
            if row.operation is Operation.RUN:
                run = source.read(manifest.run_name(manifest.run_of(row).sha256))[1]
                found[name] |= {one.key[2:] for one in run if one.key.startswith(b"sS")}
    return found


def test_every_snapshot_that_trimming_leaves_has_the_whole_history(home: Path) -> None:
    world = Recorded(home)
    made = [sign(world)]
    world.write(b"file", b"bytes")
    settled(world)
    for number in range(3):
        made.append(another(world))
        world.write(b"%d" % number, b"more")
        settled(world)
        world.manifests.snapshot()
        world.clock.advance(100 * 86_400)
        settled_quietly(world)
    world.manifests.trim_now()
    for _ in range(5):
        settled_quietly(world)
    left = of_snapshots(world, A)
    assert left[max(left)] == set(made)
    for name, keys in left.items():
        assert keys <= set(made), name
        assert keys >= set(made[:2]), name


def settled_quietly(world: Recorded) -> None:
    world.clock.advance(100)
    world.settle()
    world.manifests.step()


def test_a_restore_from_either_target_has_the_history_and_the_right_key(world: Recorded, tmp_path: Path) -> None:
    made = [sign(world)]
    world.write(b"file", b"bytes")
    settled(world)
    if not world.encrypted:
        made.append(another(world))
        settled(world)
    before = history(world)
    for target in (A, B):
        home = tmp_path / target
        home.mkdir()
        other = Rebuilt(home, world, target)
        assert [(row.public, row.since, row.until, row.reason) for row in history(other)] == [
            (row.public, row.since, row.until, row.reason) for row in before
        ]
        assert {row.told for row in history(other)} == {not world.encrypted}
        unlocked = unlocked_from(world.stores[target], b"r" * 20) if world.encrypted else None
        _, is_new = after_restore(
            other._store, str(other.home / "signs"), unlocked, clock=other.clock, entropy=lambda count: b"e" * count
        )
        assert is_new is not world.encrypted
        now = sign(other)
        assert (now == made[-1]) is world.encrypted
        assert [row.public for row in history(other)] == (made if world.encrypted else [*made, now])
        other.stop()


def test_no_target_ever_has_a_private_key_in_the_clear(world: Recorded) -> None:
    key, _ = Signing(world._store, str(world.home / "signs"), world.tiering.keys, clock=world.clock).key()
    world.write(b"file", b"bytes")
    settled(world)
    world.manifests.snapshot()
    settled_quietly(world)
    source = Source(world.stores[A], secrets_of(world.stores[A]))
    seed = files.secret_of(key)
    for name in world.stores[A].list():
        data = source.get(name)
        assert seed not in data
        assert seed.hex().encode() not in data
        if name.startswith("manifests/"):
            for row in source.decode(data)[1]:
                assert seed not in row.key
                assert seed not in row.value


def test_a_machine_that_is_adopted_knows_the_keys_of_the_one_that_went_on_meanwhile(home: Path, tmp_path: Path) -> None:
    """The archive was restored elsewhere, signed there, and then the first machine is given the right to go on."""
    world = Recorded(home)
    first = sign(world)
    world.write(b"old", b"of both")
    settled(world)
    world.stop()
    (tmp_path / "other").mkdir()
    other = Rebuilt(tmp_path / "other", world, A)
    after_restore(other._store, str(other.home / "signs"), None, clock=other.clock, entropy=bytes)
    theirs = sign(other)
    other.write(b"new", b"of the other")
    other.require_copies(1)
    settled(other)
    other.stop()
    world.begin()
    assert "older state" in world.manifests.compare()
    world.stop()
    places = {r.number: world.targets[r.name] for r in world.tiering.replicators()}
    kept = rows(world)
    adopt(world._namespace, world._store, places, clock=world.clock, by=SYSTEM)
    assert rows(world) != kept
    world.begin()
    assert sign(world) == first
    found = {row.public: row for row in history(world)}
    assert set(found) == {first, theirs}
    assert (bool(found[theirs].until), found[theirs].told) == (True, True)
    assert (found[first].until, found[first].told) == (0, False)
    world.superseded = ""
    assert world.manifests.compare() == ""
    settled(world)
    (tmp_path / "third").mkdir()
    third = Rebuilt(tmp_path / "third", world, B)
    assert {row.public for row in history(third)} == {first, theirs}
