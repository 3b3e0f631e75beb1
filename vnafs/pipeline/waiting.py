"""Packs that wait on the local disk for their targets: how many bytes, and what is done when they are too many.

Known from a count, so that everybody may ask at any time. Past the limit packs with one verified copy go, and
packing waits; the files stay in the spool. Any thread asks; one looks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace
from vnafs.index import counts
from vnafs.index.engine import Engine
from vnafs.pipeline.shelf import Shelf

log = logging.getLogger(__name__)

RELIEF_SECONDS = 2.0
"""Between two searches for packs that may go."""
PATIENCE_SECONDS = 300.0
"""For room in the middle of a large file, whose beginning would have to be read again."""
PAUSE_SECONDS = 0.5


class WaitingPacks:
    """*filling* says how many bytes are in packs that have no row yet, *stopping* that nobody should wait."""

    def __init__(
        self,
        store: Engine,
        shelf: Shelf,
        *,
        filling: Callable[[], int],
        stopping: Callable[[], bool],
        bytes_max: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._filling = filling
        self._stopping = stopping
        self._bytes_max = bytes_max
        self._clock = clock
        self._relieve_at = float("-inf")
        self._why = ""

    @property
    def why(self) -> str:
        """Why packing waits, or nothing."""
        return self._why

    def size_bytes(self) -> int:
        """Of all packs on the local disk, full or not."""
        with self._store.read() as reader:
            closed = counts.get(reader, counts.LOCAL).size_bytes
        return closed + self._filling()

    def have_room(self) -> bool:
        """Whether there may be more."""
        return self.size_bytes() <= self._bytes_max

    def look(self) -> bool:
        """As `have_room`; if not, lets packs go that some target has, and says so."""
        size_bytes = self.size_bytes()
        if size_bytes <= self._bytes_max:
            self._why = ""
            return True
        now = self._clock.monotonic()
        if now >= self._relieve_at:
            self._relieve_at = now + RELIEF_SECONDS
            for number in self._shelf.local_packs():
                self._shelf.release(number, copies_enough=1)
        if not self._why:
            log.warning("pack.waiting_for_targets", extra={"waiting_bytes": size_bytes})
        self._why = f"{size_bytes} bytes of packs wait for targets; files stay in the spool until they are taken"
        return False

    def wait_for_room(self) -> None:
        """Return once there may be more. Raises NoSpace when that takes too long."""
        until = self._clock.monotonic() + PATIENCE_SECONDS
        while not self.have_room():
            if self._stopping() or self._clock.monotonic() >= until:
                raise NoSpace(why="packs wait for targets, and there may not be more of them")
            self._clock.sleep(PAUSE_SECONDS)
