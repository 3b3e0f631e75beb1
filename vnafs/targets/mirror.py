"""The port of a plain mirror: a place for other software to read, where an object may be replaced and removed.

It is apart from `Target` on purpose: nothing that holds packs can be told to replace one. Names are those of
`domain.plainnames`, so they are patient data: no error of a mirror names an object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from vnafs.domain.ids import Sha256, TargetName
from vnafs.targets.port import Body

MARKER = ".vnafs-mirror.json"
"""Says of which archive this is a mirror; begins as no user's name does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Original:
    """An object of the mirror that has the bytes that another one shall have."""

    name: str
    size_bytes: int
    sha256: Sha256


class Mirror(Protocol):
    """A place for plain objects. Every call may be repeated; a reader sees an object whole, old or new.

    Calls may come from several threads at once, for one name from one at a time. All raise TargetUnavailable (try
    again later), TargetRefused (will not work until someone acts).
    """

    @property
    def name(self) -> TargetName:
        """The administrator's name for it."""
        ...

    def probe(self, *, known: bool) -> bool:
        """Look whether this is the mirror of this archive; whether it was one before.

        An empty place becomes one, unless it is *known* to have been one: then it is TargetUnavailable. One that holds
        anything else, or another archive's mirror, is TargetRefused.
        """
        ...

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        """Have these bytes at *name*, whatever was there. When it returns they are there for good and were verified.

        Raises Damaged when the place has other bytes than it was given, ObjectExists when something that is no object
        stands in the way.
        """
        ...

    def copy(self, source: Original, name: str, mtime_ns: int) -> bool:
        """Have at *name*, where nothing is, what is at *source*, without sending it; whether it is there now.

        Then it is there for good and was verified, as by *replace*. If not, *name* may have anything, and is to be
        replaced: the place cannot copy that, or *source* was not what it is said to be, or not there any more.
        """
        ...

    def remove(self, name: str) -> None:
        """Have nothing at *name*."""
        ...

    def list(self) -> Iterator[str]:
        """Every name there is, but that of the marker, in no order."""
        ...

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...
