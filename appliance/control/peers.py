"""Peers: who is on the other side of a control socket, as the kernel says (SO_PEERCRED, unix(7)).

What a request says of itself decides nothing: it may add on whose behalf it is, and that is kept as a claim.
"""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Mapping
from typing import Any

from vnafs.domain.actors import UID_MAX, Actor, Door
from vnafs.domain.errors import RequestInvalid

_CREDENTIALS = struct.Struct("iIi")
"""pid, uid, gid."""


def uid_of(connection: socket.socket) -> int:
    """The user whose process connected, at that moment."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def actor(uid: int, on_behalf_of: int | None = None) -> Actor:
    """A user at the control socket, by name; may wait for a directory service. A claim to be oneself is none."""
    if on_behalf_of is None or on_behalf_of == uid:
        return Actor(Door.COMMAND, uid, login_of(uid))
    return Actor(Door.COMMAND, uid, login_of(uid), on_behalf_of, login_of(on_behalf_of))


def claim_in(request: Mapping[str, Any]) -> int | None:
    """On whose behalf a request says to be. Raises RequestInvalid."""
    claimed = request.get("on_behalf_of")
    if claimed is None:
        return None
    if type(claimed) is not int or not 0 <= claimed <= UID_MAX:
        raise RequestInvalid(method=str(request.get("method")), why="on_behalf_of is no number of a user")
    return claimed


def login_of(uid: int) -> str:
    """What a user is called; empty where nobody knows."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""
