"""Condemn: give up a pack that no place has whole any more, and pack its files again from their local bytes.

A pack waits on the local disk for its targets; its file may rot before any target has it. What is found wrong here
can be put nowhere, so the pack goes as a whole: first nothing may lean on it any more (its Z row), then the tree
takes the files that need it back to SEALED, and only when the tree has done so for every one of them do the rows of
its contents and pieces go, and what is wrong of it on a target. Every step may be repeated; a transfer of the pack
leads here again after a crash. A pack that some file without local bytes needs is kept, whatever is left of it, and
so is one that a target may have: whose copy counts for nothing yet, but of which nothing bad was heard either.

Any replicator's thread calls `doubt`; one at a time gets its turn.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator

from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NotFound, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileFacts, FileState, Proposal
from vnafs.domain.ids import Inode, PackNumber, Version
from vnafs.index import condemned, contents, copies, packs, targets
from vnafs.index.engine import Engine, Reader
from vnafs.pipeline import doomed
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

PROPOSALS_AT_ONCE = 32
"""How long the tree may be kept busy by one request."""


class Condemner:
    """*gone* is told that some contents are not where they were."""

    def __init__(
        self,
        store: Engine,
        namespace: Namespace,
        tree: Tree,
        shelf: Shelf,
        local_path: Callable[[Inode, Version], str],
        *,
        gone: Callable[[], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._tree = tree
        self._shelf = shelf
        self._local_path = local_path
        self._gone = gone
        self._clock = clock
        self._faults = faults
        self._turn = threading.Lock()

    def doubt(self, number: PackNumber, *, is_absent: bool) -> bool:
        """Bringing a pack to a target failed: is there anything to bring? Says whether the pack was given up.

        *is_absent*: the target answered, and what it has is wrong or nothing.
        """
        with self._turn:
            with self._store.read() as reader:
                pack = packs.get(reader, number)
                if pack is None:
                    return True
                is_marked = condemned.any_given_up(reader, [number])
                is_verified = _verified(reader, number)
                is_hoped_for = _in_state(reader, number, CopyState.UPLOADED)
            if not (is_absent or pack.local) or (pack.local and self._shelf.is_whole(pack)):
                return False
            if is_verified:
                if pack.local:
                    log.error("pack.local_file_wrong", extra={"pack": pack.id.hex()})
                    self._shelf.discard(pack)
                return False
            if is_hoped_for:
                return False
            try:
                return self._give_up(pack, is_marked=is_marked)
            except _TreeSilent as problem:
                log.warning("pack.given_up_later", extra={"pack": pack.id.hex(), "why": str(problem)})
                return False

    def _give_up(self, pack: packs.Pack, *, is_marked: bool) -> bool:
        if not is_marked:
            if not self._may_go(pack, FileState.REPLICATED):
                return False
            log.error("pack.given_up", extra={"pack": pack.id.hex(), "contents": pack.contents_count})
            with self._store.write() as tx:
                if packs.get(tx, pack.number) is None:  # collected meanwhile
                    return True
                condemned.put(tx, pack.number, condemned.Condemned(pack.id, pack.sha256, pack.size_bytes))
            self._store.sync(self._store.position)
        self._faults.reach("condemn.marked")
        self._take_back(pack)
        if not self._may_go(pack, FileState.SEALED):
            return False
        self._faults.reach("condemn.taken_back")
        # while its row is there a restart leaves the file alone
        self._shelf.set_aside(pack, "its local file is wrong, and no target has it; its files were packed again")
        if not self._forget(pack):
            return False
        self._faults.reach("condemn.forgotten")
        self._shelf.remove(pack)
        self._gone()
        return True

    def _may_go(self, pack: packs.Pack, furthest: FileState) -> bool:
        """Whether every file that needs the pack has its bytes here, in no state beyond *furthest*; after a barrier."""
        self._ask(self._tree.fold)
        for content, facts in self._files(pack):
            is_here = facts.state is not FileState.STUB and os.path.exists(self._local_path(facts.inode, facts.version))
            if not is_here:
                log.error(
                    "pack.needed_and_lost",
                    extra={"pack": pack.id.hex(), "inode": facts.inode, "version": facts.version},
                )
                return False
            if facts.state > furthest and facts.sha256 == content.sha256:
                log.warning("pack.given_up_later", extra={"pack": pack.id.hex(), "state": facts.state.label})
                return False
        return True

    def _take_back(self, pack: packs.Pack) -> None:
        """Files that say that some pack has their bytes say so no more."""
        proposals = (
            Proposal(facts.inode, facts.version, FileState.SEALED, sha256=content.sha256)
            for content, facts in self._files(pack)
            if facts.state in {FileState.PACKED, FileState.REPLICATED} and facts.sha256 == content.sha256
        )
        while batch := list(itertools.islice(proposals, PROPOSALS_AT_ONCE)):
            self._ask(functools.partial(self._tree.advance, batch))

    @staticmethod
    def _ask(request: Callable[[], object]) -> None:
        try:
            request()
        except VnaError as problem:
            raise _TreeSilent(str(problem)) from problem

    def _files(self, pack: packs.Pack) -> Iterator[tuple[contents.Content, FileFacts]]:
        """The versions that need a pack and still are their files'."""
        with self._store.read() as reader:
            needing = list(doomed.contents_of(reader, pack))
        for content in needing:
            with self._store.read() as reader:
                versions = list(contents.uses(reader, content.number))
            for inode, version in versions:
                try:
                    facts = self._namespace.facts(inode)
                except NotFound:
                    continue
                if facts.version == version:
                    yield content, facts

    def _forget(self, pack: packs.Pack) -> bool:
        """Rows go; False when a target turned out to have the pack after all."""
        now = self._clock.now()
        with self._store.write() as tx:
            if _verified(tx, pack.number):
                condemned.pardon(tx, pack.number)
                return False
            if packs.get(tx, pack.number) is None:  # collected meanwhile
                return True
            doomed.forget(tx, pack)
            for target in targets.current(tx):
                # what was brought there is looked at in its turn, and removed if it is wrong
                copies.enqueue(tx, copies.Transfer(target, now, pack.number, 0, is_removal=True))
        self._store.sync(self._store.position)
        return True


class _TreeSilent(Exception):
    """The tree did not do what it was asked for; another attempt will ask again."""


def _verified(reader: Reader, number: PackNumber) -> bool:
    return _in_state(reader, number, CopyState.VERIFIED)


def _in_state(reader: Reader, number: PackNumber, state: CopyState) -> bool:
    counted = targets.current(reader)
    return any(c.state is state and c.target in counted for c in copies.of_pack(reader, number))
