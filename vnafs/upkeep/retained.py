"""Retained: until when a pack must stay because a file that was committed needs it. Reads rows only; any thread."""

from __future__ import annotations

from vnafs.domain.clock import Instant
from vnafs.domain.locks import LockMode
from vnafs.domain.retention import RetentionMode
from vnafs.index import contents, retentions
from vnafs.index.engine import Engine
from vnafs.index.packs import Pack


class Retained:
    """*namespace* is mount's index, read-only."""

    def __init__(self, store: Engine, namespace: Engine) -> None:
        self._store = store
        self._namespace = namespace

    def until(self, pack: Pack, mode: LockMode) -> Instant:
        """The latest date of the files that need a pack; 0 when none of them is retained.

        A lock in compliance mode can never be taken back, so there only dates count that nobody may shorten either.
        """
        with self._store.read() as store, self._namespace.read() as namespace:
            if next(retentions.every(namespace), None) is None:
                return Instant(0)
            numbers = contents.used_of_run(store, pack.contents_first, pack.contents_count)
            numbers.update(contents.leaning_on(store, pack.number))
            until = 0
            for number in numbers:
                for inode, _ in contents.uses(store, number):
                    found = retentions.find(namespace, inode)
                    if found is not None and (found.mode is RetentionMode.COMPLIANCE or mode is LockMode.GOVERNANCE):
                        until = max(until, found.until_ns)
            return Instant(until)
