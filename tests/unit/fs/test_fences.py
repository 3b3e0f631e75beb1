"""Writers that wait while their file is copied: never for long, and never again and again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, HandClock, Tree
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.fences import FENCES_MAX, RESPITE, Fences, WritersHeld

SECONDS_MAX = 3.0
FILE, ONE = Inode(7), Version(1)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def fences(clock: HandClock) -> Fences:
    return Fences(clock, SECONDS_MAX)


def test_writers_wait_until_they_are_let_go(fences: Fences) -> None:
    assert fences.hold(FILE, ONE) is Verdict.DONE
    with pytest.raises(WritersHeld) as held:
        fences.check(FILE)
    assert 0 < held.value.seconds <= SECONDS_MAX
    fences.check(Inode(8))
    assert fences.let_go(FILE, ONE) is Verdict.DONE
    fences.check(FILE)


def test_a_fence_that_nobody_lets_go_falls_by_itself(fences: Fences, clock: HandClock) -> None:
    fences.hold(FILE, ONE)
    clock.sleep(SECONDS_MAX)
    fences.check(FILE)
    assert not fences.held
    assert fences.let_go(FILE, ONE) is Verdict.GONE


def test_asking_again_does_not_hold_them_longer(fences: Fences, clock: HandClock) -> None:
    fences.hold(FILE, ONE)
    clock.sleep(SECONDS_MAX - 1)
    assert fences.hold(FILE, ONE) is Verdict.DONE
    clock.sleep(1)
    fences.check(FILE)


@pytest.mark.parametrize("ended", ["let go", "fallen"])
def test_held_writers_are_left_alone_for_a_while(fences: Fences, clock: HandClock, ended: str) -> None:
    fences.hold(FILE, ONE)
    if ended == "let go":
        fences.let_go(FILE, ONE)
    clock.sleep(SECONDS_MAX)
    assert fences.hold(FILE, ONE) is Verdict.BUSY
    fences.check(FILE)
    clock.sleep(RESPITE * SECONDS_MAX)
    assert fences.hold(FILE, ONE) is Verdict.DONE


def test_another_version_is_another_request(fences: Fences) -> None:
    fences.hold(FILE, ONE)
    assert fences.hold(FILE, Version(2)) is Verdict.BUSY
    assert fences.let_go(FILE, Version(2)) is Verdict.GONE
    with pytest.raises(WritersHeld):
        fences.check(FILE)


def test_only_some_files_are_held_at_once(fences: Fences) -> None:
    answers = [fences.hold(Inode(number), ONE) for number in range(1, FENCES_MAX + 2)]
    assert answers == [Verdict.DONE] * FENCES_MAX + [Verdict.BUSY]


def test_zero_seconds_hold_nobody(clock: HandClock) -> None:
    assert Fences(clock, 0).hold(FILE, ONE) is Verdict.BUSY


# -- on a tree ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_no_byte_of_a_held_file_changes_and_everything_else_works(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    assert tree.fs.hold(inode, ONE) is Verdict.DONE
    for change in (
        lambda: tree.fs.write(handle, 0, b"X"),
        lambda: tree.fs.append(handle, b"X"),
        lambda: tree.fs.setattr(inode, AttributeChanges(size_bytes=2), ALICE),
        lambda: tree.open(inode, os.O_WRONLY | os.O_TRUNC),
        lambda: tree.fs.create(tree.r, b"f", 0o644, os.O_WRONLY | os.O_TRUNC, ALICE),
    ):
        with pytest.raises(WritersHeld):
            change()
    assert tree.fs.read(handle, 0, 10) == b"bytes"
    tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE)
    tree.fs.release(tree.open(inode, os.O_RDWR))
    other = tree.create(b"other", b"bytes")
    tree.fs.write(other, 0, b"X")
    tree.fs.let_go(inode, ONE)
    tree.fs.write(handle, 0, b"X")
    assert tree.fs.read(handle, 0, 10) == b"Xytes"
    assert tree.fs.handles_open == 2


def test_only_a_version_that_is_open_now_can_be_held(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    assert tree.fs.hold(inode, Version(2)) is Verdict.GONE
    assert tree.fs.hold(Inode(999_999), ONE) is Verdict.GONE
    assert tree.fs.hold(tree.r, Version(0)) is Verdict.GONE
    tree.fs.release(handle)
    tree.advance(inode, FileState.SEALED)
    assert tree.fs.hold(inode, ONE) is Verdict.ILLEGAL
    unnamed = tree.create(b"g", b"bytes")
    tree.fs.unlink(tree.r, b"g")
    assert tree.fs.hold(unnamed.file.inode, ONE) is Verdict.GONE
