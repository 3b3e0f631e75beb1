"""Clients of shares whose tree was taken away: their sessions stand in a directory that is gone, and stay there."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.commands import Run
from appliance.shares.settings import ShareSettings
from vnafs.domain.errors import Refused


def close(shares: Iterable[ShareSettings], run: Run) -> list[str]:
    """Have Samba end what its clients have of these shares; they connect to them again by themselves.

    The names of those that Samba was told of: none where it is not installed or not running (smbcontrol(1)).
    """
    told = []
    for share in shares:
        if share.protocol == "smb":
            try:
                done = run(closing(share.name))
            except Refused:
                break
            if done.code == 0:
                told.append(share.name)
    return told


def closing(name: str) -> list[str]:
    """The command for one share."""
    return ["smbcontrol", "smbd", "close-share", name]
