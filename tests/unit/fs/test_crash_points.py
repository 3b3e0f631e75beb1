"""Die at every fault point of every operation, start again: the tree is whole, and the change is all there or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.files import FileState
from vnafs.domain.ids import Version
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.recall import RecallNeeded
from vnafs.index import past


class Killed(BaseException):
    """Nothing may catch it but the test, as nothing catches kill -9."""


class KillAt:
    """Dies when a fault point is reached for the nth time."""

    def __init__(self) -> None:
        self.left = -1
        self.reached: list[str] = []

    def reach(self, point: str) -> None:
        self.reached.append(point)
        self.left -= 1
        if self.left == 0:
            raise Killed(point)


def write_to_sealed(tree: Tree) -> None:
    handle = tree.open(tree.fs.lookup(tree.r, b"sealed").inode, os.O_RDWR)
    tree.fs.write(handle, 0, b"X")
    tree.fs.release(handle)


def empty_sealed(tree: Tree) -> None:
    handle = tree.open(tree.fs.lookup(tree.r, b"sealed").inode, os.O_WRONLY | os.O_TRUNC)
    tree.fs.write(handle, 0, b"new")
    tree.fs.release(handle)


def evict(tree: Tree) -> None:
    tree.evict(tree.fs.lookup(tree.r, b"sealed").inode)


def recall(tree: Tree) -> None:
    try:
        tree.open(tree.fs.lookup(tree.r, b"stub").inode)
    except RecallNeeded as needed:
        tree.recall(needed)


def remove(tree: Tree) -> None:
    tree.fs.unlink(tree.r, b"sealed")
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()


def replace(tree: Tree) -> None:
    tree.fs.rename(tree.r, b"plain", tree.r, b"sealed")
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()


def empty_a_stub(tree: Tree) -> None:
    tree.fs.setattr(tree.fs.lookup(tree.r, b"stub").inode, AttributeChanges(size_bytes=0), ALICE)


def create(tree: Tree) -> None:
    tree.file(b"new", b"new bytes")


def orphan(tree: Tree) -> None:
    handle = tree.open(tree.fs.lookup(tree.r, b"sealed").inode, os.O_RDWR)
    tree.fs.unlink(tree.r, b"sealed")
    tree.fs.release(handle)
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()


BEFORE = {b"plain": b"plain", b"sealed": b"sealed", b"stub": b"stub"}
OPERATIONS: list[tuple[Callable[[Tree], None], list[dict[bytes, bytes]]]] = [
    (write_to_sealed, [{b"sealed": b"Xealed"}]),
    (evict, []),
    (recall, []),
    (remove, [{b"sealed": b""}]),
    (replace, [{b"sealed": b"plain", b"plain": b""}]),
    (empty_a_stub, [{b"stub": b"."}]),
    (create, [{b"new": b"."}, {b"new": b"new bytes"}]),
    (orphan, [{b"sealed": b""}]),
]


def pack_what_is_left(operation: Callable[[Tree], None]) -> Callable[[Tree], None]:
    """An operation, and what tiering does with the bytes that it left."""

    def both(tree: Tree) -> None:
        operation(tree)
        tree.pack_left()
        tree.engine.sync(tree.engine.position)
        tree.fs.reap()

    both.__name__ = operation.__name__
    return both


def contents(tree: Tree) -> dict[bytes, bytes]:
    """Every file by name; `.` for an empty one. Stubs are recalled."""
    found = {}
    for name in tree.names(tree.r):
        inode = tree.fs.lookup(tree.r, name).inode
        try:
            found[name] = tree.read(inode) or b"."
        except RecallNeeded as needed:
            tree.recall(needed)
            found[name] = tree.read(inode) or b"."
    return found


def dies(tree: Tree, faults: KillAt, nth: int, operation: Callable[[Tree], None]) -> bool:
    """Whether the process died at the *nth* point of an operation; a sound tree is served again then."""
    faults.left = nth
    faults.reached.clear()
    died = False
    try:
        operation(tree)
    except Killed:
        died = True
    tree.faults = None
    tree.crash()
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()
    check_tree(tree.engine, tree.spool)
    return died


@pytest.mark.parametrize(("operation", "afters"), OPERATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_death_at_every_point_leaves_all_or_nothing(
    tmp_path: Path, operation: Callable[[Tree], None], afters: list[dict[bytes, bytes]]
) -> None:
    allowed = [BEFORE]
    for after in afters:
        allowed.append({name: data for name, data in (BEFORE | after).items() if data})
    for nth in range(1, 20):
        directory = tmp_path / str(nth)
        directory.mkdir()
        faults = KillAt()
        tree = Tree(directory, faults=faults)
        tree.file(b"plain", b"plain")
        tree.advance(tree.file(b"sealed", b"sealed"), FileState.REPLICATED)
        tree.stub(b"stub", b"stub")
        died = dies(tree, faults, nth, operation)
        assert contents(tree) in allowed, f"after {faults.reached}"
        if not died:
            assert nth > 1
            return
    pytest.fail("the operation never came to its end")


LEAVING: list[tuple[Callable[[Tree], None], list[dict[bytes, bytes]]]] = [
    (write_to_sealed, [{b"sealed": b"Xealed"}]),
    (empty_sealed, [{b"sealed": b"."}, {b"sealed": b"new"}]),
    (remove, [{b"sealed": b""}]),
    (replace, [{b"sealed": b"plain", b"plain": b""}]),
    (orphan, [{b"sealed": b""}]),
]


@pytest.mark.parametrize(("operation", "afters"), LEAVING, ids=lambda value: getattr(value, "__name__", ""))
def test_death_at_every_point_loses_no_version_that_was_sealed(
    tmp_path: Path, operation: Callable[[Tree], None], afters: list[dict[bytes, bytes]]
) -> None:
    both = pack_what_is_left(operation)
    allowed = [BEFORE] + [{name: data for name, data in (BEFORE | after).items() if data} for after in afters]
    for nth in range(1, 30):
        directory = tmp_path / str(nth)
        directory.mkdir()
        faults = KillAt()
        tree = Tree(directory, faults=faults)
        tree.file(b"plain", b"plain")
        inode = tree.file(b"sealed", b"sealed")
        tree.advance(inode, FileState.SEALED)
        tree.stub(b"stub", b"stub")
        died = dies(tree, faults, nth, both)
        assert contents(tree) in allowed, f"after {faults.reached}"
        with tree.engine.read() as reader:
            over = past.find_version(reader, inode, Version(1))
        if over is None:
            assert tree.read(inode) == b"sealed"
        elif not over.is_kept:
            assert tree.left()[inode, Version(1)].read_bytes() == b"sealed", f"after {faults.reached}"
        tree.pack_left()
        tree.engine.sync(tree.engine.position)
        tree.fs.reap()
        check_tree(tree.engine, tree.spool)
        assert not tree.left()
        if over is not None:
            tree.fs.versions.undelete(b"r/sealed", label=f"{inode}.1", to=b"r/again")
            assert contents(tree)[b"again"] == b"sealed"
        if not died:
            assert over is not None
            assert nth > 2
            return
    pytest.fail("the operation never came to its end")
