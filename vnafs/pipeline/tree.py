"""What the pipeline may ask of the tree.

A port: `fs` fills it in the mount process, a control client everywhere else. Every request carries its
precondition (inode, version) and may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vnafs.domain.clock import Instant
from vnafs.domain.files import Candidate, FileFacts, Proposal, Verdict
from vnafs.domain.ids import Inode, Version


class Tree(Protocol):
    """The owner of names, states and local bytes."""

    def advance(self, proposals: Sequence[Proposal]) -> list[Verdict]:
        """Move versions forward, each only while its precondition holds; one verdict for each, in order."""
        ...

    def evict(self, inode: Inode, version: Version) -> Verdict:
        """REPLICATED to STUB: only without handles and while the local bytes carry their fingerprint."""
        ...

    def evict_many(self, requests: Sequence[tuple[Inode, Version]]) -> list[Verdict]:
        """As evict, for at most 64 files with one sync; one verdict for each, in order."""
        ...

    def adopt(self, inode: Inode, version: Version, staged: str) -> Verdict:
        """STUB to REPLICATED: the staged file, complete and synced, becomes the local bytes by rename."""
        ...

    def hold(self, inode: Inode, version: Version) -> Verdict:
        """Let writers of an OPEN file wait, no longer than the tree allows; BUSY when that must not be just now."""
        ...

    def let_go(self, inode: Inode, version: Version) -> Verdict:
        """Its writers go on. GONE when they did before, because the time was over."""
        ...

    def facts(self, inode: Inode) -> FileFacts:
        """What is known of a file now. Raises NotFound."""
        ...

    def postpone(self, candidates: Sequence[tuple[Candidate, Instant]]) -> None:
        """Give rows that are still in place a new due time."""
        ...

    def suspect(self, inode: Inode, version: Version) -> None:
        """The local disk did not keep all bytes of an OPEN version: it must not be sealed before it is emptied."""
        ...

    def heard(self, versions: Sequence[tuple[Inode, Version]]) -> None:
        """The uses of these versions, which came back from kept ones, are noted for good."""
        ...

    def supersede(self, why: str) -> None:
        """Targets have gone on without this index: let clients read, and change nothing, also after a restart."""
        ...

    def fold(self) -> None:
        """A barrier: every change answered so far is visible to read-only readers of the namespace."""
        ...
