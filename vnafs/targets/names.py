"""Which object names are allowed: those that every kind of target can hold, unchanged and in the same order.

Pure; safe in any thread.
"""

from __future__ import annotations

import re

from vnafs.domain.ids import ObjectName

NAME_BYTES_MAX = 512
"""S3 and Azure allow 1024 bytes with the prefix; half is left for the prefix."""

_ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@+-]*(/[A-Za-z0-9_][A-Za-z0-9._=@+-]*)*")


def is_object_name(text: str) -> bool:
    """Whether *text* could be one of our objects: `/`-separated, ASCII, no component that starts with a dot."""
    return len(text) <= NAME_BYTES_MAX and _ALLOWED.fullmatch(text) is not None


def checked(name: ObjectName) -> ObjectName:
    """*name* itself. Raises ValueError for a name that no caller may build, so that none leaves the target's prefix."""
    if not is_object_name(name):
        raise ValueError(f"not an object name: {name!r}")
    return name
