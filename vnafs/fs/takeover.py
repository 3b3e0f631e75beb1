"""What one process leaves to the next while a mount lives on: files that are open, and what was asked and told.

A handle keeps its number and what it may do. A file that somebody may write stays OPEN and is not closed in between,
so it is not sealed; one without a name stays until its last close. What cannot be had back as it was is refused, and
then nothing is taken over: whoever mounts begins anew, and clients open their files again. One thread.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from vnafs.domain.errors import Busy
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.domain.retention import RetentionMode
from vnafs.fs.asof import BASE
from vnafs.fs.core import Core
from vnafs.fs.data import Data
from vnafs.fs.handles import OpenFile
from vnafs.fs.recall import RecallNeeded
from vnafs.index import feeds, meta, retentions
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER

_LOG = logging.getLogger(__name__)

EVENTS_TOLD_MAX = 100_000
"""Of the feed: what many seconds have at full speed. All of them become notices, which wait in memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Survivor:
    """A handle that somebody has."""

    number: int
    inode: Inode
    readable: bool
    writable: bool
    privileged: bool
    is_unseen: bool
    """The kernel reads and writes the local file for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenBefore:
    """What was open when the process before this one ended."""

    survivors: Sequence[Survivor] = ()
    next_number: int = 0
    """No handle had this number or a higher one."""

    def inodes(self) -> frozenset[Inode]:
        """What has handles."""
        return frozenset(one.inode for one in self.survivors)

    def written(self) -> frozenset[Inode]:
        """What may be written through one."""
        return frozenset(one.inode for one in self.survivors if one.writable)


NOTHING_OPEN = OpenBefore()


def take_over(core: Core, data: Data, before: OpenBefore) -> None:
    """Open again what was open. Raises Busy, Damaged when that cannot be: then close all, and begin without.

    A handle whose inode is gone was being closed, and is left out, as are those of the past (`vnafs.fs.asof`).
    """
    try:
        _take_over(core, data, before)
    except BaseException:
        for file in core.handles.files.values():
            file.close_descriptors()
        raise
    if before.survivors:
        _LOG.info("tree.taken_over", extra={"handles": len(core.handles), "files": len(core.handles.files)})


def _take_over(core: Core, data: Data, before: OpenBefore) -> None:
    core.handles.skip_to(before.next_number)
    for one in before.survivors:
        row = core.find(one.inode) if one.inode < BASE else None
        if row is None:
            continue
        if not row.is_file:
            raise Busy(what=f"inode {one.inode}", why="it was open and is no file")
        file = core.handles.files.get(one.inode)
        if file is None:
            file = core.handles.files[one.inode] = OpenFile(one.inode, row.mode)
            file.is_fixed = _is_committed(core, one.inode, row)
        handle = core.handles.adopt(
            one.number, file, readable=one.readable, writable=one.writable, privileged=one.privileged
        )
        if one.is_unseen:
            handle.is_unseen = True
            file.unseen_handles += 1
        if one.writable:
            file.writers += 1
            file.unseen_writers += one.is_unseen
            handle.wrote_at = file.written  # what it wrote may not be synced
            _reopen_to_write(core, data, file, row)
            core.watch_size(file, row)
        elif file.descriptor < 0 and row.state is not FileState.STUB:
            try:
                file.reading = data.open_local(one.inode, row, write=False)
            except RecallNeeded:
                if one.is_unseen:
                    raise Busy(what=f"inode {one.inode}", why="its local bytes are gone") from None


def _reopen_to_write(core: Core, data: Data, file: OpenFile, row: InodeRow) -> None:
    if file.writing >= 0:
        return
    if row.state is not FileState.OPEN:
        raise Busy(what=f"inode {file.inode}", why="it was open for write and is sealed")
    file.close_descriptors()
    file.writing = data.open_local(file.inode, row, write=True)
    file.times_set += 1  # perhaps, and not synced
    due = DUE_NEVER if row.nlink else NOT_QUEUED
    if row.due != due:
        with core.change() as change:
            change.set(file.inode, change.row(file.inode)._replace(due=due))


def _is_committed(core: Core, inode: Inode, row: InodeRow) -> bool:
    if row.repository not in core.guarded or core.repositories[row.repository].retention is RetentionMode.OFF:
        return False
    with core.engine.read() as reader:
        return retentions.find(reader, inode) is not None


class Succession:
    """What a process notes for the one that may take over, and what that reads."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def archive(self) -> bytes:
        """The archive's id; b"" where there is none."""
        with self._core.engine.read() as reader:
            return meta.get_bytes(reader, meta.ARCHIVE_ID) or b""

    def asks(self, request: bytes) -> None:
        """Changes from now on are made for this request, and say so in the index; b"" for nobody's."""
        self._core.asked = request

    def last_asked(self) -> bytes:
        """For which request the last change was made that was made for one."""
        with self._core.engine.read() as reader:
            return meta.get_bytes(reader, meta.ASKED) or b""

    def events_end(self) -> int:
        """The number that the next event of the feed will get."""
        with self._core.engine.read() as reader:
            return feeds.end(reader)

    def tell_since(self, event: int) -> int:
        """Tell the watcher of what changed from an event of the feed on, as if nobody had asked for it; how many.

        Raises Busy when that is too much to be told, or not in the feed: not any more, or it never was.
        """
        with self._core.engine.read() as reader:
            begin, end = feeds.begin(reader), feeds.end(reader)
            if not begin <= event <= end or end - event > EVENTS_TOLD_MAX:
                why = f"events {event} to {end} are too many, forgotten, or not of this index"
                raise Busy(what="What the kernel was told", why=why)
            events = feeds.read_from(reader, event, EVENTS_TOLD_MAX) if event < end else []
        watcher = self._core.watcher
        for _, one in events:
            if one.kind in (EventKind.STATE, EventKind.VERSION):
                watcher.bytes_changed(one.inode)
            elif one.inode:
                watcher.attributes_changed(one.inode)
            if one.parent:
                watcher.attributes_changed(one.parent)
                watcher.entry_doubted(one.parent, one.name)
        return len(events)
