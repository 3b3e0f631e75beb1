"""How an engine asks for bytes that are only on targets. A port: the pipeline's client fills it in the mount process.

Calls are awaited under trio by the one request that needs them; everything else goes on meanwhile.
"""

from __future__ import annotations

from typing import Protocol

from vnafs.domain.errors import RecallFailed
from vnafs.domain.ids import Inode, Version


class Recaller(Protocol):
    """Brings bytes back. Both calls may be repeated and may run for the same file at once."""

    async def recall(self, inode: Inode, version: Version) -> None:
        """Return once the tree has adopted all bytes of this version, or it is not the file's version any more.

        Raises RecallFailed, Damaged.
        """
        ...

    async def fetch_range(self, inode: Inode, version: Version, offset: int, length: int) -> str:
        """The path of a sparse local file in which these bytes of the version are present and checked.

        Raises RecallFailed, Damaged.
        """
        ...


class NoRecaller:
    """For a mount without targets: a stub cannot be opened."""

    async def recall(self, inode: Inode, version: Version) -> None:
        """See Recaller."""
        raise RecallFailed(what=f"inode {inode} version {version}", why="nothing is there that could recall it")

    async def fetch_range(self, inode: Inode, version: Version, offset: int, length: int) -> str:
        """See Recaller."""
        del offset, length
        raise RecallFailed(what=f"inode {inode} version {version}", why="nothing is there that could recall it")
