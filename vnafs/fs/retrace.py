"""Retrace: what has to happen to the names of a directory so that they are what they were at a moment.

Only looks. A name is right when it leads to the inode that it led to then, with the version of then. An inode that is
gone, or whose version of then was overwritten, comes back as a new one; what has come into being since and is the same
in all that is kept is taken for it, so that a rollback may begin again anywhere. Where that version was never kept, the
nearest younger one stays or comes: nothing that is there goes away for nothing.

One thread; the caller brings the view.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.index import entries, inodes, keys, past
from vnafs.index.engine import Reader, prefix_stop
from vnafs.index.entries import Entry
from vnafs.index.inodes import InodeRow
from vnafs.index.past import Named, PastVersion

NOWHERE = Inode(0)


class Outcome(enum.Enum):
    """What becomes of a name."""

    UNCHANGED = "unchanged"
    RESTORED = "restored"
    """It leads to bytes and attributes of then, made anew."""
    MOVED = "moved"
    """It leads again to what is still there."""
    REMOVED = "removed"
    """There was no such name."""
    NEWER = "newer"
    """The version of then was never kept; the nearest younger one is there."""
    LOST = "lost"
    """Nothing is kept of what the name led to; what has the name now stays."""
    GUARDED = "guarded"
    """What has the name, or what it led to, is retained or held: it stays where it is, with all below it."""


class Move(NamedTuple):
    """One name of a directory, and how it becomes what it was."""

    name: bytes
    outcome: Outcome
    clear: bool = False
    """What has the name now must go first."""
    live: Inode = NOWHERE
    """What the name is to lead to, if that is there."""
    revive: PastVersion | None = None
    """What it is to lead to, if that comes back."""
    was: Inode = NOWHERE
    """The inode of then."""
    is_directory: bool = False
    """So its own names follow."""


def moves(
    reader: Reader,
    now: Inode,
    was: Inode,
    at_ns: int,
    after: bytes = b"",
    *,
    is_rooted: Callable[[Reader, Inode], bool] = lambda *_: False,
) -> Iterator[Move]:
    """What to do for the names of directory *now* past *after*, which shall be those that *was* had; lazily.

    *now* NOWHERE stands for a directory that is still to be made. *is_rooted* says what must stay where it is.
    """
    then = past.listing_at(reader, was, at_ns, after)
    live = _live(reader, now, after)
    wanted, has = next(then, None), next(live, None)
    while wanted is not None or has is not None:
        name = min(one[0] for one in ((has,) if has else ()) + (((wanted.name,),) if wanted else ()))
        want = entry = None
        if wanted is not None and wanted.name == name:
            want, wanted = wanted, next(then, None)
        if has is not None and has[0] == name:
            entry, has = has[1], next(live, None)
        if want is not None:
            move = _move(reader, want, entry, at_ns)
            is_moved = move.live == want.inode and move.is_directory and move.outcome is Outcome.MOVED
            clears = move.clear and entry is not None and is_rooted(reader, entry.inode)
            if clears or (is_moved and is_rooted(reader, want.inode)):
                move = Move(name, Outcome.GUARDED)
            yield move
        elif entry is not None:
            outcome = Outcome.GUARDED if is_rooted(reader, entry.inode) else Outcome.REMOVED
            yield Move(name, outcome, clear=outcome is Outcome.REMOVED)


def _live(reader: Reader, parent: Inode, after: bytes) -> Iterator[tuple[bytes, Entry]]:
    if parent == NOWHERE:
        return
    prefix = keys.entries(parent)
    for key, value in reader.scan(prefix + after + b"\0" if after else prefix, prefix_stop(prefix)):
        yield keys.entry_of(bytes(key))[1], entries.decode(bytes(value))


def _move(reader: Reader, want: Named, entry: Entry | None, at_ns: int) -> Move:
    is_directory = want.kind == entries.DIRECTORY
    row = inodes.find(reader, want.inode)
    old = past.version_at(reader, want.inode, at_ns)
    outcome = Outcome.MOVED
    if old is not None and not old.is_kept:
        outcome = Outcome.NEWER
        old = next((one for one in past.versions_of(reader, want.inode) if one.since_ns > at_ns and one.is_kept), None)
    if old is None and row is not None:
        if entry is not None and entry.inode == want.inode:
            outcome = Outcome.UNCHANGED if outcome is Outcome.MOVED else outcome
            return Move(want.name, outcome, live=want.inode, was=want.inode, is_directory=is_directory)
        clear = entry is not None
        return Move(want.name, outcome, clear=clear, live=want.inode, was=want.inode, is_directory=is_directory)
    if old is None:
        return Move(want.name, Outcome.LOST, was=want.inode)
    if entry is not None and _stands_for(reader, entry, old, at_ns):
        return Move(want.name, Outcome.UNCHANGED, live=entry.inode, was=want.inode, is_directory=is_directory)
    outcome = Outcome.RESTORED if outcome is Outcome.MOVED else outcome
    clear = entry is not None
    return Move(want.name, outcome, clear=clear, revive=old, was=want.inode, is_directory=is_directory)


def _stands_for(reader: Reader, entry: Entry, old: PastVersion, at_ns: int) -> bool:
    """Whether what has the name came into being since, and is what *old* was in all that is kept."""
    row = inodes.find(reader, entry.inode)
    if row is None or row.birth_ns <= at_ns or row.mode >> 12 != old.row.mode >> 12:
        return False
    if row.is_directory:
        return (row.mode, row.uid, row.gid) == (old.row.mode, old.row.uid, old.row.gid)
    if row.is_symlink:
        return reader.get(keys.symlink(entry.inode)) == reader.get(keys.symlink(old.inode))
    if not row.is_file:
        return row.rdev == old.row.rdev
    return row.nlink == 1 and _same(row, old.row)


def _same(row: InodeRow, old: InodeRow) -> bool:
    if row.seal is None or old.seal is None or row.seal.sha256 != old.seal.sha256:
        return False
    return (row.mode, row.uid, row.gid, row.mtime_ns) == (old.mode, old.uid, old.gid, old.mtime_ns)


def may_go_at_once(reader: Reader, inode: Inode, row: InodeRow, at_ns: int) -> bool:
    """Whether what a name leads to may be removed: nothing of it was wanted at that moment, and all of it is kept."""
    if row.is_file and row.state < FileState.PACKED:
        return False
    return past.version_since(reader, inode, row) > at_ns
