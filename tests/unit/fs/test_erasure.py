"""Files that leave the tree for good: names, versions, attributes, and what says that they were erased."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_crash_points import KillAt, Killed
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import InvalidArgument, NotFound, Refused, TooMuch
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.asof import AS_OF, name_of
from vnafs.fs.erasure import AT_ONCE_MAX, LEFT_SECONDS, Wanted
from vnafs.fs.settings import Settings
from vnafs.index import erasures
from vnafs.index.erasures import Erased, Stage


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def packed(tree: Tree, name: bytes, data: bytes = b"bytes", parent: Inode | None = None) -> Inode:
    handle, found = tree.fs.create(parent or tree.r, name, 0o644, os.O_RDWR | os.O_EXCL, ALICE)
    tree.fs.write(handle, 0, data)
    tree.fs.release(handle)
    tree.clock.sleep(10)
    assert tree.advance(found.inode, FileState.PACKED) is Verdict.DONE
    return found.inode


def overwrite(tree: Tree, inode: Inode, data: bytes) -> None:
    handle = tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.fs.write(handle, 0, data)
    tree.fs.release(handle)
    tree.clock.sleep(10)
    assert tree.advance(inode, FileState.PACKED) is Verdict.DONE


def repository(tree: Tree) -> RepositoryId:
    return RepositoryId(tree.r)


def begin(tree: Tree) -> int:
    return tree.fs.erasures.begin(repository(tree), "the patient asked for it").number


def erase(tree: Tree, *wanted: Wanted) -> int:
    number = begin(tree)
    assert tree.fs.erasures.add(number, wanted) == [()] * len(wanted)
    tree.fs.erasures.finish(number)
    settle(tree)
    return number


def settle(tree: Tree) -> None:
    while tree.fs.erasures.step():
        pass
    tree.fs.fold()
    tree.engine.sync(tree.engine.position)
    while tree.fs.reap():
        pass
    check_tree(tree.engine, tree.spool)


def why(tree: Tree, wanted: Wanted) -> tuple[str, ...]:
    [found] = tree.fs.erasures.refusals(repository(tree), [wanted])
    return found


def named(tree: Tree, inode: Inode, *names: bytes) -> Wanted:
    return Wanted(inode, tuple((tree.r, name) for name in names))


def erased(tree: Tree, number: int) -> list[Erased]:
    with tree.engine.read() as reader:
        return list(erasures.versions(reader, number))


def rows_with(tree: Tree, text: bytes) -> set[bytes]:
    """The tables, but for the feed, in which some text stands."""
    with tree.engine.read() as reader:
        rows = list(reader.scan(b"A", b"\xff"))
    return {bytes(key[:1]) for key, value in rows if text in bytes(key) + bytes(value)} - {b"F"}


def test_a_file_goes_with_its_name_its_attributes_its_local_bytes_and_all_kept_versions(tree: Tree) -> None:
    inode = packed(tree, b"doe^jane")
    tree.fs.setxattr(inode, b"user.who", b"doe^jane again")
    overwrite(tree, inode, b"other bytes")
    tree.fs.rename(tree.r, b"doe^jane", tree.r, b"doe^jane.2")
    tree.clock.sleep(5)
    local = [tree.fs.local_path(inode, version.version) for version in tree.fs.versions.history(b"r/doe^jane.2")]
    number = erase(tree, named(tree, inode, b"doe^jane.2"))
    assert rows_with(tree, b"doe^jane") == set()
    assert not any(os.path.exists(path) for path in local)
    assert len({one.sha256 for one in erased(tree, number)} - {None}) == 2
    assert {one.size_bytes for one in erased(tree, number)} == {5, 11}
    with pytest.raises(NotFound):
        tree.fs.versions.undelete(b"r/doe^jane")
    with pytest.raises(NotFound):
        tree.fs.versions.undelete(b"r/doe^jane.2")
    with tree.engine.read() as reader:
        found = erasures.find(reader, number)
    assert (found.stage, found.files, int(found.repository)) == (Stage.OVER, 1, int(tree.r))
    assert found.reason == "the patient asked for it"


def test_what_was_deleted_before_and_is_remembered_goes_too(tree: Tree) -> None:
    inode = packed(tree, b"doe^jane")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"doe^jane")
    [found] = tree.fs.erasures.remembered(tree.r, b"doe^jane")
    assert found.inode == inode
    assert [one.inode for one in tree.fs.erasures.remembered(tree.r)] == [inode]
    number = erase(tree, Wanted(inode))
    assert rows_with(tree, b"doe^jane") == set()
    assert [one.size_bytes for one in erased(tree, number)] == [5]


def test_a_folder_goes_once_it_is_empty_with_the_names_it_had(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"doe^jane", 0o755, ALICE).inode
    inode = packed(tree, b"image", parent=folder)
    tree.clock.sleep(5)
    tree.fs.rename(tree.r, b"doe^jane", tree.r, b"doe^j")
    number = begin(tree)
    [why_folder] = tree.fs.erasures.add(number, [named(tree, folder, b"doe^j")])
    assert why_folder == ("something is in it still",)
    wanted = [Wanted(inode, ((folder, b"image"),)), named(tree, folder, b"doe^j")]
    assert tree.fs.erasures.add(number, wanted) == [(), ()]
    tree.fs.erasures.finish(number)
    settle(tree)
    assert rows_with(tree, b"doe^j") == set()


def test_a_file_of_several_names_goes_with_all_of_them_or_not_at_all(tree: Tree) -> None:
    inode = packed(tree, b"one")
    tree.fs.link(inode, tree.r, b"two")
    [reason] = why(tree, named(tree, inode, b"one"))
    assert "1 of its 2 names" in reason
    assert why(tree, named(tree, inode, b"one", b"one"))
    erase(tree, named(tree, inode, b"one", b"two"))
    assert {name for _, name, _ in tree.fs.listing(tree.r)} == {b".", b".."}


def test_every_reason_is_told_and_what_is_protected_stays(tree: Tree) -> None:
    rules = tree.fs.repositories.get(repository(tree))
    tree.fs.repositories.set(dataclasses.replace(rules, retention=RetentionMode.GOVERNANCE, retention_seconds=86400))
    inode = packed(tree, b"f")
    tree.fs.retentions.retain([(inode, Inode(0))], seconds=864000)
    tree.fs.retentions.hold(tree.r, "case 1", "court")
    handle = tree.open(inode)
    reasons = why(tree, named(tree, inode, b"f", b"g"))
    assert [reason.split(" ")[0] for reason in reasons] == ["retained", "held:", "it"]
    assert tree.fs.erasures.add(begin(tree), [named(tree, inode, b"f")]) == [reasons]
    tree.fs.release(handle)
    assert tree.fs.lookup(tree.r, b"f").inode == inode


def test_what_is_remembered_of_where_something_is_held_stays(tree: Tree) -> None:
    inode = packed(tree, b"f")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"f")
    tree.fs.retentions.hold(tree.r, "case 1", "court")
    assert why(tree, Wanted(inode)) == ("held: it was where something is held",)


def test_what_is_not_in_packs_yet_stays(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    assert why(tree, named(tree, inode, b"f")) == ("its bytes are on their way into packs; try again in a minute",)


def test_nothing_goes_where_something_is_wrong(tree: Tree) -> None:
    inode = packed(tree, b"f")
    number = begin(tree)
    rules = tree.fs.repositories.get(repository(tree))
    tree.fs._core.repositories[rules.id] = dataclasses.replace(rules, tripped_ns=1, tripped_why="much")
    assert "tripwire" in why(tree, named(tree, inode, b"f"))[0]
    assert tree.fs.erasures.add(number, [named(tree, inode, b"f")]) != [()]
    with pytest.raises(Refused):
        begin(tree)
    tree.fs._core.repositories[rules.id] = dataclasses.replace(rules, rolling_to_ns=1)
    assert "rolled back" in why(tree, named(tree, inode, b"f"))[0]


def test_the_repository_itself_and_what_is_elsewhere_stay(tree: Tree) -> None:
    assert "repository itself" in why(tree, Wanted(tree.r))[0]
    assert why(tree, Wanted(Inode(10**9))) == ("it is gone",)
    with pytest.raises(NotFound):
        tree.fs.erasures.begin(RepositoryId(10**9), "why")
    with pytest.raises(InvalidArgument):
        tree.fs.erasures.begin(repository(tree), " ")
    with pytest.raises(InvalidArgument):
        tree.fs.erasures.add(begin(tree), [Wanted(Inode(5))] * (AT_ONCE_MAX + 1))


def test_an_erasure_that_was_left_goes_on_with_what_it_has_and_takes_no_more(tree: Tree) -> None:
    first, second = packed(tree, b"1"), packed(tree, b"2")
    number = begin(tree)
    tree.fs.erasures.add(number, [named(tree, first, b"1")])
    settle(tree)
    tree.clock.sleep(LEFT_SECONDS + 1)
    settle(tree)
    [found] = tree.fs.erasures.every()
    assert (found.stage, found.files) == (Stage.OVER, 1)
    with pytest.raises(Refused):
        tree.fs.erasures.add(number, [named(tree, second, b"2")])
    assert tree.fs.lookup(tree.r, b"2").inode == second


def test_a_version_that_came_back_under_another_number_is_another_file(tree: Tree) -> None:
    inode = packed(tree, b"f")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"f")
    back = tree.fs.versions.undelete(b"r/f")
    erase(tree, Wanted(inode))
    assert tree.fs.lookup(tree.r, b"f").inode == back.inode


def test_a_death_at_any_step_leaves_a_whole_tree_and_the_next_life_goes_on(tmp_path: Path) -> None:
    for nth in range(1, 60):
        directory = tmp_path / str(nth)
        directory.mkdir()
        faults = KillAt()
        tree = Tree(directory, settings=Settings(reserve_bytes=0, quiet_seconds=1), faults=faults)
        inodes = [packed(tree, b"doe^%d" % number) for number in range(3)]
        for at, inode in enumerate(inodes):
            overwrite(tree, inode, b"other")
            tree.fs.rename(tree.r, b"doe^%d" % at, tree.r, b"doe^%d." % at)
        faults.left = nth
        died = False
        try:
            number = begin(tree)
            for at, inode in enumerate(inodes):
                tree.fs.erasures.add(number, [named(tree, inode, b"doe^%d." % at)])
            tree.fs.erasures.finish(number)
            settle(tree)
        except Killed:
            died = True
        tree.faults = None
        tree.crash()
        tree.clock.sleep(LEFT_SECONDS + 1)
        settle(tree)
        left = tree.names(tree.r)
        for erasure in tree.fs.erasures.every():
            assert erasure.stage is Stage.OVER
            assert erasure.files == 3 - len(left)
            assert len({one.inode for one in erased(tree, erasure.number)}) == 3 - len(left)
        for at in range(3):
            is_there = b"doe^%d." % at in left
            assert bool(rows_with(tree, b"doe^%d" % at)) == is_there
        if not died:
            assert not left
            return
    pytest.fail("it never came to its end")


def test_neither_the_past_nor_a_rollback_leads_to_it_while_names_are_still_searched_for(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"folder", 0o755, ALICE).inode
    inode = packed(tree, b"doe^jane", parent=folder)
    tree.clock.sleep(5)
    before = tree.clock.now()
    tree.clock.sleep(5)
    tree.fs.rename(folder, b"doe^jane", tree.r, b"elsewhere")
    number = begin(tree)
    assert tree.fs.erasures.add(number, [named(tree, inode, b"elsewhere")]) == [()]
    tree.fs.erasures.finish(number)
    assert rows_with(tree, b"doe^jane"), "the name that it had in the other folder"
    assert tree.fs.erasures.remembered(folder) == []
    past = tree.fs.find(tree.r, AS_OF)
    for name in (name_of(before // NANOSECONDS), b"folder"):
        assert past is not None
        past = tree.fs.find(past.inode, name)
    assert past is not None
    assert tree.fs.find(past.inode, b"doe^jane") is None
    assert [name for _, name, _ in tree.fs.listing(past.inode)] == [b".", b".."]
    tree.fs.rollbacks.begin(repository(tree), before)
    while tree.fs.rollbacks.step():
        pass
    assert tree.names(folder) == []
    settle(tree)
    assert rows_with(tree, b"doe^jane") == set()


def test_an_erasure_has_a_limit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnafs.fs.erasure.FILES_MAX", 1)
    first, second = packed(tree, b"1"), packed(tree, b"2")
    number = begin(tree)
    assert tree.fs.erasures.add(number, [named(tree, first, b"1")]) == [()]
    with pytest.raises(TooMuch):
        tree.fs.erasures.add(number, [named(tree, second, b"2")])


def test_a_directory_and_a_link_go_with_their_attributes(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"doe^jane", 0o755, ALICE).inode
    tree.fs.setxattr(folder, b"user.who", b"doe^jane")
    link = tree.fs.symlink(tree.r, b"link", b"doe^jane", ALICE).inode
    number = erase(tree, named(tree, link, b"link"), named(tree, folder, b"doe^jane"))
    assert rows_with(tree, b"doe^jane") == set()
    assert [one.sha256 for one in erased(tree, number)] == [None, None]
    assert tree.stat(tree.r).nlink == 2
