"""Traces: local files that have, or may have, bytes of certain inodes, wherever in the archive's folder they are.

Their names begin with inode and version in hexadecimal digits (`vnafs.local.spool`, the recaller's staging, frozen
copies). What lies in the spool itself is mount's to remove and only looked for; the rest is removed. Any thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator

from vnafs.domain.ids import Inode, Version
from vnafs.local.spool import copy_of


class Traces:
    """*local_path* is where the spool has a version; what *folders* have is needed by nobody once its inode is gone."""

    def __init__(self, local_path: Callable[[Inode, Version], str], folders: Collection[str]) -> None:
        self._local_path = local_path
        self._folders = folders

    def clear(self, versions: Collection[tuple[Inode, Version]]) -> int:
        """Remove what may be removed; how many files are left."""
        inodes = {inode for inode, _ in versions}
        for path in self._of(inodes):
            with contextlib.suppress(OSError):
                os.unlink(path)
        left = sum(1 for _ in self._of(inodes))
        places = ((inode, place) for inode, version in versions for place in (version, copy_of(version)))
        return left + sum(os.path.lexists(self._local_path(inode, place)) for inode, place in places)

    def _of(self, inodes: Collection[Inode]) -> Iterator[str]:
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
                for entry in listing:
                    try:
                        inode = int(entry.name.split(".", 1)[0], 16)
                    except ValueError:
                        continue  # nothing of ours
                    if inode in inodes and entry.is_file(follow_symlinks=False):
                        yield entry.path
