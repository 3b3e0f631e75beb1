"""Waiting for stable storage without stopping the loop: one sync of the index for everybody who waits.

While a sync runs on a thread, further waiters gather for the next one. A failed sync is never retried: everyone who
waits is refused and the tree refuses every change from then on. Trio, one thread.
"""

from __future__ import annotations

import trio

from vnafs.domain.errors import StorageFailed
from vnafs.fs.commitment import Commitment, settle
from vnafs.fs.filesystem import Filesystem
from vnafs.index.engine import Position


class Syncing:
    """What an engine awaits before it may answer."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self._engine = filesystem.engine
        self._wanted = Position(0)
        self._demand = trio.Event()
        self._next = trio.Event()

    async def until(self, position: Position) -> None:
        """Return once everything up to *position* survives loss of power. Raises StorageFailed."""
        while self._engine.synced < position:
            if self._filesystem.failure is not None:
                raise self._filesystem.failure
            self._wanted = max(self._wanted, position)
            self._demand.set()
            await self._next.wait()

    async def settle(self, commitment: Commitment) -> None:
        """Return once a commitment is settled. Raises StorageFailed."""
        try:
            if commitment.descriptor < 0:
                await self.until(commitment.position)
            else:
                with trio.CancelScope(shield=True):  # the thread owns the descriptor until it is done
                    await trio.to_thread.run_sync(settle, commitment, self._engine)
        except StorageFailed as error:
            self._filesystem.unsettled(commitment, error)
            raise
        self._filesystem.settled(commitment)

    async def removals(self) -> None:
        """Local bytes that were removed stay away after loss of power too, and are forgotten. Raises StorageFailed."""
        removed = self._filesystem.removed()
        if not removed:
            return
        try:
            await trio.to_thread.run_sync(self._filesystem.sync_places, removed)
        except StorageFailed as error:
            self._filesystem.fail(error)
            raise
        self._filesystem.forget_removed(removed)

    async def run(self) -> None:
        """Sync whenever somebody waits; ends with StorageFailed when the disk does."""
        while True:
            await self._demand.wait()
            self._demand = trio.Event()
            served, self._next = self._next, trio.Event()
            try:
                await trio.to_thread.run_sync(self._engine.sync, self._wanted)
            except StorageFailed as error:
                self._filesystem.fail(error)
                raise
            finally:
                served.set()
