"""A repository's tree as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_history import overwrite, packed
from tests.unit.fs.test_kept_versions import content
from vnafs.domain.errors import Busy, InvalidArgument, ReadOnly, Refused
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.retrace import Outcome
from vnafs.fs.rollback import Preview
from vnafs.fs.settings import Settings

Shape = dict[bytes, tuple[object, ...]]


class Crash(BaseException):
    """The process dies here."""


class Fate(Faults):
    """Dies at the nth time that a point is reached."""

    def __init__(self) -> None:
        self.left = -1

    def reach(self, point: str) -> None:
        if point.startswith("rollback.") and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                raise Crash(point)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1), faults=Fate())


def shape(tree: Tree, folder: Inode | None = None, path: bytes = b"") -> Shape:
    """All there is to be seen below a directory: kinds, modes, bytes, link targets, attributes."""
    found: Shape = {}
    for _, name, seen in tree.fs.listing(folder or tree.r, 2):
        below = path + b"/" + name
        shown: list[object] = [seen.mode, seen.uid]
        if stat.S_ISREG(seen.mode):
            facts = tree.fs.facts(seen.inode)
            shown += [facts.sha256, seen.mtime_ns, seen.size_bytes, seen.nlink]
            shown += [(key, tree.fs.getxattr(seen.inode, key)) for key in tree.fs.listxattr(seen.inode)]
        elif stat.S_ISLNK(seen.mode):
            shown.append(tree.fs.readlink(seen.inode))
        found[below] = tuple(shown)
        if stat.S_ISDIR(seen.mode):
            found |= shape(tree, seen.inode, below)
    return found


def moment(tree: Tree) -> int:
    """Now, and a second later it is past."""
    now = tree.clock.now()
    tree.clock.sleep(1)
    return now


def roll(tree: Tree, to_ns: int) -> dict[str, int]:
    number = RepositoryId(tree.r)
    tree.fs.rollbacks.begin(number, to_ns)
    finish(tree)
    return tree.fs.rollbacks.counts(number)


def finish(tree: Tree) -> None:
    for _ in range(10_000):
        if not tree.fs.repositories.get(RepositoryId(tree.r)).rolling_to_ns:
            return
        if not tree.fs.rollbacks.step():
            tree.pack_left()
    raise AssertionError("a rollback that never ends")


def settle(tree: Tree) -> None:
    """Everything is packed."""
    for inode in files(tree):
        if tree.fs.facts(inode).state in {FileState.OPEN, FileState.SEALED}:
            tree.advance(inode, FileState.PACKED)
    tree.pack_left()


def files(tree: Tree, folder: Inode | None = None) -> list[Inode]:
    found = []
    for _, _, seen in tree.fs.listing(folder or tree.r, 2):
        if stat.S_ISDIR(seen.mode):
            found += files(tree, seen.inode)
        elif stat.S_ISREG(seen.mode):
            found.append(seen.inode)
    return found


def drain(tree: Tree) -> None:
    """What waits in limbo is packed, and goes."""
    for _ in range(1000):
        limbo = tree.fs.repositories.get(RepositoryId(tree.r)).limbo
        if not limbo:
            return
        for inode in files(tree, limbo):
            if tree.fs.facts(inode).state in {FileState.OPEN, FileState.SEALED}:
                tree.advance(inode, FileState.PACKED)
        tree.clock.sleep(3)
        tree.fs.rollbacks.step()
    raise AssertionError("limbo is never empty")


def test_what_a_ransomware_did_is_undone_and_can_be_done_again(tree: Tree) -> None:
    for number in range(600):
        packed(tree, b"%d.dcm" % number, b"image %d" % number)
    tree.fs.setxattr(tree.fs.lookup(tree.r, b"7.dcm").inode, b"user.x", b"1")
    good, before = shape(tree), moment(tree)
    for number in range(600):
        name = b"%d.dcm" % number
        inode = tree.fs.lookup(tree.r, name).inode
        if number % 3 == 0:
            overwrite(tree, inode, b"encrypted")
        elif number % 3 == 1:
            tree.fs.unlink(tree.r, name)
            tree.file(name + b".locked", b"encrypted")
        else:
            overwrite(tree, inode, b"encrypted")
            tree.fs.rename(tree.r, name, tree.r, name + b".locked")
    tree.file(b"README", b"pay")
    settle(tree)
    bad, after = shape(tree), moment(tree)
    counts = roll(tree, before)
    assert shape(tree) == good
    assert counts == {"restored": 600, "removed": 401}
    assert content(tree, tree.fs.lookup(tree.r, b"9.dcm").inode) == b"image 9"
    drain(tree)
    check_tree(tree.engine, tree.spool)
    roll(tree, after)
    assert shape(tree) == bad
    drain(tree)
    roll(tree, before)
    assert shape(tree) == good


def test_bytes_that_were_not_packed_yet_are_not_lost_by_a_rollback(tree: Tree) -> None:
    packed(tree, b"f", b"old")
    before = moment(tree)
    tree.fs.unlink(tree.r, b"f")
    tree.file(b"fresh", b"fresh bytes")
    after = moment(tree)
    roll(tree, before)
    assert tree.names(tree.r) == [b"f"]
    assert not tree.fs.rollbacks.step()
    assert tree.fs.repositories.get(RepositoryId(tree.r)).limbo
    roll(tree, after)
    assert tree.names(tree.r) == [b"fresh"]
    assert content(tree, tree.fs.lookup(tree.r, b"fresh").inode) == b"fresh bytes"
    check_tree(tree.engine, tree.spool)
    moment(tree)
    roll(tree, before)
    drain(tree)
    [shown] = [one for one in tree.fs.versions.history(b"r/fresh") if one.is_kept][-1:]
    tree.fs.versions.undelete(b"r/fresh", label=shown.label)
    assert content(tree, tree.fs.lookup(tree.r, b"fresh").inode) == b"fresh bytes"


def test_local_bytes_of_very_many_files_go_after_the_rollback(tmp_path: Path) -> None:
    settings = Settings(reserve_bytes=0, quiet_seconds=1, drops_pending_max=50)
    tree = Tree(tmp_path, settings=settings)
    before = moment(tree)
    for number in range(600):
        packed(tree, b"%d" % number)
    tree.clock.sleep(1)
    number = RepositoryId(tree.r)
    tree.fs.rollbacks.begin(number, before)
    syncs = tree.engine.syncs
    finish(tree)
    assert tree.engine.syncs == syncs + 1, "nobody waited for the disk"
    assert tree.fs.drops_pending == 50
    tree.crash()
    for _ in range(30):
        tree.fs.upkeep()
        tree.engine.sync(tree.engine.position)
        tree.fs.reap()
    assert not [name for _, _, names in os.walk(tree.spool.directory) for name in names]
    check_tree(tree.engine, tree.spool)


def test_directories_that_moved_into_each_other_come_apart(tree: Tree) -> None:
    p = tree.fs.mkdir(tree.r, b"p", 0o755, ALICE).inode
    q = tree.fs.mkdir(p, b"q", 0o755, ALICE).inode
    packed(tree, b"f")
    tree.fs.rename(tree.r, b"f", q, b"f")
    good, before = shape(tree), moment(tree)
    tree.fs.rename(p, b"q", tree.r, b"q")
    tree.fs.rename(tree.r, b"p", q, b"p")
    tree.fs.rename(q, b"f", p, b"g")
    assert roll(tree, before) == {"moved": 3, "removed": 2}
    assert shape(tree) == good
    assert tree.fs.lookup(p, b"q").inode == q
    check_tree(tree.engine, tree.spool)


def test_hard_links_come_back_as_links(tree: Tree) -> None:
    inode = packed(tree, b"a")
    tree.fs.link(inode, tree.r, b"b")
    good, before = shape(tree), moment(tree)
    overwrite(tree, inode, b"new")
    tree.fs.unlink(tree.r, b"a")
    roll(tree, before)
    assert shape(tree) == good
    assert tree.fs.lookup(tree.r, b"a").inode == tree.fs.lookup(tree.r, b"b").inode
    drain(tree)
    check_tree(tree.engine, tree.spool)


def test_what_was_never_kept_stays_as_it_is_now(tree: Tree) -> None:
    inode = packed(tree, b"f", b"one", FileState.SEALED)
    packed(tree, b"g", b"one", FileState.SEALED)
    before = moment(tree)
    for left in (inode, tree.fs.lookup(tree.r, b"g").inode):
        tree.local(left).write_bytes(b"changed behind vnafs")
    overwrite(tree, inode, b"two")
    tree.fs.unlink(tree.r, b"g")
    tree.file(b"g", b"another")
    assert roll(tree, before) == {"newer": 1, "lost": 1}
    assert content(tree, tree.fs.lookup(tree.r, b"f").inode) == b"two"
    assert content(tree, tree.fs.lookup(tree.r, b"g").inode) == b"another"


def test_a_rollback_waits_for_versions_that_are_still_to_be_packed(tree: Tree) -> None:
    number = RepositoryId(tree.r)
    inode = packed(tree, b"f", b"one", FileState.SEALED)
    before = moment(tree)
    overwrite(tree, inode, b"two")
    tree.fs.rollbacks.begin(number, before)
    for _ in range(5):
        tree.fs.rollbacks.step()
    assert tree.fs.repositories.get(number).rolling_to_ns
    assert tree.pack_left() == [Verdict.KEPT]
    finish(tree)
    assert content(tree, tree.fs.lookup(tree.r, b"f").inode) == b"one"


def test_a_rollback_does_not_wait_for_ever_nor_for_other_repositories(tree: Tree) -> None:
    number = RepositoryId(tree.r)
    packed(tree, b"f", b"one", FileState.SEALED)
    before = moment(tree)
    tree.fs.unlink(tree.r, b"f")
    other = RepositoryId(tree.repository("other"))
    tree.clock.sleep(1)
    tree.fs.rollbacks.begin(other, tree.clock.now())
    while tree.fs.repositories.get(other).rolling_to_ns:
        assert tree.fs.rollbacks.step() or not tree.fs.repositories.get(other).rolling_to_ns
    tree.fs.rollbacks.begin(number, before)
    assert not tree.fs.rollbacks.step()
    tree.clock.sleep(300)
    finish(tree)
    assert tree.fs.rollbacks.counts(number) == {"lost": 1}


def test_clients_change_nothing_meanwhile_and_may_read(tree: Tree) -> None:
    inode = packed(tree, b"f")
    handle = tree.open(packed(tree, b"g"), os.O_WRONLY)
    before = moment(tree)
    number = RepositoryId(tree.r)
    tree.fs.rollbacks.begin(number, before)
    calls = [
        lambda: tree.fs.unlink(tree.r, b"f"),
        lambda: tree.fs.mkdir(tree.r, b"d", 0o755, ALICE),
        lambda: tree.create(b"new"),
        lambda: tree.open(inode, os.O_WRONLY),
        lambda: tree.fs.write(handle, 0, b"x"),
        lambda: tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE),
        lambda: tree.fs.rename(tree.r, b"f", tree.r, b"h"),
        lambda: tree.fs.versions.undelete(b"r/f", to=b"r/h"),
    ]
    for call in calls:
        with pytest.raises(ReadOnly):
            call()
    assert tree.read(inode) == b"bytes"
    other = tree.repository("other")
    tree.fs.mkdir(other, b"d", 0o755, ALICE)
    with pytest.raises(Busy):
        tree.fs.rollbacks.begin(number, before + 1)
    tree.fs.rollbacks.begin(number, before)
    finish(tree)
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)


def test_only_moments_that_are_kept_can_be_gone_back_to(tree: Tree) -> None:
    number, made = RepositoryId(tree.r), tree.clock.now()
    with pytest.raises(InvalidArgument):
        tree.fs.rollbacks.begin(number, made + 1)
    with pytest.raises(Refused):
        tree.fs.rollbacks.begin(number, made - 1)
    tree.clock.sleep(31 * 86400)
    with pytest.raises(Refused):
        tree.fs.rollbacks.begin(number, made)


def test_a_preview_says_what_a_rollback_does_and_does_nothing(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    for number in range(300):
        packed(tree, b"%d" % number)
        tree.fs.rename(tree.r, b"%d" % number, folder, b"%d" % number)
    before = moment(tree)
    for number in range(300):
        tree.fs.unlink(folder, b"%d" % number)
    tree.fs.rmdir(tree.r, b"d")
    packed(tree, b"new")
    found, seen = Preview(), shape(tree)
    for _ in tree.fs.rollbacks.preview(RepositoryId(tree.r), before, found):
        pass
    assert found.counts == {Outcome.RESTORED: 301, Outcome.REMOVED: 1}
    assert found.samples[Outcome.REMOVED] == [b"new"]
    assert b"d/0" in found.samples[Outcome.RESTORED]
    assert shape(tree) == seen
    assert roll(tree, before) == {outcome.value: count for outcome, count in found.counts.items()}
