"""Sizes as people write them: `10T`, `500GiB`, `1048576`; a letter stands for the unit of 1024, as df(1) shows it."""

from __future__ import annotations

import re

from vnafs.domain.errors import InvalidArgument

_SIZE = re.compile(r"(\d+)(?:([KMGTP])(?:i?B)?|B)?", re.IGNORECASE)
_POWERS = {letter: 1024**power for power, letter in enumerate("KMGTP", 1)}
NONE = "none"


def size_bytes(text: str) -> int:
    """Bytes of `10T`; 0 of `none`. Raises InvalidArgument."""
    if text.strip().lower() == NONE:
        return 0
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(why=f"{text!r} is no size; write 500G, 10T, a number of bytes, or none")
    return int(found[1]) * (_POWERS[found[2].upper()] if found[2] else 1)


def number(text: str) -> int:
    """A number of things; 0 of `none`. Raises InvalidArgument."""
    stripped = text.strip()
    if stripped.lower() == NONE:
        return 0
    if not (stripped.isascii() and stripped.isdigit()):
        raise InvalidArgument(why=f"{text!r} is no number; write 5000000, or none")
    return int(stripped)
