"""Names as clients see them to whom `A` and `a` are one letter: which names are the same, and the key that finds them.

A name that is its own folded form (lower case, digits, dots: most names of DICOM files) has no row of its own: it is
found under that form. Only characters that are each other's only counterpart are folded, one for one, as Windows does;
a name that is no UTF-8 is folded in its ASCII letters. What is folded here is in rows (Z): it never changes.
"""

from __future__ import annotations

import xxhash

from vnafs.domain.ids import Inode
from vnafs.index import keys

DIGEST_BYTES = 4


def fold(name: bytes) -> bytes:
    """The form that all names have in common which differ in case alone."""
    if name.isascii():
        return name.lower()
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return name.lower()
    return "".join(map(_fold, text)).encode("utf-8")


def row_of(parent: Inode, name: bytes, cookie: int) -> bytes | None:
    """The key of the row that leads to a name; None where its folded form is itself."""
    folded = fold(name)
    return None if folded == name else rows_of(parent, folded) + cookie.to_bytes(8, "big")


def rows_of(parent: Inode, folded: bytes) -> bytes:
    """The prefix of all rows of names with that folded form, and seldom of others."""
    return keys.folded(parent, xxhash.xxh32_digest(folded))


def _fold(char: str) -> str:
    lower = char.lower()
    return lower if len(lower) == 1 and lower.upper() == char else char
