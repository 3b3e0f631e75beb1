"""Committed files, holds and the clock, through the calls of the tree."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import (
    Committed,
    Held,
    InvalidArgument,
    NoSpace,
    NoSuchAttribute,
    NotFound,
    NotPermitted,
    Refused,
    Retained,
    TooMuch,
)
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.rename import RENAME_EXCHANGE
from vnafs.fs.settings import Settings
from vnafs.index import holds, retentions, steady
from vnafs.index.engine import prefix_stop

DAY = 86400
NS = 10**9


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    rules(made, retention=RetentionMode.COMPLIANCE, retention_seconds=10 * DAY)
    return made


def rules(tree: Tree, *, reason: str = "", **changes: object) -> None:
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(known, **changes), reason=reason)  # type: ignore[arg-type]


def retain(tree: Tree, inode: Inode, days: int = 10, **how: object) -> bool:
    [changed] = tree.fs.retentions.retain([(inode, Inode(0))], seconds=days * DAY, **how)  # type: ignore[arg-type]
    return changed


def deeds(tree: Tree, *actions: str) -> list[dict[str, Any]]:
    """What was noted of some kinds, in order."""
    return [what for _, what in tree.fs.retentions.audit(0, 1000) if what["action"] in actions]


def folder(tree: Tree, name: bytes, parent: Inode | None = None) -> Inode:
    return tree.fs.mkdir(tree.r if parent is None else parent, name, 0o755, ALICE).inode


def file_in(tree: Tree, parent: Inode, name: bytes, *, sealed: bool = True) -> Inode:
    handle, _ = tree.fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ALICE)
    tree.fs.write(handle, 0, b"bytes")
    tree.fs.release(handle)
    if sealed:
        assert tree.advance(handle.file.inode, FileState.PACKED) is Verdict.DONE
    return handle.file.inode


def changes_of(tree: Tree, inode: Inode) -> dict[str, Callable[[], object]]:
    """Every way to change a file's bytes or attributes."""
    fs = tree.fs

    def setattr_of(**changes: int) -> Callable[[], object]:
        return lambda: fs.setattr(inode, AttributeChanges(**changes), ALICE)

    return {
        "write": lambda: tree.open(inode, os.O_WRONLY),
        "both": lambda: tree.open(inode, os.O_RDWR),
        "truncating open": lambda: tree.open(inode, os.O_RDONLY | os.O_TRUNC),
        "creating open": lambda: fs.create(tree.r, b"f", 0o644, os.O_WRONLY | os.O_CREAT, ALICE),
        "truncate": setattr_of(size_bytes=0),
        "same size": setattr_of(size_bytes=5),
        "mtime": setattr_of(mtime_ns=1),
        "atime back": setattr_of(atime_ns=1),
        "atime and mtime": setattr_of(atime_ns=1 << 62, mtime_ns=1),
        "owner": setattr_of(uid=5),
        "group": setattr_of(gid=5),
        "setxattr": lambda: fs.setxattr(inode, b"user.x", b"1"),
        "removexattr": lambda: fs.removexattr(inode, b"user.there"),
    }


def leaves_of(tree: Tree) -> dict[str, Callable[[], object]]:
    """Every way in which the name `f` may go."""
    fs, r = tree.fs, tree.r
    tree.file(b"other")
    return {
        "unlink": lambda: fs.unlink(r, b"f"),
        "rename": lambda: fs.rename(r, b"f", r, b"g"),
        "replaced": lambda: fs.rename(r, b"other", r, b"f"),
        "exchanged": lambda: fs.rename(r, b"f", r, b"other", RENAME_EXCHANGE),
        "exchanged with": lambda: fs.rename(r, b"other", r, b"f", RENAME_EXCHANGE),
    }


# -- what a committed file refuses ---------------------------------------------------------------------------------


def test_a_retained_file_refuses_every_change_and_every_loss_of_a_name(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    tree.fs.setxattr(inode, b"user.there", b"1")
    assert retain(tree, inode)
    chmod = {"mode": lambda: tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE)}
    for name, call in {**changes_of(tree, inode), **leaves_of(tree), **chmod}.items():
        with pytest.raises(Retained):
            raise AssertionError(f"{name} was done: {call()}")
    assert tree.read(inode) == b"bytes"
    check_tree(tree.engine, tree.spool)


def test_after_its_time_a_file_may_go_and_is_still_never_changed(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    tree.fs.setxattr(inode, b"user.there", b"1")
    retain(tree, inode)
    tree.clock.sleep(11 * DAY)
    for name, call in changes_of(tree, inode).items():
        if name == "atime and mtime":
            continue
        with pytest.raises(Committed):
            raise AssertionError(f"{name} was done: {call()}")
    tree.fs.setattr(inode, AttributeChanges(mode=0o644), ALICE)  # clients of SMB remove nothing that is read-only
    tree.fs.rename(tree.r, b"f", tree.r, b"g")
    tree.fs.unlink(tree.r, b"g")
    with tree.engine.read() as reader:
        assert not list(retentions.every(reader))


@pytest.mark.parametrize("how", ["unlink", "rename", "replaced", "exchanged", "exchanged with"])
def test_after_its_time_any_name_may_go(tree: Tree, how: str) -> None:
    retain(tree, tree.file(b"f"))
    tree.clock.sleep(11 * DAY)
    leaves_of(tree)[how]()
    check_tree(tree.engine, tree.spool)


def test_every_name_of_a_retained_file_stays(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.fs.link(inode, tree.r, b"g")
    retain(tree, inode)
    tree.fs.link(inode, tree.r, b"h")
    for name in (b"f", b"g", b"h"):
        with pytest.raises(Retained):
            tree.fs.unlink(tree.r, name)


def test_directories_above_a_retained_file_are_not_moved_before_its_date(tree: Tree) -> None:
    a = folder(tree, b"a")
    b = folder(tree, b"b", a)
    beside = folder(tree, b"beside")
    inode = file_in(tree, b, b"f")
    retain(tree, inode)
    for parent, name, flags in ((tree.r, b"a", 0), (a, b"b", 0), (tree.r, b"a", RENAME_EXCHANGE)):
        with pytest.raises(Retained):
            tree.fs.rename(parent, name, tree.r, b"beside" if flags else b"moved", flags)
    with pytest.raises(Retained):
        tree.fs.rename(tree.r, b"beside", tree.r, b"a", RENAME_EXCHANGE)
    tree.fs.rename(tree.r, b"beside", b, b"inside")
    tree.fs.link(inode, beside, b"again")
    with pytest.raises(Retained):
        tree.fs.rename(b, b"inside", tree.r, b"out")
    tree.clock.sleep(12 * DAY)  # dates of directories are rounded up to days
    tree.fs.rename(tree.r, b"a", tree.r, b"moved")
    later = file_in(tree, b, b"later")
    retain(tree, later)
    with pytest.raises(Retained):
        tree.fs.rename(tree.r, b"moved", tree.r, b"a")


def test_a_file_whose_directory_has_its_date_may_be_retained_for_longer(tree: Tree) -> None:
    a = folder(tree, b"a")
    retain(tree, file_in(tree, a, b"1"), days=3)
    retain(tree, file_in(tree, a, b"2"), days=30)
    tree.clock.sleep(5 * DAY)
    with pytest.raises(Retained):
        tree.fs.rename(tree.r, b"a", tree.r, b"b")
    tree.fs.unlink(a, b"1")


def test_undelete_replaces_no_retained_file(tree: Tree) -> None:
    old = file_in(tree, tree.r, b"f")
    tree.fs.unlink(tree.r, b"f")
    now = file_in(tree, tree.r, b"f")
    retain(tree, now)
    with pytest.raises(Retained):
        tree.fs.versions.undelete(b"r/f", label=f"{old}.1", replace=True)
    assert tree.fs.lookup(tree.r, b"f").inode == now


def test_a_rollback_leaves_what_is_retained_or_held_where_it_is(tree: Tree) -> None:
    gone = file_in(tree, tree.r, b"gone")
    before = tree.clock.now()
    tree.clock.sleep(DAY)
    tree.fs.unlink(tree.r, b"gone")
    kept = file_in(tree, tree.r, b"kept")
    free = file_in(tree, tree.r, b"free")
    later = folder(tree, b"later")
    below = file_in(tree, later, b"below")
    held = folder(tree, b"held")
    evidence = file_in(tree, held, b"evidence")
    instead = file_in(tree, tree.r, b"gone")
    for inode in (kept, below, instead):
        retain(tree, inode)
    tree.fs.retentions.hold(evidence, "case", "a letter")
    number = RepositoryId(tree.r)
    tree.fs.rollbacks.begin(number, before)
    while tree.fs.repositories.get(number).rolling_to_ns:
        tree.fs.upkeep()
    assert sorted(tree.names(tree.r)) == [b"gone", b"held", b"kept", b"later"]
    assert tree.fs.lookup(tree.r, b"gone").inode == instead != gone
    assert tree.names(later) == [b"below"]
    assert tree.names(held) == [b"evidence"]
    assert tree.fs.rollbacks.counts(number)["guarded"] == 4
    assert tree.fs._core.find(free) is None or tree.fs._core.row(free).nlink
    check_tree(tree.engine, tree.spool)


def test_bytes_changed_behind_our_back_never_become_those_of_a_retained_file(tree: Tree) -> None:
    inode = file_in(tree, tree.r, b"f", sealed=False)
    assert tree.advance(inode, FileState.REPLICATED) is Verdict.DONE
    retain(tree, inode)
    version = tree.fs.facts(inode).version
    tree.local(inode).write_bytes(b"forged")
    assert tree.evict(inode) is Verdict.DONE
    facts = tree.fs.facts(inode)
    assert (facts.version, facts.state) == (version, FileState.STUB)


# -- committing ------------------------------------------------------------------------------------------------------


def test_removing_the_write_bits_commits_until_the_atime(tree: Tree) -> None:
    inode = tree.file(b"f")
    until = tree.clock.now() + 5 * DAY * NS
    tree.fs.setattr(inode, AttributeChanges(atime_ns=until), ALICE)
    tree.fs.setattr(inode, AttributeChanges(mode=0o644), ALICE)
    assert tree.fs.retentions.of(inode).retention is None
    tree.fs.setattr(inode, AttributeChanges(mode=0o444), ALICE)
    found = tree.fs.retentions.of(inode).retention
    assert found is not None
    assert (found.mode, found.until_ns) == (RetentionMode.COMPLIANCE, until)
    later = until + DAY * NS
    assert tree.fs.setattr(inode, AttributeChanges(atime_ns=later), ALICE).atime_ns == later
    found = tree.fs.retentions.of(inode).retention
    assert found is not None
    assert found.until_ns == later


@pytest.mark.parametrize("case", ["past", "off", "was read-only", "directory"])
def test_nothing_else_commits(tree: Tree, case: str) -> None:
    until = tree.clock.now() + 5 * DAY * NS
    parent = tree.repository("plain") if case == "off" else tree.r
    if case == "directory":
        inode = folder(tree, b"d")
    else:
        handle, _ = tree.fs.create(parent, b"f", 0o444 if case == "was read-only" else 0o644, os.O_RDWR, ALICE)
        tree.fs.release(handle)
        inode = handle.file.inode
    atime = tree.clock.now() - 1 if case == "past" else until
    tree.fs.setattr(inode, AttributeChanges(atime_ns=atime), ALICE)
    tree.fs.setattr(inode, AttributeChanges(mode=0o444), ALICE)
    tree.fs.setattr(inode, AttributeChanges(mtime_ns=5), ALICE)
    assert tree.fs.retentions.of(inode).retention is None


def test_a_date_that_nobody_can_mean_is_refused(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.fs.setattr(inode, AttributeChanges(atime_ns=tree.clock.now() + 200 * 365 * DAY * NS), ALICE)
    with pytest.raises(InvalidArgument):
        tree.fs.setattr(inode, AttributeChanges(mode=0o444), ALICE)
    with pytest.raises(InvalidArgument):
        retain(tree, inode, days=200 * 365)
    assert tree.stat(inode).mode & 0o777 == 0o644


def test_whoever_still_has_it_open_for_write_writes_no_more(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    tree.fs.setattr(inode, AttributeChanges(atime_ns=tree.clock.now() + DAY * NS, mode=0o400), ALICE)
    with pytest.raises(NotPermitted):
        tree.fs.write(handle, 0, b"forged")
    tree.fs.release(handle)
    assert tree.read(inode) == b"bytes"
    assert tree.stat(inode).size_bytes == 5


def test_files_are_committed_by_themselves_once_nothing_changes_any_more(tree: Tree) -> None:
    early = file_in(tree, tree.r, b"early")
    rules(tree, autocommit_seconds=3600)
    late, never = file_in(tree, tree.r, b"late"), file_in(tree, tree.r, b"never", sealed=False)
    work(tree)
    tree.clock.sleep(3000)
    tree.fs.rename(tree.r, b"late", tree.r, b"renamed")
    work(tree)
    assert committed(tree) == set()
    tree.clock.sleep(1000)
    work(tree)
    assert committed(tree) == {early}
    tree.fs.setxattr(late, b"user.x", b"1")
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == {early}  # its queue row saw the change of its name, and then that of its attributes
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == {early, late}
    tree.advance(never, FileState.SEALED)
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == {early, late, never}
    with tree.engine.read() as reader:
        assert not list(reader.scan(b"C", b"D"))


def test_a_file_that_was_overwritten_waits_anew(tree: Tree) -> None:
    rules(tree, autocommit_seconds=3600)
    inode = file_in(tree, tree.r, b"f")
    tree.clock.sleep(3000)
    handle = tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.fs.write(handle, 0, b"corrected")
    tree.clock.sleep(3000)
    work(tree)
    assert committed(tree) == set()
    tree.fs.release(handle)
    tree.advance(inode, FileState.SEALED)
    work(tree)
    assert committed(tree) == set()
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == {inode}


def test_the_walk_for_older_files_goes_on_after_a_crash(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnafs.fs.retention.WALKED_PER_STEP_MAX", 4)
    files = {file_in(tree, tree.r, b"%d" % number) for number in range(10)}
    rules(tree, autocommit_seconds=3600)
    tree.fs.upkeep()
    tree.fs.upkeep()
    tree.crash(boot_id="one")
    work(tree)
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == files


def test_the_walk_for_older_files_leaves_none_out_when_the_disk_is_full(tree: Tree) -> None:
    files = {file_in(tree, tree.r, b"%d" % number) for number in range(10)}
    rules(tree, autocommit_seconds=3600)
    tree.engine.room_for = 0
    with pytest.raises(NoSpace):
        work(tree)
    tree.engine.room_for = None
    work(tree)
    tree.clock.sleep(3700)
    work(tree)
    assert committed(tree) == files


def test_a_death_right_after_a_rule_was_written_leaves_no_older_file_out(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = file_in(tree, tree.r, b"older")
    work(tree)  # no walk is under way any more

    def die() -> None:
        raise Dead

    monkeypatch.setattr(tree.fs._core, "repositories_changed", die)
    with pytest.raises(Dead):
        rules(tree, autocommit_seconds=3600)
    tree.crash()
    work(tree)
    tree.clock.sleep(3700)
    work(tree)
    assert older in committed(tree)


class Dead(BaseException):
    """kill -9."""


def work(tree: Tree) -> None:
    while tree.fs.upkeep():
        pass


def committed(tree: Tree) -> set[Inode]:
    with tree.engine.read() as reader:
        return {inode for inode, _ in retentions.every(reader)}


# -- longer and shorter ----------------------------------------------------------------------------------------------


def test_compliance_is_never_shortened_and_governance_with_a_reason_that_is_kept(tree: Tree) -> None:
    firm = tree.file(b"firm")
    retain(tree, firm)
    assert not retain(tree, firm, days=5)
    with pytest.raises(Retained):
        retain(tree, firm, days=5, shorten=True, reason="a mistake")
    assert retain(tree, firm, days=20)
    loose = Inode(tree.fs.repositories.add("g", retention=RetentionMode.GOVERNANCE, uid=ALICE.uid, gid=ALICE.gid).id)
    inode = file_in(tree, loose, b"f")
    retain(tree, inode)
    with pytest.raises(InvalidArgument):
        retain(tree, inode, days=5, shorten=True)
    assert retain(tree, inode, days=5, shorten=True, reason="a mistake")
    found = tree.fs.retentions.of(inode).retention
    assert found is not None
    assert found.until_ns == tree.clock.now() + 5 * DAY * NS
    [noted] = deeds(tree, "shortened")
    assert (noted["action"], noted["inode"], noted["reason"]) == ("shortened", inode, "a mistake")


def test_compliance_is_never_left_and_governance_with_a_reason(tree: Tree) -> None:
    for weaker in (
        {"retention": RetentionMode.OFF, "retention_seconds": 0},
        {"retention": RetentionMode.GOVERNANCE},
        {"retention_seconds": DAY},
    ):
        with pytest.raises(Refused):
            rules(tree, reason="I want to", **weaker)
    rules(tree, retention_seconds=20 * DAY, autocommit_seconds=100)
    with pytest.raises(Refused):
        rules(tree, reason="I want to", autocommit_seconds=0)
    number = tree.fs.repositories.add("g", retention=RetentionMode.GOVERNANCE, retention_seconds=DAY).id
    known = tree.fs.repositories.get(number)
    off = dataclasses.replace(known, retention=RetentionMode.OFF, retention_seconds=0)
    inode = file_in(tree, Inode(number), b"f")
    retain(tree, inode)
    with pytest.raises(Refused):
        tree.fs.repositories.set(off)
    tree.fs.repositories.set(off, reason="moved elsewhere")
    with pytest.raises(Retained):
        tree.fs.unlink(Inode(number), b"f")
    tree.clock.sleep(11 * DAY)
    tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))
    [noted] = deeds(tree, "weakened")
    assert (noted["inode"], noted["reason"]) == (number, "moved elsewhere")


def test_what_is_no_file_or_in_no_such_repository_is_not_committed(tree: Tree) -> None:
    with pytest.raises(InvalidArgument):
        retain(tree, folder(tree, b"d"))
    handle = tree.create(b"f")
    tree.fs.unlink(tree.r, b"f")
    with pytest.raises(NotFound):
        retain(tree, handle.file.inode)
    tree.fs.setattr(handle.file.inode, AttributeChanges(atime_ns=1 << 62), ALICE)
    tree.fs.setattr(handle.file.inode, AttributeChanges(mode=0o400), ALICE)
    tree.fs.release(handle)
    other = tree.repository("plain")
    with pytest.raises(Refused):
        retain(tree, file_in(tree, other, b"f"))
    check_tree(tree.engine, tree.spool)


# -- holds -----------------------------------------------------------------------------------------------------------


def test_a_held_file_refuses_every_change_until_no_hold_is_left(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    tree.fs.setxattr(inode, b"user.there", b"1")
    for name in ("one", "two"):
        tree.fs.retentions.hold(inode, name, "a letter")
    for number in range(2):
        chmod = {"mode": lambda: tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE)}
        tree.crash()
        for name, call in {**changes_of(tree, inode), **leaves_of(tree), **chmod}.items():
            with pytest.raises(Held):
                raise AssertionError(f"{name} was done: {call()}")
        tree.fs.unlink(tree.r, b"other")
        tree.fs.retentions.release(inode, ("one", "two")[number], "the end")
    with pytest.raises(NotFound):
        tree.fs.retentions.release(inode, "one", "again")
    tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE)
    tree.fs.unlink(tree.r, b"f")
    assert len(deeds(tree, "held", "released")) == 4


def test_a_hold_on_a_directory_covers_what_is_and_what_comes_and_follows_it(tree: Tree) -> None:
    above = folder(tree, b"above")
    a = folder(tree, b"a", above)
    b = folder(tree, b"b", a)
    was, unsealed = file_in(tree, b, b"was"), file_in(tree, b, b"unsealed", sealed=False)
    link = tree.fs.symlink(b, b"link", b"target", ALICE).inode
    tree.fs.retentions.hold(a, "case", "a letter")
    new = file_in(tree, b, b"new", sealed=False)
    tree.fs.rename(b, b"new", b, b"named")  # a PACS still works: written, renamed, corrected
    tree.fs.setattr(new, AttributeChanges(mtime_ns=7), ALICE)
    tree.fs.release(tree.open(new, os.O_WRONLY))
    tree.advance(new, FileState.SEALED)
    tree.fs.rename(tree.r, b"above", tree.r, b"elsewhere")
    for name in (b"was", b"unsealed", b"named", b"link"):
        with pytest.raises(Held):
            tree.fs.unlink(b, name)
        with pytest.raises(Held):
            tree.fs.rename(b, name, tree.r, b"out")
    for inode in (was, unsealed, new):
        with pytest.raises(Held):
            tree.open(inode, os.O_WRONLY)
    for parent, name in ((a, b"b"), (above, b"a")):
        with pytest.raises(Held):
            tree.fs.rename(parent, name, tree.r, b"out")
    folder(tree, b"new folder", a)
    tree.fs.rename(a, b"new folder", a, b"study")
    tree.fs.rmdir(a, b"study")
    made = folder(tree, b"study", a)
    file_in(tree, made, b"f")
    with pytest.raises(Held):
        tree.fs.rename(a, b"study", tree.r, b"out")
    assert [hold.name for hold in tree.fs.retentions.of(link).holds] == ["case"]
    tree.fs.retentions.release(a, "case", "the end")
    tree.fs.unlink(b, b"was")


def test_a_hold_on_a_repository_covers_all_of_it_and_nothing_else(tree: Tree) -> None:
    other = tree.repository("other")
    inside, outside = file_in(tree, tree.r, b"f"), file_in(tree, other, b"f")
    tree.fs.retentions.hold(tree.r, "case", "a letter")
    with pytest.raises(Held):
        tree.fs.unlink(tree.r, b"f")
    tree.fs.unlink(other, b"f")
    assert tree.fs.retentions.of(inside).holds
    with pytest.raises(NotFound):
        tree.fs.retentions.of(outside)
    tree.fs.retentions.hold(other, "case", "a letter")
    with pytest.raises(Held):
        tree.fs.repositories.remove(RepositoryId(other))
    tree.fs.retentions.release(other, "case", "the end")
    tree.fs.repositories.remove(RepositoryId(other))
    with pytest.raises(InvalidArgument):
        tree.fs.retentions.hold(Inode(1), "case", "everything")


def test_a_file_with_names_elsewhere_is_under_every_hold_that_it_may_lie_below(tree: Tree) -> None:
    a, b = folder(tree, b"a"), folder(tree, b"b")
    inode = file_in(tree, a, b"f")
    tree.fs.link(inode, b, b"g")  # the row knows this name now
    tree.fs.retentions.hold(a, "case", "a letter")
    for parent, name in ((a, b"f"), (b, b"g")):
        with pytest.raises(Held):
            tree.fs.unlink(parent, name)
    with pytest.raises(Held):
        tree.open(inode, os.O_WRONLY)


def test_holds_have_a_limit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "HOLDS_MAX", 1)
    inode = tree.file(b"f")
    tree.fs.retentions.hold(inode, "one", "a letter")
    tree.fs.retentions.hold(inode, "one", "another letter")
    with pytest.raises(TooMuch):
        tree.fs.retentions.hold(inode, "two", "a letter")


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\0b"])
def test_a_hold_has_a_name_and_a_reason(tree: Tree, name: str) -> None:
    inode = tree.file(b"f")
    for words in ((name, "why"), ("id", name * 20)):
        with pytest.raises(InvalidArgument):
            tree.fs.retentions.hold(inode, *words)


def test_the_past_of_what_is_held_or_retained_does_not_expire(tree: Tree) -> None:
    rules(tree, versions_kept_seconds=DAY)
    a = folder(tree, b"a")
    deleted, overwritten, free = (file_in(tree, parent, b"f%d" % n) for n, parent in enumerate((a, a, tree.r)))
    tree.fs.unlink(a, b"f0")
    for inode in (overwritten, free):
        tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))
        tree.advance(inode, FileState.PACKED)
    tree.fs.retentions.hold(a, "case", "a letter")
    for _ in range(5):
        tree.clock.sleep(DAY)
        work(tree)
    assert kept(tree) == {deleted, overwritten}
    assert [one.name for one in tree.fs.versions.deleted_in(b"r/a")[0]] == [b"f0"]
    retain(tree, overwritten, days=10)
    tree.fs.retentions.release(a, "case", "the end")
    tree.clock.sleep(3 * DAY)
    work(tree)
    assert kept(tree) == {overwritten}
    tree.clock.sleep(10 * DAY)
    work(tree)
    assert kept(tree) == set()
    with tree.engine.read() as reader:
        assert not list(reader.scan(b"B", prefix_stop(b"B")))


def kept(tree: Tree) -> set[Inode]:
    with tree.engine.read() as reader:
        return {Inode(int.from_bytes(key[1:9], "big")) for key, _ in reader.scan(b"V", b"W")}


# -- xattrs, and what it costs where nothing is guarded --------------------------------------------------------------


def test_attributes_tell_what_protects_a_file(tree: Tree) -> None:
    inode, free = tree.file(b"f"), tree.file(b"free")
    retain(tree, inode)
    tree.fs.retentions.hold(inode, "case", "a letter")
    until = tree.fs.getxattr(inode, b"user.vna.retention")
    assert until == b'{"mode": "compliance", "until": "2023-11-24T22:13:20Z", "over": false}'
    assert tree.fs.getxattr(inode, b"user.vna.hold") == b'["case"]'
    assert tree.fs.listxattr(inode) == []
    for name in (b"user.vna.retention", b"user.vna.hold"):
        with pytest.raises(NoSuchAttribute):
            tree.fs.getxattr(free, name)
        with pytest.raises(NotPermitted):
            tree.fs.setxattr(free, name, b"none")


def test_a_repository_without_retention_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    for name in ("find", "below"):
        monkeypatch.setattr(retentions, name, lambda *_: pytest.fail("the index was asked"))
    inode = file_in(tree, tree.r, b"f")
    tree.fs.setattr(inode, AttributeChanges(mode=0o444), ALICE)
    tree.fs.release(tree.open(inode, os.O_WRONLY))
    folder(tree, b"d")
    tree.fs.rename(tree.r, b"d", tree.r, b"e")
    tree.fs.unlink(tree.r, b"f")
    tree.clock.sleep(100 * DAY)
    work(tree)
    with tree.engine.read() as reader:
        assert steady.now(reader) is None
        for table in (b"C", b"G", b"H", b"W", b"Y"):
            assert not list(reader.scan(table, prefix_stop(table)))


# -- the clock -------------------------------------------------------------------------------------------------------


def test_turning_the_machines_clock_ends_no_retention(tree: Tree) -> None:
    retain(tree, tree.file(b"f"), days=10)
    tree.clock.wall += 100 * 365 * DAY * NS
    tree.fs.upkeep()
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")
    tree.crash(boot_id="another")
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")
    assert tree.fs.retention_lag_seconds > 99 * 365 * DAY
    tree.clock.sleep(11 * DAY)
    tree.fs.unlink(tree.r, b"f")


def test_a_clock_that_is_set_back_makes_no_retention_shorter(tree: Tree) -> None:
    tree.clock.wall -= 9 * DAY * NS
    inode = tree.file(b"f")
    retain(tree, inode, days=10)
    tree.clock.wall += 9 * DAY * NS
    tree.clock.sleep(9 * DAY)
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")


def test_the_clock_goes_on_within_a_boot_and_not_across(tree: Tree) -> None:
    retain(tree, tree.file(b"f"), days=10)
    tree.crash(boot_id="one")
    tree.fs.close()
    tree.clock.sleep(11 * DAY)
    tree.crash(boot_id="two")
    with pytest.raises(Retained):
        tree.fs.unlink(tree.r, b"f")
    tree.fs.close()
    tree.clock.sleep(11 * DAY)
    tree.crash(boot_id="two")
    tree.fs.unlink(tree.r, b"f")


def test_where_the_clock_stands_is_written_down_every_minute(tree: Tree) -> None:
    retain(tree, tree.file(b"f"), days=10)
    tree.clock.sleep(3601)
    tree.fs.upkeep()
    with tree.engine.read() as reader:
        assert steady.now(reader) == tree.clock.now()
    tree.clock.sleep(30)
    tree.fs.upkeep()
    with tree.engine.read() as reader:
        assert steady.now(reader) == tree.clock.now() - 30 * NS


@pytest.mark.parametrize("linked", ["before the rule", "after it", "and renamed"])
def test_every_name_of_a_file_that_had_several_keeps_its_place(tmp_path: Path, linked: str) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    a, b, c = (folder(tree, name) for name in (b"a", b"b", b"c"))
    inode = file_in(tree, a, b"f")
    if linked != "before the rule":
        rules(tree, retention=RetentionMode.GOVERNANCE)
    tree.fs.link(inode, b, b"g")
    if linked == "and renamed":
        tree.fs.rename(b, b"g", c, b"g")
        tree.fs.link(inode, b, b"h")
        tree.fs.unlink(b, b"h")
    rules(tree, retention=RetentionMode.GOVERNANCE)
    work(tree)
    retain(tree, inode)
    for name in (b"a", b"c" if linked == "and renamed" else b"b"):
        with pytest.raises(Retained):
            tree.fs.rename(tree.r, name, tree.r, b"moved")


def test_a_file_that_is_committed_while_its_names_are_looked_for_keeps_all_of_them(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tree = Tree(tmp_path / "other", settings=Settings(reserve_bytes=0, quiet_seconds=1))
    a, b = folder(tree, b"a"), folder(tree, b"b")
    inode = file_in(tree, a, b"f")
    tree.fs.link(inode, b, b"g")
    rules(tree, retention=RetentionMode.GOVERNANCE)
    retain(tree, inode)
    work(tree)
    for name in (b"a", b"b"):
        with pytest.raises(Retained):
            tree.fs.rename(tree.r, name, tree.r, b"moved")
