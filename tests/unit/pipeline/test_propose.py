"""Proposing: in order, none lost while the tree does not answer, none kept without limit."""

from __future__ import annotations

from collections.abc import Sequence

from vnafs.domain.clock import Instant
from vnafs.domain.errors import DaemonUnreachable, Damaged
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.pipeline.propose import AT_ONCE_MAX, ATTEMPTS_MAX, RETRY_SECONDS, WAITING_MAX, Proposer


class Tree:
    """Answers, or does not."""

    def __init__(self) -> None:
        self.answers = True
        self.cannot: set[Inode] = set()
        self.batches: list[list[Proposal]] = []

    def advance(self, proposals: Sequence[Proposal]) -> list[Verdict]:
        if not self.answers:
            raise DaemonUnreachable(daemon="mount", socket="", why="down")
        if any(proposal.inode in self.cannot for proposal in proposals):
            raise Damaged(what="the row of an inode")
        self.batches.append(list(proposals))
        return [Verdict.DONE] * len(proposals)


def proposals(count: int) -> list[Proposal]:
    return [Proposal(Inode(n), Version(1), FileState.PACKED) for n in range(count)]


class Standing:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Instant:
        return Instant(0)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        raise AssertionError("proposing never sleeps")


def proposer(tree: Tree, heeded: list[Proposal], dropped: list[Proposal], clock: Standing | None = None) -> Proposer:
    return Proposer(
        tree,  # type: ignore[arg-type] # advance alone is asked for
        heed=lambda batch, _: heeded.extend(batch),
        dropped=dropped.extend,
        clock=clock or Standing(),
    )


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


def test_one_that_makes_an_error_each_time_holds_up_no_other_and_is_given_back_at_last() -> None:
    tree, clock = Tree(), Standing()
    heeded: list[Proposal] = []
    dropped: list[Proposal] = []
    subject = proposer(tree, heeded, dropped, clock)
    every = proposals(AT_ONCE_MAX + 5)
    tree.cannot = {every[3].inode}
    subject.add(every)
    assert subject.step()
    assert subject.step()
    others = [proposal for proposal in every if proposal.inode not in tree.cannot]
    assert heeded == others
    assert len(subject) == 1
    assert not subject.step(), "it is not asked for again at once"
    for _ in range(ATTEMPTS_MAX):
        clock.seconds += RETRY_SECONDS * 2**ATTEMPTS_MAX
        subject.step()
    assert dropped == [every[3]]
    assert len(subject) == 0
    assert heeded == others


def test_one_that_made_an_error_for_a_while_is_said_after_all() -> None:
    tree, clock, heeded = Tree(), Standing(), []
    subject = proposer(tree, heeded, [], clock)
    tree.cannot = {Inode(0)}
    subject.add(proposals(2))
    subject.step()
    tree.cannot = set()
    clock.seconds += RETRY_SECONDS * 2
    assert subject.step()
    assert [proposal.inode for proposal in heeded] == [1, 0]
    assert len(subject) == 0


def test_what_failed_counts_among_what_waits() -> None:
    tree, dropped = Tree(), []
    subject = proposer(tree, [], dropped)
    tree.cannot = {Inode(0)}
    subject.add(proposals(1))
    subject.step()
    subject.add(proposals(WAITING_MAX))
    assert len(dropped) == WAITING_MAX


def test_a_tree_that_goes_away_in_the_middle_loses_nothing() -> None:
    tree, clock, heeded = Tree(), Standing(), []
    subject = proposer(tree, heeded, [], clock)
    tree.cannot = {Inode(0)}
    subject.add(proposals(1))
    subject.step()
    tree.answers = False
    clock.seconds += RETRY_SECONDS * 2
    assert not subject.step()
    tree.answers, tree.cannot = True, set()
    assert subject.step()
    assert heeded == proposals(1)
