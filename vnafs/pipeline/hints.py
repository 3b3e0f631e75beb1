"""Hints: what a pack's catalogue says of a file."""

from __future__ import annotations

from vnafs.content.packfile import FileHints
from vnafs.pipeline.namespace import Described


def hints_of(described: Described) -> FileHints:
    """Everything but what only its bytes can tell."""
    row = described.row
    return FileHints(
        path=described.path,
        inode=described.facts.inode,
        version=described.facts.version,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        ctime_ns=row.ctime_ns,
        xattrs=described.xattrs,
    )
