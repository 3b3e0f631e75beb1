"""Returned: note the uses of versions that came back from kept ones, and tell the tree that it was heard.

Mount writes a row for each (`vnafs.index.returned`) and keeps the version it came from until it is told. Every step
may be repeated. One thread.
"""

from __future__ import annotations

import logging

from vnafs.domain.clock import Clock
from vnafs.domain.errors import DaemonUnreachable, NoSpace
from vnafs.domain.recipes import EMPTY
from vnafs.index import contents, unreadable
from vnafs.index.engine import Engine
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
AGAIN_SECONDS = 5.0
"""After the tree did not take an answer."""


class ReturnedFiles:
    """See the module."""

    def __init__(self, store: Engine, namespace: Namespace, tree: Tree, clock: Clock) -> None:
        self._store = store
        self._namespace = namespace
        self._tree = tree
        self._clock = clock
        self._not_before = 0.0

    def step(self) -> bool:
        """Do a little; whether there may be more to do at once."""
        if self._clock.monotonic() < self._not_before:
            return False
        batch = self._namespace.returned(ROWS_AT_ONCE)
        if not batch:
            return False
        try:
            with self._store.write() as tx:
                for found in batch:
                    content = contents.find(tx, found.sha256, found.repository)
                    if content is not None:
                        contents.add_use(tx, content.number, found.inode, found.version)
                    elif found.sha256 != EMPTY:  # its pack was given up
                        log.error("returned.no_content", extra={"inode": found.inode})
                        unreadable.put(tx, found.inode, found.version)
            self._store.sync(self._store.position)
            self._tree.heard([(found.inode, found.version) for found in batch])
            self._tree.fold()
        except (DaemonUnreachable, NoSpace) as problem:
            log.warning("returned.later", extra={"why": str(problem)})
            self._not_before = self._clock.monotonic() + AGAIN_SECONDS
            return False
        return len(batch) == ROWS_AT_ONCE
