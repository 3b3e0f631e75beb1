"""Bytes: open, read, write, truncate, close, and what follows from them for the row.

Reads and writes of local bytes happen inline: the local disk is the only thing they may wait for. Opening a file for
write logs it as OPEN before the answer, so that a crash at any later instruction is repaired from the local file.
A file that was not OPEN begins a new version then: the row first, and synced, the local file's name second; the
next start repairs a missed second step. Where the version that is over is still to be packed, its bytes stay, or a copy
of them does (`vnafs.fs.leaving`). One thread.
"""

from __future__ import annotations

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
    Suspect,
    VnaError,
)
from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, Version
from vnafs.fs import guard, history, leaving
from vnafs.fs.asof import BASE, refused
from vnafs.fs.attributes import SET_ID, Attributes, without_set_id, written_at
from vnafs.fs.caller import Caller
from vnafs.fs.core import Core
from vnafs.fs.handles import Handle, OpenFile
from vnafs.fs.names import Names
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fs.removal import end, log_missing, make_stub
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER
from vnafs.local.spool import local_error
from vnafs.local.syncing import check_kept

_LOG = logging.getLogger(__name__)

ENDINGS_PER_TURN_MAX = 1024
REFUSALS_PER_TURN_MAX = 16
"""Once the disk refused so often, it is asked again in the next turn."""
_PERMISSIONS = 0o7777


class Data:
    """The file side of the tree."""

    def __init__(self, core: Core, names: Names) -> None:
        self._core = core
        self._names = names

    # -- open and close -------------------------------------------------------------------------------------

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller, umask: int = 0
    ) -> tuple[Handle, Attributes]:
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
            inode, row, descriptor = self._names.make(parent, name, mode, caller, due=DUE_NEVER, umask=umask)
        except AlreadyExists:
            if flags & os.O_EXCL:
                raise
            inode = self._names.lookup(parent, name).inode
            return self.open(inode, flags, caller), core.attributes(inode, core.row(inode))
        file = OpenFile(inode, mode)
        file.writing = descriptor
        file.directory_settled = core.spool.names_follow_bytes
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
            self._refuse_at_limit(inode, row, fresh=fresh)
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
            self.wrote(handle)
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

    def _refuse_at_limit(self, inode: Inode, row: InodeRow, *, fresh: bool) -> None:
        """Whoever is about to write past us, as others do already, is refused here or nowhere. Raises OverQuota."""
        usage, file = self._core.usage, self._core.handles.files.get(inode)
        if row.repository not in usage.limited or file is None or not file.unseen_handles:
            return
        size_bytes = os.fstat(file.descriptor).st_size
        usage.note(row.repository, file, row.size_bytes, size_bytes)
        if not usage.has_room(row.repository, 1 - size_bytes if fresh else 1):
            usage.claim_bytes(row.repository, 1)

    def _refuse_growth(self, file: OpenFile, end: int) -> None:
        """Raises OverQuota when a file may not become so long. Ask only while some repository is limited."""
        usage, row = self._core.usage, self._core.row(file.inode)
        if row.repository in usage.limited:
            usage.claim_bytes(row.repository, end - os.fstat(file.writing).st_size)

    def release(self, handle: Handle) -> None:
        """The last duplicate of a handle is closed. Raises BadHandle the second time.

        What the disk refuses to log now is logged by `end_again`; until then stat goes on showing the local file.
        """
        file = handle.file
        self._core.handles.drop(handle)
        file.unseen_handles -= handle.is_unseen
        if handle.writable:
            file.writers -= 1
            file.unseen_writers -= handle.is_unseen
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
        core.usage.settled(inode)
        del core.handles.files[inode]

    def _begin_reading(self, file: OpenFile, row: InodeRow) -> None:
        if row.state is not FileState.STUB:
            try:
                file.reading = self.open_local(file.inode, row, write=False)
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
                self._trust(file.inode)
            file.writers += 1
            return
        core = self._core
        inode = file.inode
        is_left = leaving.is_wanted(core, inode, row)
        goes_on_anew = is_left and fresh and not file.unseen_handles  # whom the kernel serves stays with a local file
        descriptor = self._open_to_write(inode, row, fresh=fresh, goes_on_anew=goes_on_anew)
        row = core.row(inode)  # opening may have found that it is a stub
        is_new = row.state is FileState.STUB or goes_on_anew
        copy: Version | None = None
        try:
            if is_left and not goes_on_anew:
                copy = leaving.copied(core, inode, row)
            if not fresh:
                file.times_set += self._restore_mtime(descriptor, row)
            self._mark_open(inode, row, row.version if goes_on_anew else copy)
        except BaseException:
            os.close(descriptor)
            if core.row(inode).version == row.version:
                if is_new:
                    core.spool.remove(inode, Version(row.version + 1))
                elif copy is not None:
                    core.spool.remove(inode, copy)
            raise
        if file.reading >= 0:
            os.close(file.reading)
            file.reading = -1
        file.writing = descriptor
        file.writers += 1
        try:
            self._begin_version(file, row, is_new=is_new)
            if fresh and not is_new:
                self._cut(descriptor, 0)
                self._trust(inode)
        except VnaError:
            file.writers -= 1
            core.handles.files[inode] = file
            self._follow_handles(file)
            raise

    def _open_to_write(self, inode: Inode, row: InodeRow, *, fresh: bool, goes_on_anew: bool) -> int:
        if goes_on_anew:
            return self._core.spool.create(inode, Version(row.version + 1))
        if row.state is not FileState.STUB:
            try:
                return self.open_local(inode, row, write=True)
            except RecallNeeded:
                if not fresh:
                    raise
        if not fresh:
            raise RecallNeeded(inode, row.version)
        return self._core.spool.create(inode, Version(row.version + 1))

    def _mark_open(self, inode: Inode, row: InodeRow, place: Version | None) -> None:
        """Log that the file is open for write, in a new version unless it is one that was never sealed.

        *place* is where bytes of the version that is over stay, if they do.
        """
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
        if row.state is FileState.STUB or place == row.version:
            new = new._replace(size_bytes=0, blocks=0)
        with core.change() as change:
            change.row(inode)
            is_noted = history.keep_version(change, inode, row, core.clock.now(), is_last=False)
            if place is not None:
                leaving.leave(change, inode, row, place)
            change.set(inode, new)
            change.event(EventKind.VERSION, inode, version, detail=0 if is_noted else seal_detail(row.seal))

    def _begin_version(self, file: OpenFile, row: InodeRow, *, is_new: bool) -> None:
        """The local file follows into the version that `_mark_open` began, unless it began none, or with a new file."""
        if row.state is FileState.OPEN:
            return
        if not is_new:
            # Loss of power may keep what happens to the local file and lose the row: then the version that is over
            # would be looked for where its bytes are not, and they would not be its own.
            self._core.sync()
            self._core.spool.move(file.inode, row.version, Version(row.version + 1))
        file.directory_settled = is_new and self._core.spool.names_follow_bytes  # its name there is new
        self._core.faults.reach("tree.version_begun")

    def _trust(self, inode: Inode) -> None:
        """Bytes that the disk did not keep are no more."""
        if self._core.row(inode).is_suspect:
            with self._core.change() as change:
                change.set(inode, change.row(inode)._replace(is_suspect=False))

    def open_local(self, inode: Inode, row: InodeRow, *, write: bool) -> int:
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
            if row.state is not FileState.OPEN or not leaving.may_follow(core, inode, row.version):
                raise
            spool.move(inode, Version(row.version - 1), row.version)
            return spool.open(inode, row.version, write=write)

    def _restore_mtime(self, descriptor: int, row: InodeRow) -> bool:
        """Until now the row was the truth for the time of change; from now on the local file is. Whether it was not."""
        differs = os.fstat(descriptor).st_mtime_ns != row.mtime_ns
        if differs:
            os.utime(descriptor, ns=(row.atime_ns, row.mtime_ns))
        return differs

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
                if not row.is_suspect and not self._is_kept(file):
                    row = row._replace(is_suspect=True)
                change.set(inode, self.as_local(row, local, due=core.due_when_closed(row)))
                if not local.st_size:  # whoever was told that it is open hears that it is empty, though nothing changed
                    change.event(EventKind.ATTRIBUTES, inode, row.version)
        except BaseException:
            if reading >= 0:
                os.close(reading)
            raise
        core.usage.settled(file.inode)
        os.close(file.writing)
        file.writing, file.reading = -1, reading

    @staticmethod
    def _is_kept(file: OpenFile) -> bool:
        """Whether no write-back failed while it was open: whom the kernel serves may have heard of it, and we not."""
        try:
            check_kept(file.writing, f"inode {file.inode}")
        except Suspect as problem:
            _LOG.critical("tree.suspect", extra={"inode": file.inode, "why": str(problem)})
            return False
        return True

    @staticmethod
    def as_local(row: InodeRow, local: os.stat_result, *, due: Instant) -> InodeRow:
        """The row after writing, taken over from the local file."""
        return row._replace(
            size_bytes=local.st_size,
            blocks=local.st_blocks,
            mtime_ns=local.st_mtime_ns,
            ctime_ns=max(row.ctime_ns, written_at(local)),
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
                    descriptor = file.reading = self.open_local(file.inode, row, write=False)
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

    def write(self, handle: Handle, offset: int, data: bytes | memoryview) -> int:
        """Write all of *data* at *offset*, or nothing. Raises BadHandle, NoSpace, OverQuota, FileTooBig, WritersHeld.

        The caller knows where O_APPEND ends (the kernel does); see `append` for one that does not.
        """
        file, length = handle.file, len(data)
        self.check_write(handle, offset + length, length)
        try:
            done = os.pwrite(file.writing, data, offset)
            while done < length:
                done += os.pwrite(file.writing, data[done:], offset + done)
        except OSError as error:
            raise local_error(error, "writing local bytes") from error
        self.wrote(handle)
        return length

    def check_write(self, handle: Handle, end: int, wanted_bytes: int, *, keeps_size: bool = False) -> None:
        """Whether *handle* may change bytes up to *end*, of which so many may be new. Raises as `write`."""
        core, file = self._core, handle.file
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
        if end > core.settings.file_bytes_max:
            raise FileTooBig(limit_bytes=core.settings.file_bytes_max)
        if core.fences.held:
            core.fences.check(file.inode)
        if core.usage.limited and not keeps_size:
            self._refuse_growth(file, end)
        core.space.claim(wanted_bytes)

    def append(self, handle: Handle, data: bytes) -> int:
        """Write all of *data* at the end of the file; returns the offset it has there."""
        if not handle.writable:
            raise BadHandle
        offset = os.fstat(handle.file.writing).st_size
        self.write(handle, offset, data)
        return offset

    def wrote(self, handle: Handle) -> None:
        """Bytes changed through *handle*."""
        file = handle.file
        if file.privileged_bits and not handle.privileged:
            self.clear_set_id(file)
        file.written += 1
        handle.wrote_at = file.written
        self.note_size(file)

    def note_size(self, file: OpenFile) -> None:
        """How long a file that is written has become, where that is limited."""
        core = self._core
        if core.usage.limited:
            row = core.row(file.inode)
            core.usage.note(row.repository, file, row.size_bytes)

    def clear_set_id(self, file: OpenFile) -> None:
        """Somebody who may not keep them writes to a file with bits of privilege."""
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

    # -- size ---------------------------------------------------------------------------------------------------

    def truncate(self, inode: Inode, size: int, caller: Caller) -> bool:
        """Cut or lengthen a file; False when nobody had to do anything, as that is its size.

        Raises NotFound, RecallNeeded, FileTooBig, OverQuota, IsADirectory, InvalidArgument, WritersHeld.
        """
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
        keeps_mode = caller.is_root or not row.mode & SET_ID
        if size == row.size_bytes and keeps_mode and (file is None or file.writing < 0):
            return False  # no need of a new version
        core.fences.check(inode)
        if core.usage.limited:
            is_written = file is not None and file.writing >= 0
            now_bytes = os.fstat(file.writing).st_size if file is not None and is_written else row.size_bytes
            core.usage.claim_bytes(row.repository, size - now_bytes)
        if file is None:
            file = OpenFile(inode, row.mode)
        self._begin_writing(file, row, fresh=size == 0)
        core.handles.files[inode] = file
        try:
            if size:
                self._cut(file.writing, size)
            file.written += 1
            if file.privileged_bits and not caller.is_root:
                self.clear_set_id(file)
        finally:
            file.writers -= 1
            self._follow_handles(file)
        return True
