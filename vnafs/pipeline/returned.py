"""Returned: note the uses of versions that came back from kept ones, and tell the tree that it was heard.

Mount writes a row for each (`vnafs.index.returned`) and keeps the version it came from until it is told. Every step
may be repeated. A version may come back before it has all its copies: recalled then, it would count as replicated.
Such ones are remembered, in memory only (each start looks at every file), and called packed as long as that is what
they are. One thread.
"""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Callable, Sequence

from vnafs.domain.clock import Clock
from vnafs.domain.errors import DaemonUnreachable, NoSpace, NotFound
from vnafs.domain.files import FileState, Proposal
from vnafs.domain.ids import Inode, Version
from vnafs.domain.recipes import EMPTY
from vnafs.index import contents, unreadable
from vnafs.index.engine import Engine
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
AGAIN_SECONDS = 5.0
"""After the tree did not take an answer, and between two looks at copies."""
THIN_MAX = 100_000


class ReturnedFiles:
    """See the module."""

    def __init__(
        self,
        store: Engine,
        namespace: Namespace,
        tree: Tree,
        clock: Clock,
        *,
        standing: Callable[[Inode, Version], Proposal | None],
        propose: Callable[[Sequence[Proposal]], None],
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._tree = tree
        self._clock = clock
        self._standing = standing
        self._propose = propose
        self._not_before = 0.0
        self._thin: collections.deque[tuple[Inode, Version]] = collections.deque(maxlen=THIN_MAX)
        """Came back before they had all their copies."""
        self._thin_due = 0.0

    def step(self) -> bool:
        """Do a little; whether there may be more to do at once."""
        if self._clock.monotonic() < self._not_before:
            return False
        self._look_at_thin()
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
        self._thin.extend((found.inode, found.version) for found in batch)
        return len(batch) == ROWS_AT_ONCE

    def _look_at_thin(self) -> None:
        if not self._thin or self._clock.monotonic() < self._thin_due:
            return
        self._thin_due = self._clock.monotonic() + AGAIN_SECONDS
        for _ in range(min(len(self._thin), ROWS_AT_ONCE)):
            inode, version = self._thin.popleft()
            found = self._standing(inode, version)
            if found is None or found.state is not FileState.PACKED:
                continue
            with contextlib.suppress(NotFound):
                if self._namespace.row(inode).state is FileState.REPLICATED:
                    self._propose([found])
                else:
                    self._thin.append((inode, version))
