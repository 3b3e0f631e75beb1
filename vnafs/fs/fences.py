"""Fences: files whose writers wait a moment, so that their bytes can be copied while nobody changes them.

A fence falls when it is let go, or by itself: whoever asked for it may have died. After that the file's writers are
left alone for a while, so that nobody can hold them for ever by asking again and again. Memory only; one thread.
"""

from __future__ import annotations

from vnafs.domain.clock import Clock
from vnafs.domain.files import Verdict
from vnafs.domain.ids import Inode, Version

FENCES_MAX = 16
"""At once."""
RESPITE = 10
"""For so many times as long as they could be held, writers are then left alone."""


class WritersHeld(Exception):
    """Bytes of *inode* must not change now: try again, after *seconds* at the latest."""

    def __init__(self, inode: Inode, seconds: float) -> None:
        super().__init__(f"inode {inode} is being copied")
        self.inode = inode
        self.seconds = seconds


class Fences:
    """What is held now. *seconds_max* is how long a writer waits at most; 0 holds nobody."""

    def __init__(self, clock: Clock, seconds_max: float) -> None:
        self._clock = clock
        self._seconds_max = seconds_max
        self._left_alone: dict[Inode, float] = {}
        self.held: dict[Inode, tuple[Version, float]] = {}
        """Empty nearly always, which is all that a write needs to look at then."""

    def hold(self, inode: Inode, version: Version) -> Verdict:
        """DONE: writers wait, since the first such request. BUSY: they were held a moment ago; ask much later."""
        now = self._clock.monotonic()
        self._forget(now)
        if inode in self.held:
            return Verdict.DONE if self.held[inode][0] == version else Verdict.BUSY
        if self._seconds_max <= 0 or inode in self._left_alone or len(self.held) >= FENCES_MAX:
            return Verdict.BUSY
        self.held[inode] = (version, now + self._seconds_max)
        self._left_alone[inode] = now + (1 + RESPITE) * self._seconds_max
        return Verdict.DONE

    def let_go(self, inode: Inode, version: Version) -> Verdict:
        """Writers go on. DONE when they were held until now, GONE when the fence had fallen by itself."""
        self._forget(self._clock.monotonic())
        if inode not in self.held or self.held[inode][0] != version:
            return Verdict.GONE
        del self.held[inode]
        return Verdict.DONE

    def check(self, inode: Inode) -> None:
        """Raises WritersHeld."""
        fence = self.held.get(inode)
        if fence is None:
            return
        seconds = fence[1] - self._clock.monotonic()
        if seconds > 0:
            raise WritersHeld(inode, seconds)
        del self.held[inode]

    def _forget(self, now: float) -> None:
        for inode in [inode for inode, (_, until) in self.held.items() if until <= now]:
            del self.held[inode]
        for inode in [inode for inode, until in self._left_alone.items() if until <= now]:
            del self._left_alone[inode]
