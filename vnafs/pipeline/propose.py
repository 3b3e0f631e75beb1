"""Propose: tell the tree what became of versions, in order, a bounded number at a time.

While the tree is out of reach everything waits in its place. A batch that it answers with an error is asked for again
one by one, so that no version holds up the others; one that fails by itself is asked for again later, a few times.

The queue is memory only: whoever fills it can find everything again from rows (`pipeline.reconcile`), and is told
when something was dropped. One thread calls `step`; any thread may add.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from vnafs.domain.clock import Clock
from vnafs.domain.errors import DaemonUnreachable, VnaError
from vnafs.domain.files import Proposal, Verdict
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

AT_ONCE_MAX = 32
"""How long the tree may be kept busy by one request."""
WAITING_MAX = 100_000
RETRY_SECONDS = 1.0
ATTEMPTS_MAX = 5
"""Of a proposal that the tree answers with an error, each after twice as long a pause."""


@dataclasses.dataclass(slots=True)
class _Failing:
    """A proposal that the tree answers with an error."""

    proposal: Proposal
    attempts: int = 0
    due: float = 0.0


class Proposer:
    """*heed* is told of each answered batch; *dropped* of proposals that there was no room for, or no answer to."""

    def __init__(
        self,
        tree: Tree,
        *,
        heed: Callable[[Sequence[Proposal], Sequence[Verdict]], None],
        dropped: Callable[[Sequence[Proposal]], None],
        clock: Clock,
    ) -> None:
        self._tree = tree
        self._heed = heed
        self._dropped = dropped
        self._clock = clock
        self._aside: collections.deque[_Failing] = collections.deque()
        self._waiting: collections.deque[Proposal] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False

    def add(self, proposals: Sequence[Proposal]) -> None:
        """Propose these after those that wait."""
        if not proposals:
            return
        with self._changed:
            if len(self) + len(proposals) <= WAITING_MAX:
                self._waiting.extend(proposals)
                self._changed.notify()
                return
        self._dropped(proposals)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._aside)

    def step(self) -> bool:
        """Propose one batch; whether the tree answered and there may be more. What it did not answer waits on."""
        with self._changed:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), AT_ONCE_MAX))]
        if not batch:
            return self._ask_again()
        try:
            verdicts = self._tree.advance(batch)
        except DaemonUnreachable as problem:
            log.warning("propose.later", extra={"why": str(problem)})
            with self._changed:
                self._waiting.extendleft(reversed(batch))
            return False
        except VnaError as problem:
            log.warning("propose.one_by_one", extra={"why": str(problem)})
            return self._one_by_one([_Failing(proposal) for proposal in batch])
        self._heed(batch, verdicts)
        return True

    def _ask_again(self) -> bool:
        """Those that failed before and are due; in the order in which they failed."""
        now = self._clock.monotonic()
        with self._changed:
            due = [failing for failing in self._aside if failing.due <= now][:AT_ONCE_MAX]
            for failing in due:
                self._aside.remove(failing)
        return bool(due) and self._one_by_one(due)

    def _one_by_one(self, failing: list[_Failing]) -> bool:
        for number, one in enumerate(failing):
            try:
                verdicts = self._tree.advance([one.proposal])
            except DaemonUnreachable as problem:
                log.warning("propose.later", extra={"why": str(problem)})
                with self._changed:
                    self._waiting.extendleft(left.proposal for left in reversed(failing[number:]))
                return False
            except VnaError as problem:
                self._put_aside(one, problem)
            else:
                self._heed([one.proposal], verdicts)
        return True

    def _put_aside(self, one: _Failing, problem: VnaError) -> None:
        fields = {"inode": one.proposal.inode, "attempts": one.attempts, "why": str(problem)}
        one.attempts += 1
        if one.attempts >= ATTEMPTS_MAX:
            log.error("propose.given_up", extra=fields)
            self._dropped([one.proposal])
            return
        log.warning("propose.failed", extra=fields)
        one.due = self._clock.monotonic() + RETRY_SECONDS * 2.0**one.attempts
        with self._changed:
            self._aside.append(one)

    def run(self) -> None:
        """Propose until stopped; then what still waits, if the tree answers."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._aside or self._stopping)
                if not self._waiting and (self._stopping or not self._aside):
                    return
            if not self.step():
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, RETRY_SECONDS):
                        return

    def stop(self) -> None:
        """Let `run` end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
