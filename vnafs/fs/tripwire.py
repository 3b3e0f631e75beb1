"""Tripwire: notices when more is overwritten, renamed and deleted in a repository than people and archives do.

Counts what happened to contents that are kept, over the last minute in two halves, in memory: after a restart it begins
anew. It decides nothing but that a rate is too high. One thread.
"""

from __future__ import annotations

import collections
import dataclasses
import enum

from vnafs.domain.clock import Clock
from vnafs.domain.repositories import Repository

HALF_SECONDS = 30.0


class Harm(enum.Enum):
    """What can happen to a content that is kept, or what it can be replaced by."""

    OVERWRITTEN = "overwritten"
    RENAMED = "renamed"
    DELETED = "deleted"
    SCRAMBLED = "written with bytes that look encrypted"


WEIGHTS = {Harm.SCRAMBLED: 10}
"""What people and archives hardly ever do counts for more."""


@dataclasses.dataclass(slots=True)
class _Window:
    half: int
    now: collections.Counter[Harm] = dataclasses.field(default_factory=collections.Counter)
    before: collections.Counter[Harm] = dataclasses.field(default_factory=collections.Counter)
    total: int = 0
    """Of both, weighed."""


class Tripwire:
    """Rates of all repositories."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[int, _Window] = {}

    def note(self, repository: Repository, harm: Harm) -> str:
        """Count one; what the rate is when it is too high, else nothing."""
        half = int(self._clock.monotonic() / HALF_SECONDS)
        window = self._windows.get(repository.id)
        if window is None or half > window.half + 1:
            window = self._windows[repository.id] = _Window(half)
        elif half > window.half:
            window = self._windows[repository.id] = _Window(half, before=window.now, total=_weighed(window.now))
        window.now[harm] += 1
        window.total += WEIGHTS.get(harm, 1)
        if window.total <= repository.tripwire_per_minute:
            return ""
        counts = window.now + window.before
        del self._windows[repository.id]
        return ", ".join(f"{counts[one]} {one.value}" for one in Harm if counts[one]) + " within a minute"


def _weighed(counts: collections.Counter[Harm]) -> int:
    return sum(count * WEIGHTS.get(harm, 1) for harm, count in counts.items())
