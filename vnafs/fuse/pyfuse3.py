"""The portable engine: turns pyfuse3's requests into calls on Filesystem, and results into replies.

It knows no index, no pack and no DICOM, and decides nothing: durability is asked of the tree (`must_sync`, `flush`,
`fsync`) and awaited here. Runs under trio on one thread; whatever may wait long (syncs, recalls) is awaited, local
reads and writes are inline because threads cost more than they do. The only module that imports pyfuse3.

No writeback cache: a write that was answered is in the local file. The kernel caches names and attributes for long
because every change passes through this mount or is followed by a notice.
"""

# ruff: noqa: ARG002, D102 - pyfuse3.Operations names the parameters of every handler and documents it

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from vnafs.domain.errors import NotFound, Refused
from vnafs.domain.ids import Inode
from vnafs.fs.attributes import AttributeChanges, Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.fences import WritersHeld
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.recall import RangeNeeded
from vnafs.fuse.errno import errno_of
from vnafs.fuse.invalidation import Invalidations
from vnafs.fuse.recaller import Recaller
from vnafs.fuse.recalls import Recalls
from vnafs.fuse.serving import MountOptions, allows_other, keep_up, together
from vnafs.fuse.stale import clear_stale
from vnafs.fuse.syncing import Syncing

_LOG = logging.getLogger(__name__)

BLOCK_BYTES = 4096
PREFERRED_BYTES = 1 << 20
"""Of one read or write, as programs that ask st_blksize are told."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def answered(method: Callable[_P, Coroutine[Any, Any, _R]]) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """A request handler whose errors are the kernel's numbers and nothing else."""

    @functools.wraps(method)
    async def handler(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await method(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error)) from None

    return handler


def answered_of_inode(method: Callable[_P, Coroutine[Any, Any, _R]]) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """The same for a request that names no file, only an inode: that there is none any more is ESTALE.

    The kernel looked the name up a moment ago, and something else was renamed over it since. Told ESTALE it looks
    again (path_openat in fs/namei.c), so that a name which is always there is always found.
    """

    @functools.wraps(method)
    async def found(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await method(*args, **kwargs)
        except NotFound:
            raise pyfuse3.FUSEError(errno.ESTALE) from None

    return answered(found)


def answered_to_reader(method: Callable[_P, Coroutine[Any, Any, _R]]) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """The same for read(2), which must not say EAGAIN: programs take that for a pipe that is empty, and go on.

    Python's shutil then makes a short copy and calls it whole. ETIMEDOUT says as much and is always an error; the
    kernel's NFS server makes the same of both.
    """

    @functools.wraps(method)
    async def handler(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await method(*args, **kwargs)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.EAGAIN:
                raise
            raise pyfuse3.FUSEError(errno.ETIMEDOUT) from None

    return handler


def _caller(context: pyfuse3.RequestContext) -> Caller:
    return Caller(context.uid, context.gid, context.pid)


class Pyfuse3Engine(pyfuse3.Operations):
    """Request handlers; see pyfuse3.Operations for what each is asked."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem, recaller: Recaller, syncing: Syncing, options: MountOptions) -> None:
        super().__init__()
        self._fs = filesystem
        self._recalls = Recalls(filesystem, recaller, options)
        self._syncing = syncing
        self._options = options
        self._missing = pyfuse3.EntryAttributes()
        self._missing.st_ino = 0
        self._missing.entry_timeout = options.cache_seconds

    # -- replies --------------------------------------------------------------------------------------------

    def _entry(self, found: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        (
            entry.st_ino,
            entry.st_mode,
            entry.st_nlink,
            entry.st_uid,
            entry.st_gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_blocks,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
            _,
        ) = found
        entry.st_blksize = PREFERRED_BYTES
        entry.entry_timeout = entry.attr_timeout = self._options.cache_seconds
        return entry

    async def _synced(self, inode: int) -> None:
        position = self._fs.must_sync(Inode(inode))
        if position is not None:
            await self._syncing.until(position)

    # -- names ----------------------------------------------------------------------------------------------

    @answered
    async def lookup(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = self._fs.find(Inode(parent), name)
        return self._missing if found is None else self._entry(found)

    @answered_of_inode
    async def getattr(self, inode: int, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._fs.getattr(Inode(inode)))

    @answered_of_inode
    async def setattr(
        self,
        inode: int,
        wanted: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        context: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = AttributeChanges(
            mode=wanted.st_mode if fields.update_mode else None,
            uid=wanted.st_uid if fields.update_uid else None,
            gid=wanted.st_gid if fields.update_gid else None,
            size_bytes=wanted.st_size if fields.update_size else None,
            atime_ns=wanted.st_atime_ns if fields.update_atime else None,
            mtime_ns=wanted.st_mtime_ns if fields.update_mtime else None,
        )
        number, caller = Inode(inode), _caller(context)
        found = await self._recalls.with_bytes(lambda: self._fs.setattr(number, changes, caller), caller)
        settling = self._fs.must_settle if fields.update_size else self._fs.must_settle_times
        commitment = settling(number)
        if commitment is not None:
            await self._syncing.settle(commitment)
        return self._entry(found)

    @answered_of_inode
    async def readlink(self, inode: int, context: pyfuse3.RequestContext) -> bytes:
        return self._fs.readlink(Inode(inode))

    @answered
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = self._fs.mknod(Inode(parent), name, mode, rdev, _caller(context))
        await self._synced(parent)
        return self._entry(made)

    @answered
    async def mkdir(
        self, parent: int, name: bytes, mode: int, context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = self._fs.mkdir(Inode(parent), name, mode, _caller(context))
        await self._synced(parent)
        return self._entry(made)

    @answered
    async def symlink(
        self, parent: int, name: bytes, target: bytes, context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = self._fs.symlink(Inode(parent), name, target, _caller(context))
        await self._synced(parent)
        return self._entry(made)

    @answered
    async def link(
        self, inode: int, parent: int, name: bytes, context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        linked = self._fs.link(Inode(inode), Inode(parent), name)
        await self._synced(parent)
        return self._entry(linked)

    @answered
    async def unlink(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.unlink(Inode(parent), name)
        await self._synced(parent)

    @answered
    async def rmdir(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.rmdir(Inode(parent), name)
        await self._synced(parent)

    @answered
    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        context: pyfuse3.RequestContext,
    ) -> None:
        self._fs.rename(Inode(parent), name, Inode(new_parent), new_name, flags)
        await self._synced(new_parent)

    # -- directories ----------------------------------------------------------------------------------------

    @answered_of_inode
    async def opendir(self, inode: int, context: pyfuse3.RequestContext) -> int:
        self._fs.getattr(Inode(inode))
        return inode  # listings keep no state: the cookie says where to go on

    @answered
    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        reply, entry = pyfuse3.readdir_reply, self._entry
        for cookie, name, found in self._fs.listing(Inode(fh), start):
            if not reply(token, name, entry(found), cookie):
                break

    async def releasedir(self, fh: int) -> None:
        """Nothing is kept."""

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3 calls it so
        commitment = self._fs.fsync_directory(Inode(fh))
        if commitment is not None:
            await self._syncing.settle(commitment)

    # -- bytes ----------------------------------------------------------------------------------------------

    @answered
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        caller = _caller(context)
        create = functools.partial(self._fs.create, Inode(parent), name, mode, flags, caller)
        handle, made = await self._recalls.with_bytes(create, caller)
        self._recalls.admitted(handle, caller)
        try:
            await self._synced(parent)
        except BaseException:
            self._fs.release(handle)
            raise
        return pyfuse3.FileInfo(fh=handle.number, keep_cache=True), self._entry(made)

    @answered_of_inode
    async def open(self, inode: int, flags: int, context: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        caller = _caller(context)
        handle = await self._recalls.with_bytes(lambda: self._fs.open(Inode(inode), flags, caller), caller)
        self._recalls.admitted(handle, caller)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            try:
                await self._synced(inode)
            except BaseException:
                self._fs.release(handle)
                raise
        return pyfuse3.FileInfo(fh=handle.number, keep_cache=True)

    @answered_to_reader
    @answered
    async def read(self, fh: int, offset: int, length: int) -> bytes:
        handle = self._fs.handle(fh)
        try:
            return self._fs.read(handle, offset, length)
        except RangeNeeded:
            return await self._recalls.read(handle, offset, length)

    @answered
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self._fs.handle(fh)
        try:
            return self._fs.write(handle, offset, data)
        except WritersHeld:
            return await self._recalls.let_through(lambda: self._fs.write(handle, offset, data))

    @answered
    async def flush(self, fh: int) -> None:
        commitment = self._fs.flush(self._fs.handle(fh))
        if commitment is not None:
            await self._syncing.settle(commitment)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3 calls it so
        commitment = self._fs.fsync(self._fs.handle(fh))
        if commitment is not None:
            await self._syncing.settle(commitment)

    @answered
    async def release(self, fh: int) -> None:
        self._fs.release(self._fs.handle(fh))

    # -- the rest -------------------------------------------------------------------------------------------

    @answered
    async def statfs(self, context: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = self._fs.statfs()  # pyfuse3 does not say of which inode
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = found.total_bytes // BLOCK_BYTES
        data.f_bfree = data.f_bavail = found.free_bytes // BLOCK_BYTES
        data.f_files = found.files_total
        data.f_ffree = data.f_favail = found.files_free
        data.f_namemax = 255
        return data

    @answered_of_inode
    async def getxattr(self, inode: int, name: bytes, context: pyfuse3.RequestContext) -> bytes:
        return self._fs.getxattr(Inode(inode), name)

    @answered_of_inode
    async def listxattr(self, inode: int, context: pyfuse3.RequestContext) -> Sequence[bytes]:
        return self._fs.listxattr(Inode(inode), trusted=_caller(context).is_root)

    @answered_of_inode
    async def setxattr(self, inode: int, name: bytes, value: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.setxattr(Inode(inode), name, value)  # pyfuse3 itself looks at XATTR_CREATE and XATTR_REPLACE
        await self._synced(inode)

    @answered_of_inode
    async def removexattr(self, inode: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.removexattr(Inode(inode), name)
        await self._synced(inode)


async def serve(
    filesystem: Filesystem,
    mountpoint: str,
    recaller: Recaller,
    *,
    ready: Callable[[], None] = lambda: None,
    options: MountOptions | None = None,
) -> None:
    """Mount, answer until unmounted or cancelled, and leave nothing mounted behind.

    *ready* is called once the mount is there. One mount a process (pyfuse3 keeps its session in globals). Raises
    Refused when mounting fails, StorageFailed when local storage did; the caller closes the tree.
    """
    options = options or MountOptions()
    syncing = Syncing(filesystem)
    engine = Pyfuse3Engine(filesystem, recaller, syncing, options)
    invalidations = Invalidations(pyfuse3.invalidate_inode, pyfuse3.invalidate_entry)
    clear_stale(mountpoint)
    try:
        pyfuse3.init(engine, mountpoint, mount_options(options))
    except RuntimeError as error:
        raise Refused(what=f"Mounting at {mountpoint}", why=f"{error}; see its lines on standard error") from error
    _LOG.info("fuse.mounted")
    filesystem.watch(invalidations)

    async def answer() -> None:
        ready()
        await pyfuse3.main(min_tasks=1, max_tasks=options.requests_max)

    try:
        await together(
            answer,
            syncing.run,
            invalidations.run,
            functools.partial(keep_up, filesystem, syncing, options.reap_seconds),
        )
    finally:
        pyfuse3.close(unmount=True)
        _LOG.info("fuse.unmounted")


def mount_options(options: MountOptions) -> set[str]:
    """As mount.fuse3(8) takes them."""
    chosen = {"default_permissions", "nosuid", "nodev", "fsname=vnafs", "subtype=vnafs"}
    if allows_other(options):
        chosen.add("allow_other")
    return chosen


__all__ = ["MountOptions", "Pyfuse3Engine", "keep_up", "mount_options", "serve", "together"]
