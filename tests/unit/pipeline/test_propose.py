"""Proposing: in order, none lost while the tree does not answer, none kept without limit."""

from __future__ import annotations

from collections.abc import Sequence

from vnafs.domain.errors import DaemonUnreachable
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.pipeline.propose import AT_ONCE_MAX, WAITING_MAX, Proposer


class Tree:
    """Answers, or does not."""

    def __init__(self) -> None:
        self.answers = True
        self.batches: list[list[Proposal]] = []

    def advance(self, proposals: Sequence[Proposal]) -> list[Verdict]:
        if not self.answers:
            raise DaemonUnreachable(daemon="mount", socket="", why="down")
        self.batches.append(list(proposals))
        return [Verdict.DONE] * len(proposals)


def proposals(count: int) -> list[Proposal]:
    return [Proposal(Inode(n), Version(1), FileState.PACKED) for n in range(count)]


def proposer(tree: Tree, heeded: list[Proposal], dropped: list[Proposal]) -> Proposer:
    return Proposer(tree, heed=lambda batch, _: heeded.extend(batch), dropped=dropped.extend)  # type: ignore[arg-type] # advance alone is asked for


def test_what_the_tree_does_not_answer_waits_in_its_place() -> None:
    tree, heeded = Tree(), []
    subject = proposer(tree, heeded, [])
    every = proposals(AT_ONCE_MAX + 5)
    subject.add(every)
    tree.answers = False
    assert not subject.step()
    assert len(subject) == len(every)
    tree.answers = True
    assert subject.step()
    assert subject.step()
    assert heeded == every
    assert [len(batch) for batch in tree.batches] == [AT_ONCE_MAX, 5]


def test_more_than_there_is_room_for_is_given_back() -> None:
    dropped: list[Proposal] = []
    subject = proposer(Tree(), [], dropped)
    subject.add(proposals(WAITING_MAX - 1))
    subject.add(proposals(2))
    assert dropped == proposals(2)
    assert len(subject) == WAITING_MAX - 1
