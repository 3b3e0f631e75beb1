"""Room on the local disk: what the pipeline itself brings back must not fill it.

Above the high mark what was only fetched ahead goes first, then replicated files, longest replicated first. Whoever
brings bytes back asks for room before, so that reading more than the disk holds works, file after file. What is
brought back never takes of the reserve: that is for index, log, and packs that are on their way. Any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from vnafs.domain.errors import NoSpace, VnaError
from vnafs.pipeline.evict import Watermarks

log = logging.getLogger(__name__)

MakeRoom = Callable[[Callable[[], int], int], int]
"""Evicts until no more than so many bytes are in use, as the first argument says; returns how many files."""


class Room:
    """One disk. *marks* says how much is in use, and its marks; *shed* lets go of what can be fetched again."""

    def __init__(
        self, marks: Callable[[], tuple[int, Watermarks]], *, shed: Callable[[], None], evict: MakeRoom
    ) -> None:
        self._marks = marks
        self._shed = shed
        self._evict = evict
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._promised_bytes = 0
        """To those who are bringing bytes at this moment; what they have written already counts twice."""

    def has(self, wanted_bytes: int) -> bool:
        """Whether so much more stays below the high mark, and out of the reserve."""
        used, marks = self._marks()
        return used + self._promised_bytes + wanted_bytes <= min(marks.high_bytes, marks.limit_bytes)

    @contextlib.contextmanager
    def spare(self, wanted_bytes: int) -> Iterator[None]:
        """Take so much while the block lasts, only if it is there. Raises NoSpace."""
        with self._lock:
            if not self.has(wanted_bytes):
                raise NoSpace(why="the local disk is above its mark")
            self._promised_bytes += wanted_bytes
        try:
            yield
        finally:
            self._give_back(wanted_bytes)

    @contextlib.contextmanager
    def taking(self, wanted_bytes: int) -> Iterator[None]:
        """Make room, and take it while the block lasts. Raises NoSpace when it would have to come from the reserve."""
        self.make(wanted_bytes)
        with self._lock:
            used, marks = self._marks()
            if used + self._promised_bytes + wanted_bytes > marks.limit_bytes:
                raise NoSpace(why="nothing more can be evicted, and the rest of the local disk is kept in reserve")
            self._promised_bytes += wanted_bytes
        try:
            yield
        finally:
            self._give_back(wanted_bytes)

    def _give_back(self, promised_bytes: int) -> None:
        with self._lock:
            self._promised_bytes -= promised_bytes

    def make(self, wanted_bytes: int) -> None:
        """See to it that there is room for so much more, as far as that is possible now."""
        if self.has(wanted_bytes):
            return
        with self._turn:
            marks = self._marks()[1]
            self._down_to(max(0, min(marks.high_bytes, marks.limit_bytes) - wanted_bytes - self._promised_bytes))

    def keep(self) -> None:
        """Bring the disk back to its low mark when it is above the high one."""
        with self._turn:
            used, marks = self._marks()
            if used > marks.high_bytes:
                self._down_to(marks.low_bytes)

    def _down_to(self, bytes_max: int) -> None:
        if self._marks()[0] <= bytes_max:
            return
        self._shed()
        try:
            self._evict(lambda: self._marks()[0], bytes_max)
        except VnaError as problem:
            log.warning("evict.later", extra={"why": str(problem)})
