"""The envelope of what is encrypted: which key wraps its data key, and the data key wrapped. Never a key itself."""

from __future__ import annotations

import dataclasses
from typing import NewType

KeyId = NewType("KeyId", bytes)
"""16 random bytes that name a repository's key everywhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """As headers of packs and manifest objects carry it (FORMAT.md, "Encryption")."""

    key: KeyId
    """Of the key that wraps."""
    wrapped: bytes
    """The data key, wrapped (RFC 3394): 40 bytes."""
