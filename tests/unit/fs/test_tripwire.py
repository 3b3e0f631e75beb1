"""The tripwire: very much harm in little time is noticed, remembered and, where wanted, stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_history import overwrite, packed
from vnafs.domain.errors import ReadOnly
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import RepositoryId
from vnafs.domain.repositories import OnTrip, Repository
from vnafs.fs.settings import Settings


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    rules(made, OnTrip.ALERT)
    return made


def repository(tree: Tree) -> Repository:
    return tree.fs.repositories.get(RepositoryId(tree.r))


def rules(tree: Tree, tripwire: OnTrip, *, reset: bool = False) -> None:
    changed = dataclasses.replace(repository(tree), tripwire=tripwire, tripwire_per_minute=10, versions_kept_seconds=99)
    tree.fs.repositories.set(changed, reset_tripwire=reset)


def harm(tree: Tree, count: int, prefix: bytes = b"") -> None:
    """Overwrite, rename and delete as many files as that, each in its way."""
    for number in range(count):
        name = b"%s%d" % (prefix, number)
        inode = packed(tree, name)
        tree.clock.sleep(-10)
        if number % 3 == 0:
            overwrite(tree, inode, b"encrypted")
        elif number % 3 == 1:
            tree.fs.rename(tree.r, name, tree.r, name + b".locked")
        else:
            tree.fs.unlink(tree.r, name)


def test_a_high_rate_is_an_alert_that_lasts_and_stops_expiry(tree: Tree) -> None:
    harm(tree, 10)
    assert not repository(tree).tripped_ns
    packed(tree, b"last")
    tree.fs.unlink(tree.r, b"last")
    assert repository(tree).tripped_why == "4 overwritten, 3 renamed, 4 deleted within a minute"
    tree.fs.upkeep()
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    tree.crash()
    assert repository(tree).tripped_ns
    tree.clock.sleep(1000)
    assert not tree.fs.upkeep()
    assert tree.fs.versions.history(b"r/last")
    rules(tree, OnTrip.ALERT, reset=True)
    while tree.fs.upkeep():
        pass
    assert not tree.fs.versions.deleted_in(b"r")[0]
    assert not repository(tree).tripped_ns


def test_the_same_in_more_time_is_work(tree: Tree) -> None:
    for day in range(10):
        harm(tree, 6, b"%d-" % day)
        tree.clock.sleep(61)
    assert not repository(tree).tripped_ns


def written_as_noise(tree: Tree, name: bytes) -> None:
    inode = tree.file(name, b"it does not matter what it is")
    tree.clock.sleep(10)
    seal = dataclasses.replace(tree.seal_of(inode), is_noise=True)
    [verdict] = tree.fs.advance([Proposal(inode, tree.fs.facts(inode).version, FileState.PACKED, seal)])
    assert verdict is Verdict.DONE
    tree.clock.sleep(-10)


def test_a_few_files_that_look_encrypted_are_as_much_as_many_deletes(tree: Tree) -> None:
    written_as_noise(tree, b"0")
    assert not repository(tree).tripped_ns
    written_as_noise(tree, b"1")
    assert repository(tree).tripped_why == "2 written with bytes that look encrypted within a minute"


def test_a_file_that_looks_encrypted_now_and_then_is_work(tree: Tree) -> None:
    for number in range(5):
        written_as_noise(tree, b"%d" % number)
        tree.clock.sleep(61)
    assert not repository(tree).tripped_ns


def test_what_was_never_kept_does_not_count(tree: Tree) -> None:
    for number in range(50):
        tree.file(b"%d" % number)
        tree.fs.rename(tree.r, b"%d" % number, tree.r, b"new")
    assert not repository(tree).tripped_ns


def test_a_repository_can_become_read_only_until_it_is_reset_and_be_rolled_back_meanwhile(tree: Tree) -> None:
    rules(tree, OnTrip.READ_ONLY)
    before = tree.clock.now()
    tree.clock.sleep(1)
    with pytest.raises(ReadOnly):
        harm(tree, 12)
    other = tree.repository("other")
    tree.fs.mkdir(other, b"d", 0o755, ALICE)
    tree.fs.upkeep()
    tree.crash()
    with pytest.raises(ReadOnly):
        tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    tree.clock.sleep(5)
    tree.fs.rollbacks.begin(RepositoryId(tree.r), before)
    while repository(tree).rolling_to_ns:
        tree.fs.rollbacks.step()
    assert tree.names(tree.r) == []
    with pytest.raises(ReadOnly):
        tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    rules(tree, OnTrip.READ_ONLY, reset=True)
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)


def test_it_can_be_off(tree: Tree) -> None:
    rules(tree, OnTrip.OFF)
    harm(tree, 50)
    assert not repository(tree).tripped_ns
