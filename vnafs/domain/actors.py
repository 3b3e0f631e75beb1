"""Actors: who did something, as far as it is known, and how sure that is. Plain values.

How rows and lines of logs say it is here and only here. Nobody is believed: the user is the one that the kernel named;
on whose behalf that one says to act is a claim and marked as one.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

UID_MAX = 2**32 - 2
"""(uid_t)-1 is nobody: chown(2)."""


class Door(enum.IntEnum):
    """Where a deed came in. The numbers are stored and never change meaning."""

    UNKNOWN = 0
    """In rows from before anybody was named."""
    SYSTEM = 1
    """By itself, by a rule that somebody made before."""
    MOUNT = 2
    """A call of a program on the mounted tree; behind a file server its user, as that one maps them."""
    COMMAND = 3
    """A request over a control socket, or a command that works on the archive itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """Who did something."""

    door: Door
    uid: int = 0
    """As the kernel says it, of a call or of the peer of a socket; 0 and meaningless for UNKNOWN and SYSTEM."""
    login: str = ""
    """What that user was called then; empty where nobody asked or nobody knew."""
    claimed_uid: int | None = None
    """On whose behalf it was, as the asking side says; nothing vouches for it."""
    claimed_login: str = ""

    def shown(self) -> dict[str, Any]:
        """As audit rows, logs and answers have it."""
        found: dict[str, Any] = {"by": self.door.name.lower()}
        if self.door not in {Door.UNKNOWN, Door.SYSTEM}:
            found["uid"] = self.uid
        if self.login:
            found["login"] = self.login
        if self.claimed_uid is not None:
            found["on_behalf_of"] = {"uid": self.claimed_uid, "claimed": True}
            if self.claimed_login:
                found["on_behalf_of"]["login"] = self.claimed_login
        return found


UNKNOWN = Actor(Door.UNKNOWN)
SYSTEM = Actor(Door.SYSTEM)
"""vnafs itself."""


def at_mount(uid: int) -> Actor:
    """Whoever called the tree through its mount."""
    return Actor(Door.MOUNT, uid)
