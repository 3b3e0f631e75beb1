"""Objects in an archive class: what a target says when one is asked for again."""

from __future__ import annotations

import dataclasses
import enum


class Thaw(enum.Enum):
    """How an object stands."""

    READY = "ready"
    """It can be read now."""
    ASKED = "asked"
    """It was asked back with this call."""
    PENDING = "pending"
    """It was asked back before and is on its way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rehydration:
    """A target's answer. Asking again costs no more than a look."""

    thaw: Thaw
    seconds_expected: int = 0
    """From the asking on, as the provider says it usually takes; 0 when it is ready."""


READY = Rehydration(Thaw.READY)
