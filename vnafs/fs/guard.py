"""Guard: whether an inode may be changed, and whether a name of it may go.

The one place that says no for retention and holds, whatever door the wish comes through.

    of a file                     bytes, times, owner, xattrs   mode      its names   names of directories above
    retained                      no                            no        no          no (rounded up to a day)
    retained once, now over       no                            yes       yes         yes
    the same in a repository
    whose retention is off        yes                           yes       yes         yes
    held, or below what is held   no                            no        no          yes; up to what is held: no

A further name is no harm: it is protected too. Asked only in repositories where something was ever retained or held;
there it costs one look at the index, and with a hold one look at each directory above. One thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import Committed, Held, NotPermitted, Retained
from vnafs.domain.ids import Inode
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.index import entries, holds, keys, retentions
from vnafs.index.holds import Hold

if TYPE_CHECKING:
    from vnafs.fs.core import Core
    from vnafs.index.engine import Reader
    from vnafs.index.inodes import InodeRow
    from vnafs.index.past import Ending

NOWHERE = Inode(0)


def refuse_change(core: Core, inode: Inode, row: InodeRow, reader: Reader) -> None:
    """Raises Retained, Committed or Held when bytes and attributes of an inode must stay as they are."""
    why = why_unchanged(core, inode, row, reader)
    if why is not None:
        raise why


def refuse_setattr(core: Core, inode: Inode, row: InodeRow, changes: AttributeChanges) -> None:
    """As `refuse_change`; when a retention is over the mode may change, so that clients of SMB can remove the file."""
    if changes == AttributeChanges():
        return
    with core.engine.read() as reader:
        why = why_unchanged(core, inode, row, reader)
    if why is None:
        return
    if isinstance(why, Committed) and changes == AttributeChanges(mode=changes.mode):
        return
    raise why


def why_unchanged(core: Core, inode: Inode, row: InodeRow, reader: Reader) -> NotPermitted | None:
    """Why bytes and attributes of an inode must stay as they are, or None."""
    if row.repository not in core.guarded:
        return None
    held = core.holds.on(lambda number: core.find(number, reader), inode, row)
    if held:
        return _held(inode, held)
    retention = retentions.find(reader, inode) if row.is_file else None
    if retention is None:
        return None
    if not retention.is_over(core.time.now()):
        return Retained(what=f"Inode {inode}", until=shown(retention.until_ns), mode=retention.mode.value)
    if core.repositories[row.repository].retention is RetentionMode.OFF:
        return None
    return Committed(what=f"Inode {inode}", until=shown(retention.until_ns))


def refuse_leaving(
    core: Core, reader: Reader, inode: Inode, row: InodeRow, *, place: Inode = NOWHERE, moves: bool = False
) -> None:
    """Raises Retained or Held when no name of an inode may go. See `why_it_stays`."""
    why = why_it_stays(core, reader, inode, row, place=place, moves=moves)
    if why is not None:
        raise why


def why_it_stays(
    core: Core, reader: Reader, inode: Inode, row: InodeRow, *, place: Inode = NOWHERE, moves: bool = False
) -> NotPermitted | None:
    """Why no name of an inode may go, or None.

    *place* is the directory of that name. *moves*: it gets another name, and what is below goes with it; a directory
    that is removed has nothing below.
    """
    if row.repository not in core.guarded:
        return None
    takes_others = row.is_directory and moves and bool(core.holds) and not entries.is_empty(reader, inode)
    find = lambda number: core.find(number, reader)  # noqa: E731 - as in `why_unchanged`
    held = core.holds.on(find, inode, row, place=place, also_new=takes_others)
    if held:
        return _held(inode, held)
    now = core.time.now()
    if row.is_directory:
        until_ns = retentions.below(reader, inode) if moves else 0
        if until_ns > now:
            mode = core.repositories[row.repository].retention.value
            return Retained(what=f"What is below inode {inode}", until=shown(until_ns), mode=mode)
        return None
    retention = retentions.find(reader, inode) if row.is_file else None
    if retention is None or retention.is_over(now):
        return None
    return Retained(what=f"Inode {inode}", until=shown(retention.until_ns), mode=retention.mode.value)


def is_rooted(core: Core, reader: Reader, inode: Inode) -> bool:
    """Whether a rollback must leave an inode where it is, with all that is below: nothing guarded goes out of sight."""
    row = core.find(inode, reader)
    if row is None or row.repository not in core.guarded:
        return False
    if why_it_stays(core, reader, inode, row, moves=True) is not None:
        return True
    return row.is_directory and core.holds.below(lambda number: core.find(number, reader), inode, row.repository)


def keeps_past(core: Core, reader: Reader, found: Ending) -> bool:
    """Whether what was must not be forgotten, because it was something that is held or retained."""
    if found.repository not in core.guarded:
        return False
    retention = retentions.find(reader, keys.ending_of(found.key)[2])
    if retention is not None and not retention.is_over(core.time.now()):
        return True
    if not core.holds:
        return False
    find = holds.find_past(reader)
    for key in found.rows:
        value = reader.get(key)
        if value is not None and core.holds.on_past(find, key, value, found.repository):
            return True
    return False


def _held(inode: Inode, held: list[Hold]) -> Held:
    return Held(what=f"Inode {inode}", holds=", ".join(sorted({hold.name for hold in held})))


def shown(nanoseconds: int) -> str:
    """A moment as retention is told: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // NANOSECONDS))
