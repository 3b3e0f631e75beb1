"""P-62 and what follows: what is retained or held is neither changed nor lost."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.test_manifest_model import Recorded
from tests.model.test_restore_past import recorded, restored
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.actors import Actor, Door
from vnafs.domain.errors import Committed, Held, NotPermitted, Refused, Retained
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.rename import RENAME_EXCHANGE
from vnafs.fs.settings import Settings
from vnafs.fuse.errno import errno_of

DAY = 86400
ROOT = Actor(Door.COMMAND, 0, "root")
NS = 10**9


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    rules(made, retention=RetentionMode.COMPLIANCE, retention_seconds=10 * DAY)
    return made


def rules(tree: Tree, *, reason: str = "", **changes: object) -> None:
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(known, **changes), reason=reason)  # type: ignore[arg-type]


def retain(tree: Tree, inode: Inode, days: int = 10) -> None:
    tree.fs.retentions.retain([(inode, Inode(0))], seconds=days * DAY)


def folder(tree: Tree, name: bytes) -> Inode:
    return tree.fs.mkdir(tree.r, name, 0o755, ALICE).inode


def sealed(tree: Tree, name: bytes, parent: Inode | None = None) -> Inode:
    inode = tree.file(name)
    if parent is not None:
        tree.fs.rename(tree.r, name, parent, name)
    assert tree.advance(inode, FileState.PACKED) is Verdict.DONE
    return inode


def test_p62_a_retained_file_is_neither_changed_nor_removed_nor_renamed(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    tree.file(b"other")
    tree.fs.link(inode, tree.r, b"link")
    retain(tree, inode)
    fs, r = tree.fs, tree.r
    for call in (
        lambda: tree.open(inode, os.O_WRONLY),
        lambda: tree.open(inode, os.O_RDONLY | os.O_TRUNC),
        lambda: fs.setattr(inode, AttributeChanges(size_bytes=0), ALICE),
        lambda: fs.setattr(inode, AttributeChanges(mtime_ns=1), ALICE),
        lambda: fs.setattr(inode, AttributeChanges(mode=0o777), ALICE),
        lambda: fs.setattr(inode, AttributeChanges(uid=7), ALICE),
        lambda: fs.setxattr(inode, b"user.x", b"1"),
        lambda: fs.removexattr(inode, b"user.x"),
        lambda: fs.unlink(r, b"f"),
        lambda: fs.unlink(r, b"link"),
        lambda: fs.rename(r, b"f", r, b"g"),
        lambda: fs.rename(r, b"other", r, b"link"),
        lambda: fs.rename(r, b"other", r, b"f", RENAME_EXCHANGE),
    ):
        with pytest.raises(Retained) as refused:
            call()
        assert errno_of(refused.value) == 1  # EPERM
    fs.link(inode, r, b"again")
    with pytest.raises(Retained):
        fs.unlink(r, b"again")
    assert tree.read(inode) == b"bytes"


def test_p63_directories_above_a_retained_file_stay_where_they_are(tree: Tree) -> None:
    a = folder(tree, b"a")
    folder(tree, b"b")
    retain(tree, sealed(tree, b"f", a))
    for call in (
        lambda: tree.fs.rename(tree.r, b"a", tree.r, b"c"),
        lambda: tree.fs.rename(tree.r, b"b", tree.r, b"a", RENAME_EXCHANGE),
    ):
        with pytest.raises(Retained):
            call()
    tree.clock.sleep(11 * DAY)
    tree.fs.rename(tree.r, b"a", tree.r, b"c")


def test_p64_after_its_date_a_file_may_be_removed_and_is_still_never_changed(tree: Tree) -> None:
    inode = tree.file(b"f")
    retain(tree, inode)
    tree.clock.sleep(11 * DAY)
    with pytest.raises(Committed):
        tree.open(inode, os.O_RDWR)
    with pytest.raises(Committed):
        tree.fs.setattr(inode, AttributeChanges(mtime_ns=1), ALICE)
    tree.fs.setattr(inode, AttributeChanges(mode=0o644), ALICE)
    tree.fs.unlink(tree.r, b"f")


def test_p65_a_date_as_atime_and_no_write_bits_commit_a_file(tree: Tree) -> None:
    inode = tree.file(b"f")
    until = tree.clock.now() + 5 * DAY * NS
    tree.fs.setattr(inode, AttributeChanges(atime_ns=until), ALICE)
    tree.fs.setattr(inode, AttributeChanges(mode=0o444), ALICE)
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")
    assert tree.stat(inode).atime_ns == until
    tree.fs.setattr(inode, AttributeChanges(atime_ns=until + DAY * NS), ALICE)
    tree.clock.sleep(5 * DAY + 1)
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")


def test_p66_a_file_that_does_not_change_any_more_is_committed_by_itself(tree: Tree) -> None:
    before = sealed(tree, b"before")
    rules(tree, autocommit_seconds=3600)
    quiet, busy = sealed(tree, b"quiet"), sealed(tree, b"busy")
    while tree.fs.upkeep():
        pass
    tree.clock.sleep(3000)
    tree.fs.setattr(busy, AttributeChanges(mtime_ns=5), ALICE)
    tree.clock.sleep(700)
    while tree.fs.upkeep():
        pass
    found = [tree.fs.retentions.of(inode).retention for inode in (before, quiet, busy)]
    assert [one is not None for one in found] == [True, True, False]
    assert found[0] is not None
    assert found[0].until_ns == tree.clock.now() + 10 * DAY * NS


def test_p67_retention_becomes_longer_and_shorter_only_in_governance_for_a_reason(tree: Tree) -> None:
    inode = tree.file(b"f")
    retain(tree, inode)
    retain(tree, inode, days=20)
    with pytest.raises(Retained):
        tree.fs.retentions.retain([(inode, Inode(0))], seconds=DAY, shorten=True, reason="why")
    for weaker in ({"retention": RetentionMode.GOVERNANCE}, {"retention_seconds": DAY}):
        with pytest.raises(Refused):
            rules(tree, reason="why", **weaker)
    number = tree.fs.repositories.add("g", retention=RetentionMode.GOVERNANCE, uid=ALICE.uid).id
    handle, _ = tree.fs.create(Inode(number), b"f", 0o644, os.O_RDWR, ALICE)
    tree.fs.release(handle)
    retain(tree, handle.file.inode)
    tree.fs.retentions.retain([(handle.file.inode, Inode(0))], seconds=DAY, shorten=True, reason="a mistake", by=ROOT)
    tree.clock.sleep(DAY + 1)
    tree.fs.unlink(Inode(number), b"f")
    [noted] = [what for _, what in tree.fs.retentions.audit(0, 100) if what["action"] == "shortened"]
    assert (noted["reason"], noted["who"]) == ("a mistake", ROOT.shown())


def test_p68_what_lies_below_a_hold_is_held_until_no_hold_is_left(tree: Tree) -> None:
    a = folder(tree, b"a")
    was = sealed(tree, b"was", a)
    tree.fs.retentions.hold(a, "one", "a letter")
    tree.fs.retentions.hold(tree.r, "two", "another letter")
    handle, _ = tree.fs.create(a, b"new", 0o644, os.O_RDWR, ALICE)
    tree.fs.release(handle)
    tree.fs.rename(a, b"new", a, b"named")
    tree.advance(handle.file.inode, FileState.SEALED)
    tree.crash()
    for name in ("one", "two"):
        for file, called in ((was, b"was"), (handle.file.inode, b"named")):
            with pytest.raises(Held):
                tree.fs.unlink(a, called)
            with pytest.raises(Held):
                tree.open(file, os.O_WRONLY)
        tree.fs.retentions.release(a if name == "one" else tree.r, name, "the end")
    tree.fs.retentions.hold(a, "three", "a letter")
    with pytest.raises(Held):
        tree.fs.rename(tree.r, b"a", tree.r, b"b")


def test_p69_what_is_held_or_retained_keeps_its_past(tree: Tree) -> None:
    rules(tree, versions_kept_seconds=DAY)
    a = folder(tree, b"a")
    for name, parent in ((b"held", a), (b"free", tree.r)):
        sealed(tree, name, parent)
        tree.fs.unlink(parent, name)
    tree.fs.retentions.hold(a, "case", "a letter")
    for _ in range(3):
        tree.clock.sleep(DAY)
        while tree.fs.upkeep():
            pass
    assert [one.name for one in tree.fs.versions.deleted_in(b"r/a")[0]] == [b"held"]
    assert b"free" not in [one.name for one in tree.fs.versions.deleted_in(b"r")[0]]


def test_p70_no_other_door_leads_around_it(tree: Tree) -> None:
    before = tree.clock.now()
    tree.clock.sleep(DAY)
    sealed(tree, b"f")
    tree.fs.unlink(tree.r, b"f")
    now = sealed(tree, b"f")
    tree.advance(now, FileState.REPLICATED)
    retain(tree, now)
    with pytest.raises(NotPermitted):
        tree.fs.versions.undelete(b"r/f", replace=True)
    number = RepositoryId(tree.r)
    tree.fs.rollbacks.begin(number, before)
    while tree.fs.repositories.get(number).rolling_to_ns:
        tree.fs.upkeep()
    assert tree.names(tree.r) == [b"f"]
    tree.local(now).write_bytes(b"forged")
    tree.evict(now)
    assert tree.fs.facts(now).state is FileState.STUB


def test_p71_turning_the_machines_clock_ends_no_retention(tree: Tree) -> None:
    retain(tree, tree.file(b"f"))
    tree.clock.wall += 1000 * DAY * NS
    for boot in ("", "one", "two"):
        with pytest.raises(Retained):
            tree.fs.unlink(tree.r, b"f")
        tree.crash(boot_id=boot)
    tree.clock.sleep(11 * DAY)
    tree.fs.unlink(tree.r, b"f")


def test_p72_an_archive_restored_from_one_target_refuses_the_same(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    world = Recorded(home)
    known = world.fs.repositories.get(RepositoryId(world.share))
    world.fs.repositories.set(dataclasses.replace(known, retention=RetentionMode.COMPLIANCE))
    for name in (b"retained", b"held"):
        world.write(name, name)
    world.fs.retentions.retain([(world.inode(b"retained"), Inode(0))], seconds=DAY)
    world.fs.retentions.hold(world.inode(b"held"), "case", "a letter")
    recorded(world)
    made = restored(world, tmp_path / "made")
    for name, refusal in ((b"retained", Retained), (b"held", Held)):
        with pytest.raises(refusal):
            made.unlink(name)
        with pytest.raises(refusal):
            made.write(name, b"forged")
