"""Times in HTTP headers, compared with our own clock. Pure but for the clock they are given."""

from __future__ import annotations

import email.utils

from vnafs.domain.clock import NANOSECONDS, Clock

CLOCK_SKEW_SECONDS_MAX = 900
"""S3 and Azure refuse signatures that are further from their own time."""


def is_skewed(date: str, clock: Clock) -> bool:
    """Whether a Date header shows that the server's time is too far from ours for it to take our signatures."""
    theirs = _seconds(date)
    return theirs is not None and abs(clock.now() / NANOSECONDS - theirs) > CLOCK_SKEW_SECONDS_MAX


def retry_after_seconds(text: str, clock: Clock) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date; None when there is none or it makes no sense."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    when = _seconds(text)
    return None if when is None else max(0.0, when - clock.now() / NANOSECONDS)


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None
