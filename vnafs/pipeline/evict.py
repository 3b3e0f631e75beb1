"""Evict: let local bytes go that are safely elsewhere, when asked or when the local disk fills.

Decides with what the store knows of copies; the tree has the last word, because only it knows who has a file open.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

from vnafs.domain.clock import Clock
from vnafs.domain.copies import Copy
from vnafs.domain.errors import DaemonUnreachable, NotFound, VnaError
from vnafs.domain.eviction import YES, Decision, may_evict
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Verdict
from vnafs.domain.ids import Inode
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

BATCH = 64
SCANNED_MAX = 100_000
"""Rows that one round looks at, so that files nobody may evict cannot hold a round for ever."""

WHY = {
    Verdict.BUSY: "somebody has it open",
    Verdict.GONE: "it was changed or removed meanwhile",
    Verdict.CHANGED: "its local bytes are not those that were copied; it is copied again",
    Verdict.ILLEGAL: "its state changed meanwhile",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Watermarks:
    """Where eviction begins and where it stops, in bytes in use."""

    high_bytes: int
    low_bytes: int


def watermarks(folder: str, *, high_percent: float, low_percent: float) -> tuple[int, Watermarks]:
    """Bytes in use on the disk of *folder*, and its marks."""
    status = os.statvfs(folder)
    size = (status.f_blocks - status.f_bfree + status.f_bavail) * status.f_frsize
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    return used, Watermarks(int(size * high_percent / 100), int(size * low_percent / 100))


class Evictor:
    """Makes stubs.

    *settle* returns once what *copies_of* says survives loss of power.
    """

    def __init__(
        self,
        tree: Tree,
        namespace: Namespace,
        copies_of: Callable[[FileFacts], Sequence[Copy]],
        *,
        settle: Callable[[], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._tree = tree
        self._namespace = namespace
        self._copies_of = copies_of
        self._settle = settle
        self._clock = clock
        self._faults = faults

    def evict(self, inode: Inode) -> Decision:
        """Evict one file now. Raises NotFound."""
        facts = self._tree.facts(inode)
        if facts.state is FileState.STUB:
            return YES
        repository, copies = self._namespace.repository(facts.repository), self._copies_of(facts)
        if facts.state is FileState.PACKED and len(copies) >= max(1, repository.copies_min):
            # its copies are there and the news is still on its way
            self._tree.advance([Proposal(inode, facts.version, FileState.REPLICATED, sha256=facts.sha256)])
            facts = self._tree.facts(inode)
        decision = may_evict(facts, repository, copies)
        if not decision.yes:
            return decision
        self._settle()
        self._faults.reach("evict.decided")
        verdict = self._tree.evict(inode, facts.version)
        return YES if verdict is Verdict.DONE else Decision(yes=False, why=WHY[verdict])

    def make_room(self, used_bytes: Callable[[], int], low_bytes: int, *, stop: Callable[[], bool]) -> int:
        """Evict, longest replicated first, until no more than *low_bytes* are in use. Returns how many files."""
        evicted = 0
        after: Candidate | None = None
        for _ in range(SCANNED_MAX // BATCH):
            batch = self._namespace.waiting(FileState.REPLICATED, limit=BATCH, after=after)
            for candidate in batch:
                if stop() or used_bytes() <= low_bytes:
                    break
                after = candidate
                try:
                    evicted += self.evict(candidate.inode).yes
                except NotFound:
                    continue
                except DaemonUnreachable:
                    raise
                except VnaError as problem:
                    # one file's trouble must not keep the others here
                    log.warning("evict.failed", extra={"inode": candidate.inode, "why": str(problem)})
            else:
                if batch:
                    continue
            break
        if evicted:
            log.info("evict.made_room", extra={"files": evicted})
        return evicted
