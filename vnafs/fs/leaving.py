"""Leaving: local bytes of a version that is over, sealed and not in packs yet stay until they are packed.

They stay in their place where the file goes on without them: it was emptied, removed or replaced. Where it goes on with
them they are copied before the first write, at once if the file system clones, otherwise up to a size: whoever opens
a file does not wait for gigabytes. What is not copied is kept only if packing had read it already.

A P row says where they are (`vnafs.index.unpacked`), and tiering takes such versions up like any others. They go, as
all local bytes, after the change that gave them up is synced: once they are packed, or not remembered any more, or
found not to be what was sealed. A copy is synced with everything else, seconds later; loss of power before that may
tear it, which is found when it is packed. Runs inside the caller's change. One thread.
"""

from __future__ import annotations

import logging

from vnafs.domain.errors import NoSpace, TooManyOpen
from vnafs.domain.files import FileState, Proposal
from vnafs.domain.ids import Inode, Version
from vnafs.fs.core import Change, Core
from vnafs.index import keys, unpacked
from vnafs.index.inodes import InodeRow
from vnafs.index.unpacked import Unpacked
from vnafs.local.spool import copy_of

_LOG = logging.getLogger(__name__)


def is_wanted(core: Core, inode: Inode, row: InodeRow) -> bool:
    """Whether the local bytes of a version that is about to end are still to be packed, and are what was sealed."""
    if row.state is not FileState.SEALED or row.seal is None or not core.keeps(row.repository):
        return False
    if core.spool.fingerprint(inode, row.version) == row.seal.fingerprint:
        return True
    _log_not_left(inode, row, "its local bytes are not what was sealed")
    return False


def copied(core: Core, inode: Inode, row: InodeRow) -> Version | None:
    """The place of a copy of a version's bytes; None where there can be none. Never inside a change.

    The caller removes it again unless a row names it; a crash leaves that to the next start.
    """
    try:
        if not core.spool.clone(inode, row.version):
            if row.size_bytes > core.settings.left_copy_bytes_max:
                _log_not_left(inode, row, "too large to be copied")
                return None
            core.space.claim(row.size_bytes)
            core.spool.copy(inode, row.version)
    except (NoSpace, TooManyOpen) as refused:
        _log_not_left(inode, row, str(refused))
        return None
    core.faults.reach("tree.left_copied")
    return copy_of(row.version)


def _log_not_left(inode: Inode, row: InodeRow, why: str) -> None:
    _LOG.warning("tree.not_left", extra={"inode": inode, "version": row.version, "why": why})


def leave(change: Change, inode: Inode, row: InodeRow, place: Version) -> None:
    """Note where the bytes of a version that this change ends, and remembers, stay."""
    unpacked.put(change.tx, Unpacked(inode, row.version, row.repository, place))


def let_go(change: Change, inode: Inode, version: Version) -> None:
    """Give up such bytes if there are any."""
    found = unpacked.find(change.tx, inode, version)
    if found is not None:
        unpacked.remove(change.tx, inode, version)
        change.drop(inode, found.place)


def doubt(change: Change, proposal: Proposal) -> None:
    """Tiering has read other bytes than were sealed: give them up if it read those that are there now."""
    found = unpacked.find(change.tx, proposal.inode, proposal.version)
    if found is None or proposal.seal is None:
        return
    if change.core.spool.fingerprint(found.inode, found.place) == proposal.seal.fingerprint:
        _LOG.error("tree.left_bytes_changed", extra={"inode": found.inode, "version": found.version})
        let_go(change, found.inode, found.version)


def may_follow(core: Core, inode: Inode, version: Version) -> bool:
    """Whether a version without a local file has that of the one before: a move to it was missed."""
    before = Version(version - 1)
    with core.engine.read() as reader:
        left = unpacked.find(reader, inode, before)
        stays = left is not None and left.place == before
        if stays or reader.get(keys.dropped(inode, before)) is not None:
            return False
    return core.spool.stat(inode, before) is not None
