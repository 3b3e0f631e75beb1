"""The way to the kernel: /dev/fuse opened, mounted, read and written, and the mount taken away at the end.

It knows no opcode but how requests and replies are framed. The descriptor does not block; requests belong to one
thread, notices may come from another: each is one write(2).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os

from vnafs.domain.errors import Refused
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.herald import Herald
from vnafs.fuse.stale import FSTYPE, connection_at, end_connection, is_connected, place_of

_LOG = logging.getLogger(__name__)

TRANSFER_BYTES_MAX = 1 << 20
"""Of one read or write: 256 pages, fs.fuse.max_pages_limit of Linux."""
_HEAD_BYTES = 4096
"""The kernel wants room for a page of headers beside the bytes of a write (fuse_dev_do_read)."""
_MS_NOSUID, _MS_NODEV, _MNT_FORCE, _MNT_DETACH = 2, 4, 1, 2
_TRY_AGAIN = frozenset({errno.EINTR, errno.ENOENT})
"""Of read(2): a request was interrupted before it was read."""


class Unmounted(Exception):
    """The kernel has ended the connection: somebody unmounted."""


class Channel:
    """One connection. Close it once; `request` and `reply` then must not be called any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        # every page is there before the first request: one that is missing when we are killed ends a request with EIO
        self._buffer = bytearray(b"\1") * (TRANSFER_BYTES_MAX + _HEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._into = (self._buffer,)
        self._mountpoint = ""
        self._connection = 0
        self._herald: Herald | None = None

    # -- the mount ------------------------------------------------------------------------------------------

    def mount(self, mountpoint: str, *, allow_other: bool) -> None:
        """Mount at *mountpoint*; see mount(2), fuse(4). Raises Refused."""
        options = [
            f"fd={self.descriptor}",
            "rootmode=40000",
            f"user_id={os.geteuid()}",
            f"group_id={os.getegid()}",
            "default_permissions",
            f"max_read={TRANSFER_BYTES_MAX}",
        ]
        if allow_other:
            options.append("allow_other")
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
        if libc.mount(b"vnafs", os.fsencode(mountpoint), FSTYPE.encode(), flags, ",".join(options).encode()) != 0:
            why = os.strerror(ctypes.get_errno())
            raise Refused(what=f"Mounting at {mountpoint}", why=f"{why}; the kernel engine needs root")
        self._mountpoint = place_of(mountpoint)
        self._connection = connection_at(mountpoint)

    def adopt(self, mountpoint: str, connection: int) -> None:
        """Go on with the mount that somebody else began with this descriptor."""
        self._mountpoint, self._connection = mountpoint, connection

    @property
    def mounted(self) -> tuple[str, int]:
        """Where it is mounted, without symbolic links, and the number of the connection."""
        return self._mountpoint, self._connection

    def begin_notices(self) -> None:
        """From now on notices may be sent. Raises Refused."""
        try:
            self._herald = Herald(self.descriptor)
        except OSError as error:
            raise Refused(what="Starting what sends notices", why=str(error)) from error

    def leave(self) -> None:
        """Close our descriptor and nothing else; the mount lives as long as somebody has another one."""
        self._mountpoint = ""
        self.unmount()

    def unmount(self) -> None:
        """Take the mount away, whoever still uses it, and end the connection. May be repeated."""
        mountpoint, self._mountpoint = self._mountpoint, ""
        if mountpoint:
            # a notice that waits for a request would hold the connection past close(2)
            self._abort(mountpoint)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        # last: taking it away might write mapped pages back, and nobody answers any more
        if mountpoint and self._is_at(mountpoint):
            libc = ctypes.CDLL(None, use_errno=True)
            libc.umount2(os.fsencode(mountpoint), _MNT_DETACH)
        herald, self._herald = self._herald, None
        if herald is not None:
            herald.close()

    def _abort(self, mountpoint: str) -> None:
        """End the connection, whoever else has a descriptor of it."""
        if not is_connected(self.descriptor, self._connection):
            return  # it has ended, and another file system may have its number
        if not end_connection(self._connection) and self._is_at(mountpoint):
            libc = ctypes.CDLL(None, use_errno=True)
            libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _MNT_DETACH)

    def _is_at(self, mountpoint: str) -> bool:
        return bool(self._connection) and connection_at(mountpoint) == self._connection

    # -- requests and replies -------------------------------------------------------------------------------

    def request(self) -> wire.Request | None:
        """The next request, or None when there is none now. Raises Unmounted, Malformed."""
        while True:
            try:
                length = os.readv(self.descriptor, self._into)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _TRY_AGAIN:
                    continue
                if error.errno == errno.ENODEV:
                    raise Unmounted from None
                raise
            if not length:
                raise Unmounted
            return wire.request_of(self._view[:length])

    def reply(self, unique: int, payload: bytes) -> bool:
        """Answer a request; False when nobody waits for it any more."""
        header = wire.OUT.pack(wire.OUT.size + len(payload), 0, unique)
        return self._write((header, payload))

    def refuse(self, unique: int, number: int) -> bool:
        """Answer a request with an errno."""
        return self._write((wire.OUT.pack(wire.OUT.size, -number, unique),))

    def _write(self, parts: tuple[bytes, ...]) -> bool:
        try:
            os.writev(self.descriptor, parts)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            if error.errno == errno.EINVAL:
                _LOG.error("fuse.reply_refused")  # ours was wrong: the kernel made EIO of it
                return False
            raise
        return True

    # -- notices --------------------------------------------------------------------------------------------

    def forget_inode(self, inode: int, attributes_only: bool) -> None:  # noqa: FBT001 - ForgetInode
        """Invalidate what the kernel has of an inode. May block. Raises OSError."""
        self._tell(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE.pack(inode, -1 if attributes_only else 0, 0))

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Invalidate a name. May block. Raises OSError."""
        self._tell(wire.NOTIFY_INVAL_ENTRY, wire.INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0")

    def expire_entry(self, parent: int, name: bytes) -> None:
        """Have a name looked up again when it is used next. May block. Raises OSError."""
        head = wire.INVAL_ENTRY.pack(parent, len(name), wire.EXPIRE_ONLY)
        self._tell(wire.NOTIFY_INVAL_ENTRY, head + name + b"\0")

    def resend(self) -> None:
        """Have every request that was read and not answered sent again (Linux 6.9). Raises Refused."""
        try:
            os.write(self.descriptor, _notice(wire.NOTIFY_RESEND, b""))
        except OSError as error:
            raise Refused(what="Taking over the mount", why=os.strerror(error.errno or errno.EIO)) from error

    def _tell(self, code: int, body: bytes) -> None:
        if self._herald is None:
            raise ConnectionResetError  # not any more
        self._herald.tell(_notice(code, body))


def _notice(code: int, body: bytes) -> bytes:
    return wire.OUT.pack(wire.OUT.size + len(body), code, 0) + body


def open_channel() -> Channel:
    """A connection that is not mounted yet. Raises Refused."""
    try:
        return Channel(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise Refused(what="Opening /dev/fuse", why=os.strerror(error.errno or errno.EIO)) from error
