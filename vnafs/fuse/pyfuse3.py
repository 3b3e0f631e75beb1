"""The portable engine: turns pyfuse3's requests into calls on Filesystem, and results into replies.

It knows no index, no pack and no DICOM, and decides nothing: durability is asked of the tree (`must_sync`, `flush`,
`fsync`) and awaited here. Runs under trio on one thread; whatever may wait long (syncs, recalls) is awaited, local
reads and writes are inline because threads cost more than they do. The only module that imports pyfuse3.

No writeback cache: a write that was answered is in the local file. The kernel caches names and attributes for long
because every change passes through this mount or is followed by a notice.
"""

# ruff: noqa: ARG002, D102 - pyfuse3.Operations names the parameters of every handler and documents it

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from vnafs.domain.errors import NoSpace, NotFound, RecallFailed, RecallRefused, Refused, TooManyOpen, VnaError
from vnafs.domain.ids import Inode
from vnafs.fs.attributes import AttributeChanges, Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.fences import WritersHeld
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fuse.admission import Admission
from vnafs.fuse.errno import errno_of
from vnafs.fuse.invalidation import Invalidations
from vnafs.fuse.recaller import Recaller
from vnafs.fuse.stale import clear_stale
from vnafs.fuse.syncing import Syncing

_LOG = logging.getLogger(__name__)

BLOCK_BYTES = 4096
PREFERRED_BYTES = 1 << 20
"""Of one read or write, as programs that ask st_blksize are told."""
RECALLS_PER_OPEN_MAX = 3
HELD_LOOK_SECONDS = 0.01
"""Between two tries of a writer that is held."""
UPKEEP_STEPS_MAX = 32
"""In one turn, so that upkeep never takes more than a part of the loop's time."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True, slots=True)
class MountOptions:
    """How the tree is mounted; the defaults suit one machine."""

    allow_other: bool | None = None
    """Other users may enter; None: when we run as root, who needs no configuration for it."""
    cache_seconds: float = 3600.0
    """How long the kernel may keep names and attributes that it was not told to forget."""
    requests_max: int = 512
    """Requests in work at once, waiting ones included."""
    recalls_waiting_max: int = 384
    """Requests that may wait for a recall at once; the next one gets EAGAIN, so that others still find a turn."""
    reap_seconds: float = 1.0
    """How often local bytes of removed files are given back to the disk, and what failed is tried again."""
    admission: Admission = dataclasses.field(default_factory=Admission)
    """Who may make bytes come back."""


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
        self._recaller = recaller
        self._syncing = syncing
        self._options = options
        self._recalls_waiting = 0
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

    # -- recall ---------------------------------------------------------------------------------------------

    async def _with_bytes(self, call: Callable[[], _R], caller: Caller) -> _R:
        """The result of a call that may need all bytes of a stub first."""
        for _ in range(RECALLS_PER_OPEN_MAX):
            try:
                return await self._let_through(call)
            except RecallNeeded as needed:
                self._admit(caller)
                await self._waiting(functools.partial(self._recaller.recall, needed.inode, needed.version))
                what = needed.inode
        raise RecallFailed(what=f"inode {what}", why="it was evicted again each time")

    def _admit(self, caller: Caller) -> None:
        admission = self._options.admission
        admission.counted(lambda: admission.check(caller))

    def _admitted(self, handle: Handle, caller: Caller) -> Handle:
        """A handle; of a stub that is read by range only for who may make bytes come back."""
        if handle.file.descriptor < 0:
            try:
                self._admit(caller)
            except BaseException:
                self._fs.release(handle)
                raise
        return handle

    async def _let_through(self, call: Callable[[], _R]) -> _R:
        """The result of a call that may find writers held. The tree sees to it that they are not for long."""
        while True:
            try:
                return call()
            except WritersHeld as held:
                await trio.sleep(min(held.seconds, HELD_LOOK_SECONDS))

    async def _waiting(self, bring: Callable[[], Awaitable[_R]]) -> _R:
        if self._recalls_waiting >= self._options.recalls_waiting_max:
            raise pyfuse3.FUSEError(errno.EAGAIN)
        self._recalls_waiting += 1
        try:
            return await bring()
        except RecallRefused as refused:
            self._options.admission.note(refused)
            raise
        finally:
            self._recalls_waiting -= 1

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
        found = await self._with_bytes(lambda: self._fs.setattr(number, changes, caller), caller)
        if fields.update_size:
            commitment = self._fs.must_settle(number)
            if commitment is not None:
                await self._syncing.settle(commitment)
        else:
            await self._synced(inode)
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
        handle, made = await self._with_bytes(create, caller)
        self._admitted(handle, caller)
        try:
            await self._synced(parent)
        except BaseException:
            self._fs.release(handle)
            raise
        return pyfuse3.FileInfo(fh=handle.number, keep_cache=True), self._entry(made)

    @answered_of_inode
    async def open(self, inode: int, flags: int, context: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        caller = _caller(context)
        handle = await self._with_bytes(lambda: self._fs.open(Inode(inode), flags, caller), caller)
        self._admitted(handle, caller)
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
        failed: Exception | None = None
        for _ in range(RECALLS_PER_OPEN_MAX):
            try:
                return self._fs.read(handle, offset, length)
            except RangeNeeded as needed:
                if isinstance(failed, RecallFailed):
                    raise failed from None
                bring = functools.partial(
                    self._recaller.fetch_range, needed.inode, needed.version, needed.offset, needed.length
                )
                try:
                    return _pread(await self._waiting(bring), needed)
                except (FileNotFoundError, RecallFailed) as error:
                    failed = error  # forgotten meanwhile, or no stub any more: then the bytes are here
        raise RecallFailed(what="A part of a file", why="it was forgotten again each time")

    @answered
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self._fs.handle(fh)
        try:
            return self._fs.write(handle, offset, data)
        except WritersHeld:
            return await self._let_through(lambda: self._fs.write(handle, offset, data))

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
        found = self._fs.statfs()
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
        return self._fs.listxattr(Inode(inode))

    @answered_of_inode
    async def setxattr(self, inode: int, name: bytes, value: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.setxattr(Inode(inode), name, value)  # pyfuse3 itself looks at XATTR_CREATE and XATTR_REPLACE
        await self._synced(inode)

    @answered_of_inode
    async def removexattr(self, inode: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        self._fs.removexattr(Inode(inode), name)
        await self._synced(inode)


def _pread(path: str, needed: RangeNeeded) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, needed.length, needed.offset)
    finally:
        os.close(descriptor)


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


async def together(main: Callable[[], Awaitable[None]], *others: Callable[[], Awaitable[None]]) -> None:
    """Run all until *main* returns or one of them raises. Raises the VnaError that ended it, not a group of one."""
    ended: VnaError | None = None
    try:
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(other)
            await main()
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        ended = _only_error(group)
        if ended is None:
            raise
    if ended is not None:
        raise ended


def _only_error(group: ExceptionGroup[Exception]) -> VnaError | None:
    """The error in a group, however deep, when there is one and it is ours."""
    errors: dict[int, Exception] = {}
    groups = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, ExceptionGroup):
                groups.append(error)
            else:
                errors[id(error)] = error  # several tasks may raise the one that ended the tree
    [error, *more] = errors.values()
    return error if isinstance(error, VnaError) and not more else None


def mount_options(options: MountOptions) -> set[str]:
    """As mount.fuse3(8) takes them."""
    chosen = {"default_permissions", "nosuid", "nodev", "fsname=vnafs", "subtype=vnafs"}
    allow_other = os.geteuid() == 0 if options.allow_other is None else options.allow_other
    if allow_other:
        chosen.add("allow_other")
    return chosen


async def keep_up(filesystem: Filesystem, syncing: Syncing, every_seconds: float) -> None:
    """Give local bytes back to the disk and try again what it refused, for ever.

    Raises why the tree failed once it did: a tree that refuses every change must end to be started again.
    """
    while True:
        await trio.sleep(every_seconds)
        if filesystem.failure is not None:
            raise filesystem.failure
        try:
            for _ in range(UPKEEP_STEPS_MAX):
                if not filesystem.upkeep():
                    break
                await trio.lowlevel.checkpoint()
            if filesystem.drops_pending:
                await syncing.until(filesystem.engine.position)
                while filesystem.reap():
                    await trio.lowlevel.checkpoint()
        except (NoSpace, TooManyOpen) as refused:
            _LOG.warning("fuse.upkeep_postponed", extra={"why": str(refused)})


__all__ = ["MountOptions", "Pyfuse3Engine", "keep_up", "mount_options", "serve", "together"]
