"""The tiering port beyond what SEMANTICS.md promises to users: the queue, verdicts, repetition."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.errors import InvalidArgument, NotFound, StorageFailed
from vnafs.domain.files import Candidate, FileState, Fingerprint, Proposal, Seal, Verdict
from vnafs.domain.ids import Inode, Sha256, Version
from vnafs.fs.tiering import EVICTIONS_MAX
from vnafs.index import queue
from vnafs.index.feeds import read_from
from vnafs.pipeline.tree import Tree as TreePort


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def waiting(tree: Tree, state: FileState) -> list[Candidate]:
    with tree.engine.read() as reader:
        return queue.due(reader, state, Instant(queue.DUE_NEVER - 1), 100)


def test_the_filesystem_fills_the_port(tree: Tree) -> None:
    port: TreePort = tree.fs
    port.fold()
    assert port.advance([]) == []


def test_a_file_is_due_when_it_was_quiet(tree: Tree) -> None:
    handle = tree.create(b"f", b"x")
    assert waiting(tree, FileState.OPEN) == []
    tree.clock.sleep(100)
    tree.fs.release(handle)
    quiet = int(tree.settings.quiet_seconds * NANOSECONDS)
    due = Instant(tree.clock.now() + quiet)
    assert waiting(tree, FileState.OPEN) == [Candidate(handle.file.inode, Version(1), FileState.OPEN, due)]


def test_the_queue_row_moves_with_the_state_and_ends_with_the_stub(tree: Tree) -> None:
    inode = tree.file(b"f")
    for state in (FileState.SEALED, FileState.PACKED, FileState.REPLICATED):
        assert tree.advance(inode, state) is Verdict.DONE
        assert [c.inode for c in waiting(tree, state)] == [inode]
    tree.evict(inode)
    assert [waiting(tree, state) for state in FileState] == [[]] * 5


def test_several_steps_at_once_and_the_same_again(tree: Tree) -> None:
    inode = tree.file(b"f")
    assert tree.advance(inode, FileState.REPLICATED) is Verdict.DONE
    assert tree.advance(inode, FileState.REPLICATED) is Verdict.DONE
    assert tree.advance(inode, FileState.PACKED) is Verdict.DONE
    assert tree.fs.facts(inode).state is FileState.PACKED
    assert tree.advance(inode, FileState.SEALED) is Verdict.DONE, "its pack was given up"
    assert tree.advance(inode, FileState.OPEN) is Verdict.ILLEGAL


@pytest.mark.parametrize("state", [FileState.PACKED, FileState.REPLICATED, FileState.STUB])
def test_news_of_other_bytes_is_news_of_nothing(tree: Tree, state: FileState) -> None:
    inode = tree.file(b"f")
    assert tree.advance(inode, FileState.REPLICATED) is Verdict.DONE
    if state is FileState.PACKED:
        assert tree.advance(inode, FileState.PACKED) is Verdict.DONE
    if state is FileState.STUB:
        tree.evict(inode)
    facts = tree.fs.facts(inode)
    other = Seal(Sha256(bytes(32)), Fingerprint(3, 1, 1))
    [verdict] = tree.fs.advance([Proposal(inode, Version(1), FileState.PACKED, other)])
    assert verdict is Verdict.GONE
    assert tree.fs.facts(inode) == facts


def test_no_seal_no_step_out_of_open(tree: Tree) -> None:
    inode = tree.file(b"f")
    [verdict] = tree.fs.advance([Proposal(inode, Version(1), FileState.SEALED)])
    assert verdict is Verdict.ILLEGAL


def test_verdicts_come_in_order_and_one_failure_is_not_the_others(tree: Tree) -> None:
    one, two = tree.file(b"1"), tree.file(b"2")
    proposals = [
        Proposal(Inode(999_999), Version(1), FileState.SEALED),
        Proposal(one, Version(1), FileState.SEALED, tree.seal_of(one)),
        Proposal(one, Version(7), FileState.SEALED, tree.seal_of(one)),
        Proposal(two, Version(1), FileState.SEALED, tree.seal_of(two)),
    ]
    assert tree.fs.advance(proposals) == [Verdict.GONE, Verdict.DONE, Verdict.GONE, Verdict.DONE]


def test_a_directory_is_not_tiered(tree: Tree) -> None:
    assert tree.fs.evict(tree.r, Version(0)) is Verdict.GONE
    with pytest.raises(NotFound):
        tree.fs.facts(tree.r)


def test_states_are_told_to_the_feed(tree: Tree) -> None:
    inode = tree.stub(b"f")
    with tree.engine.read() as reader:
        told = [event.detail for _, event in read_from(reader, 1, 100) if event.inode == inode and event.detail]
    assert told == [FileState.REPLICATED, FileState.STUB]


def test_postpone_moves_only_what_is_still_in_place(tree: Tree) -> None:
    one, two = tree.file(b"1"), tree.file(b"2")
    candidates = waiting(tree, FileState.OPEN)
    tree.open(two, os.O_RDWR)
    tree.fs.postpone([(candidate, Instant(candidate.due + 5)) for candidate in candidates])
    [left] = waiting(tree, FileState.OPEN)
    assert (left.inode, left.due) == (one, candidates[0].due + 5)


def test_missing_local_bytes_of_a_replicated_file_become_a_stub(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.advance(inode)
    tree.local(inode).unlink()
    assert tree.evict(inode) is Verdict.DONE
    assert tree.fs.facts(inode).state is FileState.STUB


def test_missing_local_bytes_never_advance_a_file(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.advance(inode, FileState.SEALED)
    tree.local(inode).unlink()
    assert tree.advance(inode) is Verdict.ILLEGAL
    assert tree.fs.facts(inode).sha256 is not None


def test_facts_show_a_path_through_renames(tree: Tree) -> None:
    inode = tree.file(b"f")
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.rename(tree.r, b"f", directory, b"g")
    assert tree.fs.facts(inode).path_hint == b"r/d/g"


def test_many_files_are_evicted_with_one_sync_of_what_goes_and_one_verdict_each(tree: Tree) -> None:
    files = [tree.file(b"%d" % number) for number in range(4)]
    gone, open_, kept, changed = files
    for inode in files:
        tree.advance(inode)
    handle = tree.open(open_)
    tree.local(changed).write_bytes(b"other bytes")
    plain = tree.file(b"plain")
    syncs = tree.engine.syncs
    requests = [(gone, 1), (open_, 1), (kept, 7), (plain, 1), (changed, 1), (gone, 1)]
    assert tree.fs.evict_many([(inode, Version(version)) for inode, version in requests]) == [
        Verdict.DONE,
        Verdict.BUSY,
        Verdict.GONE,
        Verdict.ILLEGAL,
        Verdict.CHANGED,
        Verdict.DONE,
    ]
    assert tree.engine.syncs == syncs + 2, "one for what goes, one for the file that begins a version"
    assert not tree.local(gone).exists()
    assert tree.local(kept).exists()
    assert tree.fs.read(handle, 0, 10) == b"bytes"
    assert tree.read(changed) == b"other bytes"
    assert tree.fs.facts(changed).version == 2
    tree.fs.release(handle)
    check_tree(tree.engine, tree.spool)


def test_evicting_nothing_waits_for_nothing(tree: Tree) -> None:
    inode = tree.file(b"f")
    syncs = tree.engine.syncs
    assert tree.fs.evict_many([]) == []
    assert tree.evict(inode) is Verdict.ILLEGAL
    assert tree.engine.syncs == syncs


def test_too_many_evictions_at_once_are_refused(tree: Tree) -> None:
    requests = [(Inode(number), Version(1)) for number in range(EVICTIONS_MAX + 1)]
    with pytest.raises(InvalidArgument, match="65"):
        tree.fs.evict_many(requests)
    assert tree.fs.evict_many(requests[1:]) == [Verdict.GONE] * EVICTIONS_MAX


def test_a_failed_sync_during_eviction_ends_the_tree_and_keeps_the_bytes(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.advance(inode)
    tree.engine.is_broken = True
    with pytest.raises(StorageFailed):
        tree.evict(inode)
    assert isinstance(tree.fs.failure, StorageFailed)
    assert tree.local(inode).exists()


def test_evict_then_adopt_before_the_removal_was_synced_keeps_the_new_bytes(tree: Tree) -> None:
    inode = tree.stub(b"f")
    assert tree.fs.adopt(inode, Version(1), tree.staged(inode)) is Verdict.DONE
    tree.crash()
    assert tree.read(inode) == b"bytes"
