"""Propose: tell the tree what became of versions, in order, a bounded number at a time.

The queue is memory only: whoever fills it can find everything again from rows (`pipeline.reconcile`), and is told
when something was dropped. One thread calls `step`; any thread may add.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Sequence

from vnafs.domain.errors import VnaError
from vnafs.domain.files import Proposal, Verdict
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

AT_ONCE_MAX = 32
"""How long the tree may be kept busy by one request."""
WAITING_MAX = 100_000
RETRY_SECONDS = 1.0


class Proposer:
    """*heed* is told of each answered batch; *dropped* of proposals that there was no room for."""

    def __init__(
        self,
        tree: Tree,
        *,
        heed: Callable[[Sequence[Proposal], Sequence[Verdict]], None],
        dropped: Callable[[Sequence[Proposal]], None],
    ) -> None:
        self._tree = tree
        self._heed = heed
        self._dropped = dropped
        self._waiting: collections.deque[Proposal] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False

    def add(self, proposals: Sequence[Proposal]) -> None:
        """Propose these after those that wait."""
        if not proposals:
            return
        with self._changed:
            if len(self._waiting) + len(proposals) <= WAITING_MAX:
                self._waiting.extend(proposals)
                self._changed.notify()
                return
        self._dropped(proposals)

    def __len__(self) -> int:
        return len(self._waiting)

    def step(self) -> bool:
        """Propose one batch; whether the tree answered. What it did not answer waits on, in its place."""
        with self._changed:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), AT_ONCE_MAX))]
        if not batch:
            return True
        try:
            verdicts = self._tree.advance(batch)
        except VnaError as problem:
            log.warning("propose.later", extra={"why": str(problem)})
            with self._changed:
                self._waiting.extendleft(reversed(batch))
            return False
        self._heed(batch, verdicts)
        return True

    def run(self) -> None:
        """Propose until stopped; then what still waits, if the tree answers."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
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
