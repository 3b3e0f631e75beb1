"""Retention: until when a committed file may be neither changed nor removed, and what may become of that.

A file is *committed* once; from then on its bytes never change. Until its date its names stay, too. Plain values and
pure decisions.
"""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.actors import UNKNOWN, Actor

SECONDS_MAX = 100 * 365 * 86400
"""A longer retention is a mistake that nobody could undo."""


class RetentionMode(enum.Enum):
    """How firm a retention is, and of a repository whether files are committed in it at all."""

    OFF = "off"
    GOVERNANCE = "governance"
    """May be shortened, with a reason that is kept."""
    COMPLIANCE = "compliance"
    """Never ends early, whoever asks."""

    @property
    def strength(self) -> int:
        """Grows with what can not be undone."""
        return (RetentionMode.OFF, RetentionMode.GOVERNANCE, RetentionMode.COMPLIANCE).index(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Retention:
    """Of one committed file. Times are nanoseconds since 1970 UTC."""

    mode: RetentionMode
    until_ns: int
    since_ns: int
    """When it was committed."""
    by: Actor = UNKNOWN
    """Who committed it, or gave it the date it has now."""

    def is_over(self, now_ns: int) -> bool:
        """Whether the file may be removed; changed it may never be."""
        return self.until_ns <= now_ns


def stronger(one: RetentionMode, other: RetentionMode) -> RetentionMode:
    """The one that allows less."""
    return max(one, other, key=lambda mode: mode.strength)


def weakens(before: tuple[RetentionMode, int, int], after: tuple[RetentionMode, int, int]) -> str:
    """Why a repository's rules may not become *after* once they are compliance, or nothing.

    Rules are mode, default seconds and autocommit seconds. The mode stays for ever, files are retained no shorter by
    default, and committed no later: so that nobody can see to it that what comes tomorrow is not retained.
    """
    if before[0] is not RetentionMode.COMPLIANCE:
        return ""
    if after[0] is not RetentionMode.COMPLIANCE:
        return "compliance is never left"
    if after[1] < before[1]:
        return "in compliance the default retention becomes longer, never shorter"
    if before[2] and not 0 < after[2] <= before[2]:
        return "in compliance files are committed sooner, never later"
    return ""
