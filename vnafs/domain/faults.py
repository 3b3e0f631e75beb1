"""Named places where a test may kill, fail or delay a process; in production every one is nothing.

A fault point is reached by name and the names are listed here, so that a test can walk all of them and a
typing mistake is an error rather than a point that never fires.
"""

from __future__ import annotations

from typing import Protocol

POINTS: tuple[str, ...] = (
    # seal: the bytes of a version become fixed
    "seal.leased",
    "seal.hashed",
    # pack: pieces and recipes become one object
    "pack.appended",
    "pack.closed",
    "pack.indexed",
    "pack.proposed",
    # replicate: the object reaches a target
    "replicate.started",
    "replicate.uploaded",
    "replicate.verified",
    "replicate.recorded",
    "replicate.proposed",
    "replicate.dropped",
    # protect: a file that stays open is copied as it is
    "protect.held",
    "protect.frozen",
    "protect.packed",
    "protect.recorded",
    "protect.verified",
    # manifest: what rebuilds the index reaches a target
    "manifest.written",
    "manifest.recorded",
    "manifest.sent",
    "manifest.noted",
    # evict: local bytes go
    "evict.decided",
    "evict.recorded",
    "evict.removed",
    # recall: bytes come back
    "recall.fetched",
    "recall.written",
    "recall.adopted",
    "recall.recorded",
    # tree: changes of names and local bytes
    "tree.logged",
    "tree.version_begun",
    "tree.unlinked",
    # log: a change becomes permanent
    "log.appended",
    "log.syncing",
    "log.synced",
    "log.folding",
    "log.folded",
    "log.replayed",
)

RARE_POINTS: tuple[str, ...] = (
    # keys: of an encrypted archive, when one is made and when a target gets them
    "keys.saved",
    "keys.brought",
    # manifest: all rows are written down; at the first start, and then seldom
    "manifest.runs",
    "manifest.snapshot",
    "manifest.trimmed",
    # tree: a file is written to that is sealed and not packed yet
    "tree.left_copied",
    # condemn: a pack that no place has whole is given up; reached only after something rotted
    "condemn.marked",
    "condemn.taken_back",
    "condemn.forgotten",
    # collect: packs that no file needs any more go
    "collect.condemned",
    "collect.repacked",
    "collect.moved",
    "collect.walked",
    "collect.removed",
    "collect.asked",
    "collect.deleted",
    # rollback: names become what they were, a bounded number at a time
    "rollback.step",
    "rollback.cleared",
    # retention: files are committed by themselves, a bounded number at a time
    "retention.committed",
    # erase: files go for good; their names and versions first, then what packs and targets have of them
    "erase.taken",
    "erase.swept",
    "erase.condemned",
    "erase.proven",
    # quarantine: damaged bytes are kept before something right takes their place
    "quarantine.described",
    # mirror: a plain mirror follows the tree; only where there is one
    "mirror.noted",
    "mirror.staged",
    "mirror.put",
    "mirror.removed",
)


class Faults(Protocol):
    """Told whenever a fault point is reached."""

    def reach(self, point: str) -> None:
        """Return, raise, wait or never return, as the test wants."""
        ...


class NoFaults:
    """Production: nothing happens."""

    def reach(self, point: str) -> None:
        """Do nothing."""
