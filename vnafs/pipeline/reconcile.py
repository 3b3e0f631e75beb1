"""Reconcile: say again what a crash, a lost answer, a lost copy or a changed rule left unsaid.

Walks the rows of versions that wait in PACKED and REPLICATED, and the packs that are still on the local disk, a few
at a time so that nothing else waits for it. Everything it says is proposed as usual and may be repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from vnafs.domain.errors import NotFound
from vnafs.domain.files import Candidate, FileState, Proposal
from vnafs.domain.ids import Inode, Version
from vnafs.index import contents, copies, targets
from vnafs.index.engine import Engine
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.shelf import Shelf

ROWS_AT_ONCE = 256


class Reconciler:
    """One walk after another, as often as somebody asks. One thread calls `step`."""

    def __init__(
        self, store: Engine, namespace: Namespace, shelf: Shelf, *, propose: Callable[[Sequence[Proposal]], None]
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._shelf = shelf
        self._propose = propose
        self._wanted = True
        self._walk: Iterator[None] = iter(())
        self._rules: object = None

    def ask(self) -> None:
        """Walk once more, from the beginning, after the walk under way."""
        self._wanted = True

    def step(self) -> bool:
        """Do a little; whether there was anything to do."""
        rules = self._namespace.repositories()
        if rules != self._rules:
            self._rules = rules
            self._wanted = True
        for _ in self._walk:
            return True
        if not self._wanted:
            return False
        self._wanted = False
        self._walk = self._steps()
        return True

    def _steps(self) -> Iterator[None]:
        for state in (FileState.PACKED, FileState.REPLICATED):
            after: Candidate | None = None
            while batch := self._namespace.waiting(state, limit=ROWS_AT_ONCE, after=after):
                after = batch[-1]
                found = (self.standing(candidate.inode, candidate.version) for candidate in batch)
                self._propose([proposal for proposal in found if proposal is not None and proposal.state is not state])
                yield
        local = self._shelf.local_packs()
        while batch_of_packs := list(itertools.islice(local, ROWS_AT_ONCE)):
            for number in batch_of_packs:
                self._shelf.release(number)
            yield

    def standing(self, inode: Inode, version: Version) -> Proposal | None:
        """The state a version with local bytes should be in; None when nothing can be said of it."""
        try:
            facts = self._namespace.facts(inode)
            repository = self._namespace.repository(facts.repository)
        except NotFound:
            return None
        if facts.version != version or facts.sha256 is None:
            return None
        with self._store.read() as reader:
            content = contents.find(reader, facts.sha256, facts.repository)
            if content is None:  # its pack was given up
                return Proposal(inode, version, FileState.SEALED, sha256=facts.sha256)
            same = contents.twins(reader, facts.sha256, facts.repository)
            noted = any(contents.has_use(reader, twin.number, inode, version) for twin in same)
            current = targets.current(reader)
            held = sum(1 for number in copies.verified_on(reader, content.packs()) if number in current)
        if not noted:  # a crash kept it from being noted
            with self._store.write() as tx:
                contents.add_use(tx, content.number, inode, version)
        is_enough = held >= max(1, repository.copies_min)
        return Proposal(inode, version, FileState.REPLICATED if is_enough else FileState.PACKED, sha256=facts.sha256)
