"""Room on the local disk: what the pipeline itself brings back must not fill it.

Above the high mark what was only fetched ahead goes first, then replicated files, longest replicated first. Whoever
brings bytes back asks for room before, so that reading more than the disk holds works, file after file. Any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vnafs.domain.errors import VnaError
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

    def has(self, wanted_bytes: int) -> bool:
        """Whether so much more stays below the high mark."""
        used, marks = self._marks()
        return used + wanted_bytes <= marks.high_bytes

    def make(self, wanted_bytes: int) -> None:
        """See to it that there is room for so much more, as far as that is possible now."""
        if self.has(wanted_bytes):
            return
        with self._turn:
            self._down_to(max(0, self._marks()[1].high_bytes - wanted_bytes))

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
