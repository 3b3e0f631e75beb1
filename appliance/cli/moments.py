"""Moments as people write them: ISO 8601, seconds since 1970, or how long ago."""

from __future__ import annotations

import datetime as dt
import re

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import InvalidArgument

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+)(s|min|h|d) ago")


def moment_ns(text: str, *, now_ns: int) -> int:
    """Nanoseconds since 1970 UTC of `2026-05-04T12:00:00` (local time unless it says), `@1767225600` or `2h ago`.

    Raises InvalidArgument.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now_ns - int(ago[1]) * _UNITS[ago[2]] * NANOSECONDS
    try:
        if text.startswith("@"):
            seconds, _, rest = text[1:].partition(".")
            return int(seconds) * NANOSECONDS + int(f"{rest:0<9}"[:9] or 0)
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            why=f"{text!r} is no time; write 2026-05-04T12:00:00, @1767225600 or '2h ago' (s, min, h, d)"
        ) from None
    return int(found.timestamp()) * NANOSECONDS + found.microsecond * 1000


def shown(nanoseconds: int) -> str:
    """Local time with its offset, as `moment_ns` reads it."""
    whole = dt.datetime.fromtimestamp(nanoseconds // NANOSECONDS).astimezone()
    return whole.isoformat(timespec="seconds")


def exact(nanoseconds: int) -> str:
    """To the nanosecond, as `moment_ns` reads it."""
    return f"@{nanoseconds // NANOSECONDS}.{nanoseconds % NANOSECONDS:09d}"
