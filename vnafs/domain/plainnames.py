"""Names of objects on a plain mirror: a file's own path wherever a target can have it, else one reversible rule.

Pure. README, "Plain mirrors", describes the same for whoever reads a mirror without us. No two paths have one name:
`%` itself is always escaped, names that begin like ours lose that beginning, and what is too long is named by its
SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

RESERVED = ".vna"
"""No user's name begins so on a mirror: its dot is escaped."""
METADATA = ".vna-metadata.jsonl"
"""What there is to say of a directory and of all that is in it, beside its files."""
LONG = ".vna-long"
"""Where objects are whose own names would be too long."""
NAME_BYTES_MAX = 255
"""Of one part of a name: NAME_MAX of Linux."""
OBJECT_BYTES_MAX = 900
"""S3 and Azure allow 1024 with the prefix of the mirror."""
PARTS_MAX = 200
"""Azure allows 254 with the prefix ("Naming and referencing containers, blobs, and metadata")."""

_FORBIDDEN = re.compile("[%\\\\\x00-\x1f\x7f-\x9f\udc80-\udcff\ufffe\uffff]")
"""Control characters and what XML cannot carry, in which listings of object stores come; backslashes, which Azure takes
for slashes; bytes that are not UTF-8 (they are decoded to surrogates)."""


def escaped(name: bytes) -> str:
    """One name, in which `%XX` stands for each byte that some target could not have."""
    text = _FORBIDDEN.sub(_bytes_of, name.decode("utf-8", "surrogateescape"))
    if text.endswith((".", " ")):  # Azure and Windows lose these
        text = text[:-1] + _bytes_of(text[-1])
    if text.startswith(RESERVED):
        text = f"%2E{text[1:]}"
    return text


def unescaped(text: str) -> bytes:
    """The name that `escaped` was given."""
    return unquote_to_bytes(text)


def _bytes_of(found: re.Match[str] | str) -> str:
    character = found if isinstance(found, str) else found.group()
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def object_name(parts: Sequence[bytes]) -> str:
    """Where the bytes of a file are; *parts* is its path, which begins with its repository's name."""
    return _plain(parts, "") or f"{LONG}/{_digest(parts)}"


def metadata_name(parts: Sequence[bytes]) -> str:
    """Where a directory is described; no parts: the top of the mirror."""
    return _plain(parts, METADATA) or f"{LONG}/{_digest(parts)}.jsonl"


def _plain(parts: Sequence[bytes], leaf: str) -> str:
    """Nothing when it would be too long."""
    names = [escaped(part) for part in parts] + ([leaf] if leaf else [])
    text = "/".join(names)
    fits = len(text.encode()) <= OBJECT_BYTES_MAX and all(len(name.encode()) <= NAME_BYTES_MAX for name in names)
    return text if fits and len(names) <= PARTS_MAX else ""


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"/".join(parts)).hexdigest()
