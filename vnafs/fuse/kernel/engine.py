"""The kernel engine: the FUSE protocol on /dev/fuse itself, over the same Filesystem as the portable engine.

It knows no index, no pack and no DICOM. Requests are answered one after another on trio's thread; what must wait (a
sync, a recall, a held writer) is a task of its own meanwhile. A request that is not understood, or a handler that
fails, is answered with an errno and never ends the loop. It needs root, and Linux 6.9 for passthrough.

No writeback cache: a write that was answered is in the local file. The kernel caches names and attributes for long
because every change passes through this mount or is followed by a notice.
"""

from __future__ import annotations

import errno
import functools
import logging
import struct
import time
from collections.abc import Callable

import trio

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NotFound, Refused, VnaError
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.errno import errno_of
from vnafs.fuse.invalidation import Invalidations
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.channel import TRANSFER_BYTES_MAX, Channel, Unmounted, open_channel
from vnafs.fuse.kernel.estate import Estate, KeptMount
from vnafs.fuse.kernel.files import FileRequests
from vnafs.fuse.kernel.keeper import Inheritance, Keeper
from vnafs.fuse.kernel.names import NameRequests
from vnafs.fuse.kernel.once import Once
from vnafs.fuse.kernel.passthrough import Backings
from vnafs.fuse.kernel.replies import NO_ANSWER, Answer, Handler, Later, NoAnswer, Replies
from vnafs.fuse.kernel.xattrs import XattrRequests
from vnafs.fuse.recaller import Recaller
from vnafs.fuse.recalls import Recalls
from vnafs.fuse.serving import MountOptions, allows_other, keep_up, together
from vnafs.fuse.stale import clear_stale
from vnafs.fuse.syncing import Syncing

_LOG = logging.getLogger(__name__)

TURN_SECONDS = 0.002
"""After so long the other tasks of the thread get a turn."""
TURN_WAITED_FOR_SECONDS = 0.0002
"""The same while some of them answer requests."""
HEARD_SECONDS = 1.0
"""Between two notes of what the kernel was told."""
BACKGROUND_MAX = 64
"""Readahead and other requests nobody waits for, at once."""
_WANTED = (
    wire.ASYNC_READ
    | wire.ATOMIC_O_TRUNC
    | wire.EXPORT_SUPPORT
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.ASYNC_DIO
    | wire.PARALLEL_DIROPS
    | wire.POSIX_ACL
    | wire.MAX_PAGES
    | wire.CACHE_SYMLINKS
    | wire.HANDLE_KILLPRIV_V2
    | wire.SETXATTR_EXT
    | wire.INIT_EXT
    | wire.HAS_RESEND
)
_OPENING = (wire.OPEN, wire.CREATE)
_OF_INODE = frozenset(
    {wire.GETATTR, wire.STATX_OP, wire.SETATTR, wire.READLINK, wire.OPENDIR, wire.OPEN}
    | {wire.GETXATTR, wire.LISTXATTR, wire.SETXATTR, wire.REMOVEXATTR}
)
"""Requests that name no file, only an inode: that there is none any more is ESTALE.

The kernel looked the name up a moment ago, and something else was renamed over it since. Told ESTALE it looks again
(path_openat in fs/namei.c), so that a name which is always there is always found.
"""
_SEEN_ERRORS = (errno.ERANGE, errno.ENOTTY)
"""Of OSError: what a handler says on purpose."""


class KernelEngine:
    """The loop. One mount for each engine; not to be used again after it ended."""

    def __init__(
        self,
        filesystem: Filesystem,
        recaller: Recaller,
        syncing: Syncing,
        channel: Channel,
        options: MountOptions,
        *,
        clock: Clock | None = None,
        ready: Callable[[], None] = lambda: None,
        estate: Estate | None = None,
    ) -> None:
        """What the process after this one must know is kept in *estate*, if there is one."""
        self._channel = channel
        self._estate = estate
        self._options = options
        self._ready = ready
        replies = Replies(filesystem, syncing, options.cache_seconds)
        recalls = Recalls(filesystem, recaller, options)
        self._files = FileRequests(filesystem, recalls, replies)
        self._xattrs = XattrRequests(filesystem, replies)
        self._once = self._files.once = None if estate is None else Once(filesystem, estate, replies)
        self._handlers: dict[int, Handler] = {
            **NameRequests(filesystem, recalls, replies, clock or filesystem.clock).handlers(),
            **self._xattrs.handlers(),
            **self._files.handlers(),
            wire.INIT: self._init,
            wire.DESTROY: lambda _: b"",
            wire.FORGET: lambda _: NO_ANSWER,
            wire.BATCH_FORGET: lambda _: NO_ANSWER,
            wire.INTERRUPT: self._interrupt,
            wire.IOCTL: _no_ioctl,
        }
        self._interruptible: dict[int, trio.CancelScope] = {}
        self._waiting = 0
        self._room = trio.Event()

    def adopt(self) -> None:
        """Go on where the process before ended: what it had open the tree took over. Instead of INIT.

        Raises Refused when the mount is gone, Busy when it cannot be gone on with.
        """
        assert self._estate is not None and self._once is not None  # noqa: S101, PT018 - the caller has an estate
        if self._estate.flags & wire.PASSTHROUGH:
            self._files.backings = Backings(self._channel.descriptor, self._options.backings_max, self._estate)
        self._xattrs.acls = bool(self._estate.flags & wire.POSIX_ACL)
        self._files.adopt()
        self._once.adopt()
        self._channel.resend()
        _LOG.info("fuse.taken_over")

    async def run(self) -> None:
        """Answer until unmounted. Raises Refused when the kernel is too old."""
        async with trio.open_nursery() as nursery:
            try:
                await self._answer(nursery)
            except Unmounted:
                nursery.cancel_scope.cancel()

    async def _answer(self, nursery: trio.Nursery) -> None:
        clock, poll_seconds = time.monotonic, self._options.poll_seconds
        turn_until = clock() + TURN_SECONDS
        look_until = 0.0
        while True:
            try:
                request = self._channel.request()
            except wire.Malformed:
                _LOG.error("fuse.request_malformed")
                await trio.lowlevel.checkpoint()
                continue
            if request is not None:
                look_until = 0.0
                self._serve(request, nursery)
                if self._waiting >= self._options.requests_max:
                    await self._room.wait()
            elif poll_seconds and not look_until and not self._waiting:
                look_until = clock() + poll_seconds
                continue
            elif clock() < look_until:
                continue
            else:
                await trio.lowlevel.wait_readable(self._channel.descriptor)
                look_until = 0.0
                turn_until = clock() + TURN_SECONDS
                continue
            if clock() > turn_until:
                await trio.lowlevel.checkpoint()
                turn_until = clock() + (TURN_SECONDS if not self._waiting else TURN_WAITED_FOR_SECONDS)

    # -- one request ----------------------------------------------------------------------------------------

    def _serve(self, request: wire.Request, nursery: trio.Nursery) -> None:
        handler = self._handlers.get(request.opcode)
        if handler is None:
            self._channel.refuse(request.unique, errno.ENOSYS)  # the kernel never asks again
            return
        try:
            answer = handler(request) if self._once is None else self._once.serve(request, handler)
        except Refused:
            self._channel.refuse(request.unique, errno.EPROTO)
            raise
        except Exception as error:
            self._refuse(request.opcode, request.unique, self._number(request.opcode, error))
            return
        if isinstance(answer, bytes):
            self._reply(request.opcode, request.unique, answer)
        elif isinstance(answer, Later):
            self._waiting += 1
            nursery.start_soon(self._wait, request.opcode, request.unique, answer)

    async def _wait(self, opcode: int, unique: int, answer: Later) -> None:
        try:
            with trio.CancelScope() as scope:
                if answer.may_be_interrupted:
                    self._interruptible[unique] = scope
                self._reply(opcode, unique, await answer.work())
            if scope.cancelled_caught:
                self._refuse(opcode, unique, errno.EINTR)
        except Exception as error:
            self._refuse(opcode, unique, self._number(opcode, error))
        finally:
            self._interruptible.pop(unique, None)
            self._waiting -= 1
            room, self._room = self._room, trio.Event()
            room.set()

    def _reply(self, opcode: int, unique: int, payload: bytes) -> None:
        if not self._channel.reply(unique, payload) and opcode in _OPENING:
            self._files.forget_open(payload)
        if self._once is not None:
            self._once.answered(opcode, unique)

    def _refuse(self, opcode: int, unique: int, number: int) -> None:
        self._channel.refuse(unique, number)
        if self._once is not None:
            self._once.answered(opcode, unique)

    @staticmethod
    def _number(opcode: int, error: Exception) -> int:
        if isinstance(error, wire.Malformed | struct.error):
            _LOG.error("fuse.request_malformed", extra={"opcode": opcode})
            return errno.EINVAL
        if isinstance(error, OSError) and error.errno in _SEEN_ERRORS:
            return error.errno or errno.EIO
        if isinstance(error, NotFound) and opcode in _OF_INODE:
            return errno.ESTALE
        number = errno_of(error)
        # programs take EAGAIN of read(2) for a pipe that is empty, and go on with a short copy
        return errno.ETIMEDOUT if number == errno.EAGAIN and opcode == wire.READ else number

    # -- the connection -------------------------------------------------------------------------------------

    def _init(self, request: wire.Request) -> Answer:
        major, minor, readahead_bytes, low, high = wire.INIT_IN.unpack_from(request.body)
        if major > wire.MAJOR:
            return wire.init_out(wire.MINOR, 0, 0, TRANSFER_BYTES_MAX, BACKGROUND_MAX)  # it asks again
        offered = low | high << 32
        if major < wire.MAJOR or minor < wire.MINOR_MIN or not offered & wire.INIT_EXT:
            raise Refused(what="The kernel engine", why=f"the kernel speaks FUSE {major}.{minor}; 7.36 is needed")
        flags = offered & _WANTED
        self._xattrs.acls = bool(flags & wire.POSIX_ACL)
        if self._options.backings_max > 0 and offered & wire.PASSTHROUGH:
            flags |= wire.PASSTHROUGH
            self._files.backings = Backings(self._channel.descriptor, self._options.backings_max, self._estate)
        if self._estate is not None and offered & wire.HAS_RESEND:
            self._estate.complete(flags)
        answer = wire.init_out(minor, readahead_bytes, flags, TRANSFER_BYTES_MAX, BACKGROUND_MAX)
        _LOG.info("fuse.spoken", extra={"minor": minor, "passthrough": bool(flags & wire.PASSTHROUGH)})
        self._channel.reply(request.unique, answer)
        self._ready()
        return NO_ANSWER

    def _interrupt(self, request: wire.Request) -> NoAnswer:
        (unique,) = wire.INTERRUPT_IN.unpack_from(request.body)
        scope = self._interruptible.get(unique)
        if scope is not None:
            scope.cancel()
        return NO_ANSWER


def _no_ioctl(request: wire.Request) -> Answer:
    del request
    raise OSError(errno.ENOTTY, "no ioctl is known")


async def serve(
    filesystem: Filesystem,
    mountpoint: str,
    recaller: Recaller,
    *,
    ready: Callable[[], None] = lambda: None,
    options: MountOptions | None = None,
    keeper: Keeper | None = None,
    inheritance: Inheritance | None = None,
) -> None:
    """Mount, answer until unmounted or cancelled, and leave nothing mounted behind.

    *ready* is called once the mount answers. Raises Refused when mounting fails, StorageFailed when local storage
    did; the caller closes the tree.

    With a *keeper* the mount outlives a process that dies, and another may go on with it, which has it as its
    *inheritance* and made the tree with what was open before. Raises Busy and Refused when it cannot; nothing is
    mounted then.
    """
    options = options or MountOptions()
    syncing = Syncing(filesystem)
    if inheritance is None:
        clear_stale(mountpoint)
        channel, estate = open_channel(), None if keeper is None else _new_estate(filesystem, options)
    else:
        channel, estate = Channel(inheritance.control), inheritance.estate
        channel.adopt(estate.mount.place, estate.mount.connection)

    def serves() -> None:
        if keeper is not None and estate is not None and estate.is_complete:
            if inheritance is None:
                keeper.keep(channel.descriptor, estate.descriptor)
            keeper.serves()
        ready()

    engine = KernelEngine(filesystem, recaller, syncing, channel, options, ready=serves, estate=estate)
    invalidations = Invalidations(channel.forget_inode, channel.forget_entry, channel.expire_entry)
    filesystem.watch(invalidations)
    is_crash = False
    try:
        channel.begin_notices()
        if inheritance is None:
            channel.mount(mountpoint, allow_other=allows_other(options))
            if estate is not None:
                estate.mounted(KeptMount(filesystem.succession.archive(), *channel.mounted))
            _LOG.info("fuse.mounted")
        else:
            filesystem.succession.tell_since(inheritance.estate.heard)
            engine.adopt()
            serves()
        await together(
            engine.run,
            syncing.run,
            invalidations.run,
            functools.partial(keep_up, filesystem, syncing, options.reap_seconds),
            functools.partial(_note_heard, filesystem, invalidations, estate),
        )
    except Exception as error:
        is_crash = not isinstance(error, VnaError)  # as if we had been killed: the next one goes on
        raise
    finally:
        if keeper is not None and is_crash:
            channel.leave()
        else:
            if keeper is not None:
                keeper.let_go()
            channel.unmount()
            _LOG.info("fuse.unmounted")
        if estate is not None:
            estate.close()


def _new_estate(filesystem: Filesystem, options: MountOptions) -> Estate | None:
    try:
        made = Estate.new(
            handles_max=filesystem.settings.handles_open_max,
            backings_max=max(options.backings_max, 1),
            requests_max=options.requests_max,
        )
    except OSError as error:
        _LOG.warning("fuse.no_estate", extra={"why": str(error)})  # no memory: no take-over then
        return None
    made.heard = filesystem.succession.events_end()
    return made


async def _note_heard(filesystem: Filesystem, invalidations: Invalidations, estate: Estate | None) -> None:
    """Note how far the kernel was told, for whoever goes on: what it was not told of it is told again."""
    while estate is not None:
        end = filesystem.succession.events_end()  # first: what comes after it is not told yet
        if invalidations.is_idle:
            estate.heard = end
        await trio.sleep(HEARD_SECONDS)


__all__ = ["KernelEngine", "serve"]
