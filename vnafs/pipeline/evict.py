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
from vnafs.domain.eviction import OPEN, YES, Decision, may_evict
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

BATCH = 64
SCANNED_MAX = 100_000
"""Rows that one round looks at, so that files nobody may evict cannot hold a round for ever."""

AGAIN_SECONDS = 0.05
WAIT_SECONDS_MAX = 10.0
MISSING = Decision(yes=False, why="there is no such file any more")
WHY = {
    Verdict.BUSY: OPEN.why,
    Verdict.GONE: "it was changed or removed meanwhile",
    Verdict.KEPT: "it was changed or removed meanwhile",
    Verdict.CHANGED: "its local bytes are not those that were copied; it is copied again",
    Verdict.ILLEGAL: "its state changed meanwhile",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Watermarks:
    """Where eviction begins and where it stops, in bytes in use."""

    high_bytes: int
    low_bytes: int
    limit_bytes: int
    """What is brought back never takes the disk above this: the reserve is for what has no copy yet."""


def watermarks(folder: str, *, high_percent: float, low_percent: float, reserve_bytes: int) -> tuple[int, Watermarks]:
    """Bytes in use on the disk of *folder*, and its marks."""
    status = os.statvfs(folder)
    size = (status.f_blocks - status.f_bfree + status.f_bavail) * status.f_frsize
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    limit = max(0, size - reserve_bytes)
    return used, Watermarks(int(size * high_percent / 100), int(size * low_percent / 100), limit)


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

    def evict_many(self, inodes: Sequence[Inode], *, wait_seconds: float = 0.0) -> list[Decision]:
        """Evict files now; one decision for each, in order. One file's trouble is its own decision.

        What somebody has open is tried again for *wait_seconds* at most: Linux tells of a close after close(2) has
        returned. Raises DaemonUnreachable.
        """
        found = self._evict(list(dict.fromkeys(inodes)))
        ends = self._clock.monotonic() + min(wait_seconds, WAIT_SECONDS_MAX)
        while (busy := [one for one, decision in found.items() if decision == OPEN]) and self._clock.monotonic() < ends:
            self._clock.sleep(AGAIN_SECONDS)
            found |= self._evict(busy)
        return [found[inode] for inode in inodes]

    def _evict(self, inodes: Sequence[Inode]) -> dict[Inode, Decision]:
        found: dict[Inode, Decision] = {}
        for begin in range(0, len(inodes), BATCH):
            asked = [(inode, *self._decide(inode)) for inode in inodes[begin : begin + BATCH]]
            done = self._give_up([(inode, facts.version) for inode, facts, _ in asked if facts is not None])
            found.update((inode, done.get(inode, decision)) for inode, _, decision in asked)
        return found

    def _decide(self, inode: Inode) -> tuple[FileFacts | None, Decision]:
        """Whether a file may go, with what is known of it if its local bytes are to go now."""
        try:
            facts = self._tree.facts(inode)
            if facts.state is FileState.STUB:
                return None, YES
            facts, decision = self._may_go(facts)
        except NotFound:
            return None, MISSING
        except DaemonUnreachable:
            raise
        except VnaError as problem:
            # one file's trouble must not keep the others here
            log.warning("evict.failed", extra={"inode": inode, "why": str(problem)})
            return None, Decision(yes=False, why=str(problem))
        return facts if decision.yes else None, decision

    def _may_go(self, facts: FileFacts) -> tuple[FileFacts, Decision]:
        inode = facts.inode
        repository, copies = self._namespace.repository(facts.repository), self._copies_of(facts)
        if facts.state is FileState.PACKED and len(copies) >= max(1, repository.copies_min):
            # its copies are there and the news is still on its way
            self._tree.advance([Proposal(inode, facts.version, FileState.REPLICATED, sha256=facts.sha256)])
            facts = self._tree.facts(inode)
        return facts, may_evict(facts, repository, copies)

    def _give_up(self, requests: Sequence[tuple[Inode, Version]]) -> dict[Inode, Decision]:
        """The tree's word on files that may go as far as we know; at most BATCH."""
        if not requests:
            return {}
        self._settle()
        self._faults.reach("evict.decided")
        verdicts = self._tree.evict_many(requests)
        return {
            inode: YES if verdict is Verdict.DONE else Decision(yes=False, why=WHY[verdict])
            for (inode, _), verdict in zip(requests, verdicts, strict=True)
        }

    def make_room(self, used_bytes: Callable[[], int], low_bytes: int, *, stop: Callable[[], bool]) -> int:
        """Evict, longest replicated first, until no more than *low_bytes* are in use. Returns how many files."""
        evicted = 0
        after: Candidate | None = None
        for _ in range(SCANNED_MAX // BATCH):
            left_bytes = used_bytes() - low_bytes
            batch = self._namespace.waiting(FileState.REPLICATED, limit=BATCH, after=after)
            if left_bytes <= 0 or not batch or stop():
                break
            requests: list[tuple[Inode, Version]] = []
            for candidate in batch:
                if left_bytes <= 0 or stop():
                    break
                after = candidate
                facts, _ = self._decide(candidate.inode)
                if facts is not None:
                    requests.append((facts.inode, facts.version))
                    left_bytes -= facts.size_bytes
            evicted += sum(decision.yes for decision in self._give_up(requests).values())
        if evicted:
            log.info("evict.made_room", extra={"files": evicted})
        return evicted
