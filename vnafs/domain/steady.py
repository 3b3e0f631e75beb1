"""The steady clock: time that nobody advances by turning the machine's clock. Retention is judged by it.

Within one boot it runs with the kernel's own count of seconds since boot, which no administrator sets. What passes
while the machine is off proves nothing and is not counted; nor does the clock ever go past the wall clock. So it lags,
and catches up while it runs: by a week in a year, which is also all that a wall clock turned forward could gain.
A lag makes retention longer, never shorter. Pure.
"""

from __future__ import annotations

import dataclasses

from vnafs.domain.clock import Instant

CATCH_UP_DAYS, OF_DAYS = 7, 365
"""How much of a lag is made up for while so many days are proven to have passed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Steady:
    """The clock as it stood once."""

    now: Instant
    boot: str
    """Names the boot of the kernel; empty is never the same."""
    since_boot_ns: int
    """What the kernel had counted then."""


def moved_on(known: Steady | None, *, boot: str, since_boot_ns: int, wall: Instant) -> Steady:
    """The clock as it stands now; without a *known* one it begins at the wall clock."""
    if known is None:
        return Steady(wall, boot, since_boot_ns)
    passed = max(0, since_boot_ns - known.since_boot_ns) if boot and boot == known.boot else 0
    there = known.now + passed + passed * CATCH_UP_DAYS // OF_DAYS
    return Steady(Instant(max(known.now, min(there, wall))), boot, since_boot_ns)
