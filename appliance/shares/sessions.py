"""Clients of shares whose tree was taken away: what servers keep for them is of a mount that is gone, and stays so."""

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


def look_again(shares: Iterable[ShareSettings], run: Run) -> bool:
    """Have the kernel's NFS server forget which mount its exports are on: handles then lead to the one that is there.

    Whether it was told: not without shares by NFS, nor where it is not installed (exportfs(8)).
    """
    if not any(share.protocol == "nfs" for share in shares):
        return False
    try:
        return run(FORGETTING).code == 0
    except Refused:
        return False


FORGETTING = ("exportfs", "-f")
"""Looks at no export and asks no mount for anything."""
