"""Bytes: open, read, write, truncate, close, and the attributes that follow from them.

Reads and writes of local bytes happen inline: the local disk is the only thing they may wait for. Opening a file for
write logs it as OPEN before the answer, so that a crash at any later instruction is repaired from the local file.
A file that was not OPEN begins a new version then: the row first, the local file's name second; the next start
repairs a missed second step. One thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat

from vnafs.domain.clock import Instant
from vnafs.domain.errors import (
    AlreadyExists,
    BadHandle,
    Damaged,
    FileTooBig,
    InvalidArgument,
    IsADirectory,
    NotPermitted,
    VnaError,
)
from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, Version
from vnafs.fs import guard, history, retention
from vnafs.fs.asof import BASE, refused
from vnafs.fs.attributes import AttributeChanges, Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.commitment import Commitment
from vnafs.fs.core import Core
from vnafs.fs.handles import Handle, OpenFile
from vnafs.fs.names import Names
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fs.removal import end, log_missing, make_stub
from vnafs.index import xattrs
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER
from vnafs.local.spool import local_error

_LOG = logging.getLogger(__name__)

ENDINGS_PER_TURN_MAX = 1024
REFUSALS_PER_TURN_MAX = 16
"""Once the disk refused so often, it is asked again in the next turn."""
_PERMISSIONS = 0o7777
_SET_ID = stat.S_ISUID | stat.S_ISGID
CAPABILITY = b"security.capability"


def without_set_id(mode: int) -> int:
    """A file's mode after somebody wrote to it or changed its owner (chown(2), write(2))."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


class Data:
    """The file side of the tree."""

    def __init__(self, core: Core, names: Names) -> None:
        self._core = core
        self._names = names

    # -- open and close -------------------------------------------------------------------------------------

    def create(self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Handle, Attributes]:
        """Make a file and open it; without O_EXCL one that exists is opened.

        Raises as mknod and open.
        """
        core = self._core
        core.handles.check_room()
        if core.superseded is not None:
            raise core.superseded
        if parent >= BASE:
            raise refused()
        if core.frozen:
            core.refuse_frozen(parent)
        mode = stat.S_IFREG | mode & _PERMISSIONS
        try:
            inode, row, descriptor = self._names.make(parent, name, mode, caller, due=DUE_NEVER)
        except AlreadyExists:
            if flags & os.O_EXCL:
                raise
            inode = self._names.lookup(parent, name).inode
            return self.open(inode, flags, caller), core.attributes(inode, core.row(inode))
        file = OpenFile(inode, mode)
        file.writing = descriptor
        core.handles.files[inode] = file
        access = flags & os.O_ACCMODE
        writable = access != os.O_RDONLY
        handle = core.handles.add(file, readable=access != os.O_WRONLY, writable=writable, privileged=caller.is_root)
        if writable:
            file.writers = 1
        else:
            self._follow_handles(file)
        return handle, core.attributes(inode, row)

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        """Open a file.

        Raises RecallNeeded for a stub whose bytes are needed here first: all but a truncating open, and a
        read-only open of a large one, whose reads may raise RangeNeeded instead. Raises Damaged when local bytes
        without a verified copy are missing, IsADirectory, InvalidArgument for anything without bytes, TooManyOpen;
        WritersHeld for a truncating one while the file is being copied.
        """
        core = self._core
        core.handles.check_room()
        row = core.row(inode)
        if not row.is_file:
            if row.is_directory:
                raise IsADirectory(what=f"inode {inode}")
            raise InvalidArgument(why=f"inode {inode} has no bytes")
        access = flags & os.O_ACCMODE
        writable = access != os.O_RDONLY
        fresh = bool(flags & os.O_TRUNC)
        if writable or fresh:
            self._check_writable(inode, row)
        if fresh:
            core.fences.check(inode)
        file = core.handles.files.get(inode)
        is_new = file is None
        if file is None:
            file = OpenFile(inode, row.mode)
        if writable or fresh:
            self._begin_writing(file, row, fresh=fresh)
        elif file.descriptor < 0:
            self._begin_reading(file, row)
        if is_new:
            core.handles.files[inode] = file
        handle = core.handles.add(file, readable=access != os.O_WRONLY, writable=writable, privileged=caller.is_root)
        if fresh:
            self._wrote(handle)
            if not writable:
                file.writers -= 1
                self._follow_handles(file)
        return handle

    def _check_writable(self, inode: Inode, row: InodeRow) -> None:
        core = self._core
        if core.superseded is not None:
            raise core.superseded
        if core.frozen:
            core.refuse_frozen(inode)
        if row.repository in core.guarded:
            with core.engine.read() as reader:
                guard.refuse_change(core, inode, row, reader)

    def release(self, handle: Handle) -> None:
        """The last duplicate of a handle is closed. Raises BadHandle the second time.

        What the disk refuses to log now is logged by `end_again`; until then stat goes on showing the local file.
        """
        file = handle.file
        self._core.handles.drop(handle)
        if handle.writable:
            file.writers -= 1
        self._follow_handles(file)

    def end_again(self) -> None:
        """Log what the disk refused when files were closed, as far as it takes it now."""
        core = self._core
        if core.failure is not None:
            return
        refused = 0
        for file in list(itertools.islice(core.handles.ending.values(), ENDINGS_PER_TURN_MAX)):
            self._follow_handles(file)
            refused += file.inode in core.handles.ending
            if refused >= REFUSALS_PER_TURN_MAX:
                return

    def _follow_handles(self, file: OpenFile) -> None:
        """Row and descriptors follow the handles that are left; nothing is closed before the row is logged.

        May be repeated. An error is not the caller's, whose bytes are all in the local file: the file waits in
        `ending` for another turn.
        """
        core = self._core
        inode, ending = file.inode, core.handles.ending
        try:
            if file.handles == 0:
                self._end_open(file)
            elif file.writers == 0 and file.writing >= 0:
                self._end_writing(file, stays_open=True)
        except VnaError as error:
            if ending.pop(inode, None) is None and core.failure is None:
                _LOG.warning("tree.ending_postponed", extra={"inode": inode, "why": str(error)})
            ending[inode] = file  # behind those that have not been tried in this turn
        else:
            if ending:
                ending.pop(inode, None)

    def _end_open(self, file: OpenFile) -> None:
        """Nobody has it open any more."""
        core = self._core
        inode = file.inode
        row = core.find(inode)
        if row is not None and row.nlink == 0:
            with core.change() as change:
                end(change, inode, change.row(inode), core.clock.now())
        elif file.writing >= 0:
            self._end_writing(file, stays_open=False)
        file.close_descriptors()
        del core.handles.files[inode]

    def _begin_reading(self, file: OpenFile, row: InodeRow) -> None:
        if row.state is not FileState.STUB:
            try:
                file.reading = self._open_local(file.inode, row, write=False)
            except RecallNeeded:
                row = self._core.row(file.inode)  # a stub now
            else:
                return
        if row.size_bytes <= self._core.settings.recall_whole_bytes_max:
            raise RecallNeeded(file.inode, row.version)

    def _begin_writing(self, file: OpenFile, row: InodeRow, *, fresh: bool) -> None:
        """One more writer; the first one makes the file OPEN, in a new version unless it was."""
        if file.writing >= 0:
            if fresh:
                self._cut(file.writing, 0)
            file.writers += 1
            return
        core = self._core
        inode = file.inode
        descriptor = self._open_to_write(inode, row, fresh=fresh)
        row = core.row(inode)  # opening may have found that it is a stub
        is_stub = row.state is FileState.STUB
        try:
            if not fresh:
                self._restore_mtime(descriptor, row)
            self._mark_open(inode, row)
        except BaseException:
            os.close(descriptor)
            if is_stub and core.row(inode).version == row.version:
                core.spool.remove(inode, Version(row.version + 1))
            raise
        if file.reading >= 0:
            os.close(file.reading)
            file.reading = -1
        file.writing = descriptor
        file.writers += 1
        try:
            self._begin_version(file, row)
            if fresh and not is_stub:
                self._cut(descriptor, 0)
        except VnaError:
            file.writers -= 1
            core.handles.files[inode] = file
            self._follow_handles(file)
            raise

    def _open_to_write(self, inode: Inode, row: InodeRow, *, fresh: bool) -> int:
        if row.state is not FileState.STUB:
            try:
                return self._open_local(inode, row, write=True)
            except RecallNeeded:
                if not fresh:
                    raise
        if not fresh:
            raise RecallNeeded(inode, row.version)
        return self._core.spool.create(inode, Version(row.version + 1))

    def _mark_open(self, inode: Inode, row: InodeRow) -> None:
        """Log that the file is open for write, in a new version unless it is one that was never sealed."""
        core = self._core
        due = DUE_NEVER if row.nlink else NOT_QUEUED
        if row.state is FileState.OPEN:
            if row.due != due:
                with core.change() as change:
                    change.set(inode, change.row(inode)._replace(due=due))
                    if not row.size_bytes:  # whoever was told that it is empty hears that this may change
                        change.event(EventKind.STATE, inode, row.version, detail=FileState.OPEN)
            return
        version = Version(row.version + 1)
        before = row.before if row.seal is None else row.seal.sha256
        new = row._replace(version=version, state=FileState.OPEN, due=due, seal=None, before=before)
        if row.state is FileState.STUB:
            new = new._replace(size_bytes=0, blocks=0)
        with core.change() as change:
            change.row(inode)
            is_noted = history.keep_version(change, inode, row, core.clock.now(), is_last=False)
            change.set(inode, new)
            change.event(EventKind.VERSION, inode, version, detail=0 if is_noted else seal_detail(row.seal))

    def _begin_version(self, file: OpenFile, row: InodeRow) -> None:
        """The local file follows into the version that `_mark_open` began, if it began one."""
        if row.state is FileState.OPEN:
            return
        if row.state is not FileState.STUB:
            self._core.spool.move(file.inode, row.version, Version(row.version + 1))
        file.directory_settled = False  # its name there is new
        self._core.faults.reach("tree.version_begun")

    def _open_local(self, inode: Inode, row: InodeRow, *, write: bool) -> int:
        """A descriptor of local bytes. Never inside a change.

        Raises Damaged when they are missing; RecallNeeded when verified copies have them, and the file is a stub now.
        """
        core = self._core
        spool = core.spool
        try:
            return spool.open(inode, row.version, write=write)
        except Damaged:
            if row.state is FileState.REPLICATED:
                log_missing(inode, row)
                with core.change() as change:
                    make_stub(change, inode, change.row(inode))
                core.watcher.attributes_changed(inode)
                raise RecallNeeded(inode, row.version) from None
            # loss of power can undo the rename of a version that was begun and never written to
            if row.state is not FileState.OPEN or spool.stat(inode, Version(row.version - 1)) is None:
                raise
            spool.move(inode, Version(row.version - 1), row.version)
            return spool.open(inode, row.version, write=write)

    def _restore_mtime(self, descriptor: int, row: InodeRow) -> None:
        """Until now the row was the truth for the time of change; from now on the local file is."""
        if os.fstat(descriptor).st_mtime_ns != row.mtime_ns:
            os.utime(descriptor, ns=(row.atime_ns, row.mtime_ns))

    def _end_writing(self, file: OpenFile, *, stays_open: bool) -> None:
        """The last writer left: the row becomes the truth and the file may be sealed once it is quiet.

        When it raises, the local file is still the truth and open.
        """
        core = self._core
        inode = file.inode
        local = os.fstat(file.writing)
        reading = core.spool.open(inode, core.row(inode).version, write=False) if stays_open else -1
        try:
            with core.change() as change:
                row = change.row(inode)
                change.set(inode, self.as_local(row, local, due=core.quiet_until() if row.nlink else NOT_QUEUED))
                if not local.st_size:  # whoever was told that it is open hears that it is empty, though nothing changed
                    change.event(EventKind.ATTRIBUTES, inode, row.version)
        except BaseException:
            if reading >= 0:
                os.close(reading)
            raise
        os.close(file.writing)
        file.writing, file.reading = -1, reading

    @staticmethod
    def as_local(row: InodeRow, local: os.stat_result, *, due: Instant) -> InodeRow:
        """The row after writing, taken over from the local file."""
        return row._replace(
            size_bytes=local.st_size,
            blocks=local.st_blocks,
            mtime_ns=local.st_mtime_ns,
            ctime_ns=max(row.ctime_ns, local.st_mtime_ns),
            due=due,
        )

    # -- read and write -------------------------------------------------------------------------------------

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """At most *length* bytes from *offset*; fewer only at the end of the file. Raises BadHandle, RangeNeeded."""
        file = handle.file
        descriptor = file.writing if file.writing >= 0 else file.reading
        if not handle.readable:
            raise BadHandle
        if descriptor < 0:
            row = self._core.row(file.inode)
            if row.state is not FileState.STUB:
                try:
                    descriptor = file.reading = self._open_local(file.inode, row, write=False)
                except RecallNeeded:
                    row = self._core.row(file.inode)  # a stub now
            if row.state is FileState.STUB:
                length = min(length, row.size_bytes - offset)
                if length <= 0:
                    return b""
                raise RangeNeeded(file.inode, row.version, offset, length)
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            raise local_error(error, "reading local bytes") from error

    def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write all of *data* at *offset*. Raises BadHandle, NoSpace, FileTooBig, WritersHeld.

        The caller knows where O_APPEND ends (the kernel does); see `append` for one that does not.
        """
        core = self._core
        file = handle.file
        length = len(data)
        if not handle.writable:
            raise BadHandle
        if core.failure is not None:
            raise core.failure
        if core.superseded is not None:
            raise core.superseded
        if core.frozen:
            core.refuse_frozen(file.inode)
        if file.is_fixed:
            raise NotPermitted(what="Writing", why="the file was committed while it was open")
        if offset + length > core.settings.file_bytes_max:
            raise FileTooBig(limit_bytes=core.settings.file_bytes_max)
        if core.fences.held:
            core.fences.check(file.inode)
        core.space.claim(length)
        try:
            done = os.pwrite(file.writing, data, offset)
            while done < length:
                done += os.pwrite(file.writing, data[done:], offset + done)
        except OSError as error:
            raise local_error(error, "writing local bytes") from error
        if file.privileged_bits and not handle.privileged:
            self._clear_set_id(file)
        file.written += 1
        handle.wrote_at = file.written
        return length

    def append(self, handle: Handle, data: bytes) -> int:
        """Write all of *data* at the end of the file; returns the offset it has there."""
        if not handle.writable:
            raise BadHandle
        offset = os.fstat(handle.file.writing).st_size
        self.write(handle, offset, data)
        return offset

    def _wrote(self, handle: Handle) -> None:
        handle.file.written += 1
        handle.wrote_at = handle.file.written

    def _clear_set_id(self, file: OpenFile) -> None:
        file.privileged_bits = False
        with self._core.change() as change:
            row = change.row(file.inode)
            change.set(file.inode, row._replace(mode=without_set_id(row.mode)))
            change.event(EventKind.ATTRIBUTES, file.inode, row.version)

    def _cut(self, descriptor: int, size: int) -> None:
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            raise local_error(error, "truncating a local file") from error

    # -- attributes -----------------------------------------------------------------------------------------

    def setattr(self, inode: Inode, changes: AttributeChanges, caller: Caller) -> Attributes:
        """chmod, chown, truncate and utimes in one.

        Raises NotFound, RecallNeeded, FileTooBig, IsADirectory, and WritersHeld when a size is set.

        Cutting a stub to nothing recalls nothing. A change of owner clears set-user-ID and file capabilities, as
        Linux does; truncation by an ordinary user clears set-user-ID.
        """
        core = self._core
        before = core.row(inode) if core.guarded else None
        if before is not None and before.repository not in core.guarded:
            before = None
        if before is not None:
            if changes.atime_ns is not None and retention.extends(core, inode, before, changes):
                return core.attributes(inode, retention.extend(core, inode, changes.atime_ns))
            guard.refuse_setattr(core, inode, before, changes)
        if changes.size_bytes is not None:
            self._truncate(inode, changes.size_bytes, caller)
        wanted = (changes.mode, changes.uid, changes.gid, changes.atime_ns, changes.mtime_ns)
        if wanted == _NOTHING:
            return core.attributes(inode, core.row(inode))
        file = core.handles.files.get(inode)
        if changes.mtime_ns is not None and file is not None and file.writing >= 0:
            os.utime(file.writing, ns=(core.row(inode).atime_ns, changes.mtime_ns))
        with core.change() as change:
            row = change.row(inode)
            mode = row.mode
            if changes.mode is not None:
                mode = stat.S_IFMT(mode) | changes.mode & _PERMISSIONS
            owner_changes = changes.uid is not None or changes.gid is not None
            has_xattrs = row.has_xattrs
            if owner_changes and not row.is_directory:
                mode = without_set_id(mode)
                if has_xattrs:
                    xattrs.delete(change.tx, inode, CAPABILITY)
            row = row._replace(
                mode=mode,
                uid=row.uid if changes.uid is None else changes.uid,
                gid=row.gid if changes.gid is None else changes.gid,
                atime_ns=row.atime_ns if changes.atime_ns is None else changes.atime_ns,
                mtime_ns=row.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
                ctime_ns=core.clock.now(),
            )
            change.set(inode, row)
            change.event(EventKind.ATTRIBUTES, inode, row.version)
            is_committed = before is not None and retention.commit_by_mode(change, inode, before, row)
        if is_committed:
            retention.fix(core, inode)
        if file is not None:
            file.privileged_bits = bool(row.mode & _SET_ID)
        return core.attributes(inode, row)

    def _truncate(self, inode: Inode, size: int, caller: Caller) -> None:
        core = self._core
        row = core.row(inode)
        if not row.is_file:
            if row.is_directory:
                raise IsADirectory(what=f"inode {inode}")
            raise InvalidArgument(why=f"inode {inode} has no bytes")
        if size < 0:
            raise InvalidArgument(why="a size is not negative")
        if size > core.settings.file_bytes_max:
            raise FileTooBig(limit_bytes=core.settings.file_bytes_max)
        file = core.handles.files.get(inode)
        keeps_mode = caller.is_root or not row.mode & _SET_ID
        if size == row.size_bytes and keeps_mode and (file is None or file.writing < 0):
            return  # no need of a new version
        core.fences.check(inode)
        if file is None:
            file = OpenFile(inode, row.mode)
        self._begin_writing(file, row, fresh=size == 0)
        core.handles.files[inode] = file
        try:
            if size:
                self._cut(file.writing, size)
            file.written += 1
            if file.privileged_bits and not caller.is_root:
                self._clear_set_id(file)
        finally:
            file.writers -= 1
            self._follow_handles(file)

    # -- durability -----------------------------------------------------------------------------------------

    def flush(self, handle: Handle) -> Commitment | None:
        """What close(2) of one duplicate must wait for; None when there is nothing, so at most the first waits.

        At `written` nothing; at `durable` the bytes that this handle wrote, and everything that was logged.
        """
        file = handle.file
        if handle.wrote_at <= file.settled:
            return None
        row = self._core.find(file.inode)
        if row is None or row.nlink == 0 or not self._core.is_durable(row.repository):
            return None
        return self._commitment(file)

    def fsync(self, handle: Handle) -> Commitment | None:
        """What fsync(2) and fdatasync(2) must wait for, at any level: bytes, names and attributes of the file."""
        file = handle.file
        core = self._core
        if file.descriptor >= 0 and (file.written > file.settled or not file.directory_settled):
            return self._commitment(file)
        if core.engine.synced >= core.engine.position:
            return None
        return Commitment(core.engine.position)

    def _commitment(self, file: OpenFile) -> Commitment:
        core = self._core
        directory = "" if file.directory_settled else core.spool.local_directory(file.inode)
        return Commitment(core.engine.position, os.dup(file.descriptor), directory, file, file.written)

    def commitment_of(self, inode: Inode, row: InodeRow) -> Commitment | None:
        """The local bytes and the row of one file, open or not."""
        core = self._core
        file = core.handles.files.get(inode)
        if file is not None and file.descriptor >= 0:
            return self._commitment(file)
        if row.is_file and row.state is not FileState.STUB:
            with contextlib.suppress(RecallNeeded):  # verified copies have its bytes
                descriptor = self._open_local(inode, row, write=False)
                return Commitment(core.engine.position, descriptor, core.spool.local_directory(inode))
        position = core.engine.position
        return Commitment(position) if core.engine.synced < position else None

    def settled(self, commitment: Commitment) -> None:
        """Everything a commitment names survives loss of power now."""
        file = commitment.file
        if file is not None:
            file.settled = max(file.settled, commitment.written)
            if commitment.directory:
                file.directory_settled = True


_NOTHING = (None, None, None, None, None)
