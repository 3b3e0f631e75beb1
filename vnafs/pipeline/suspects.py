"""What the local disk did not keep, from the moment Linux says so until the tree knows.

The one who hears it notes it in the store, synced, before anything else: a second fdatasync(2) would go well. Until the
tree has taken it nothing here seals or copies such a version. Any thread.
"""

from __future__ import annotations

import logging

from vnafs.domain.errors import VnaError
from vnafs.domain.ids import Inode, Version
from vnafs.index import suspects
from vnafs.index.engine import Engine
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

UNTOLD_MAX = 10_000
"""Then nothing more is sealed or copied until the tree has heard: the disk keeps nothing, and nobody may say so."""


class Suspects:
    """Versions that the tree has not heard of yet; also those that an earlier process left."""

    def __init__(self, store: Engine, tree: Tree) -> None:
        self._store = store
        self._tree = tree
        with store.read() as reader:
            self._untold = dict.fromkeys(suspects.every(reader))

    def __contains__(self, one: tuple[Inode, Version]) -> bool:
        return one in self._untold

    @property
    def is_full(self) -> bool:
        """Whether no other may be found now."""
        return len(self._untold) >= UNTOLD_MAX

    def add(self, inode: Inode, version: Version, why: object) -> None:
        """The disk did not keep a version; the tree is told now if it can be. Raises StorageFailed, NoSpace."""
        log.critical("suspects.found", extra={"inode": inode, "version": version, "why": str(why)})
        self._untold[inode, version] = None
        with self._store.write() as tx:
            suspects.put(tx, inode, version)
        self._store.sync(self._store.position)
        self.tell()

    def tell(self) -> None:
        """Tell the tree what it has not heard; what it cannot hear now is told again."""
        for inode, version in list(self._untold):
            try:
                self._tree.suspect(inode, version)
                with self._store.write() as tx:
                    suspects.remove(tx, inode, version)
            except VnaError as problem:
                log.warning("suspects.untold", extra={"inode": inode, "why": str(problem)})
                return
            self._untold.pop((inode, version), None)
