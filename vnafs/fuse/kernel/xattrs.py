"""Requests about extended attributes, as calls on Filesystem. It decides nothing. One thread."""

from __future__ import annotations

import errno

from vnafs.domain.ids import Inode
from vnafs.fs import posixacl
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.replies import Answer, Handler, Replies


class XattrRequests:
    """Handlers by opcode."""

    def __init__(self, filesystem: Filesystem, replies: Replies) -> None:
        self._fs = filesystem
        self._replies = replies
        self.acls = False
        """Whether the kernel was told to heed ACLs: then it asks for them, and forgets what it knew when one is set."""

    def handlers(self) -> dict[int, Handler]:
        """Opcode to handler."""
        return {
            wire.GETXATTR: self.getxattr,
            wire.LISTXATTR: self.listxattr,
            wire.SETXATTR: self.setxattr,
            wire.REMOVEXATTR: self.removexattr,
        }

    def getxattr(self, request: wire.Request) -> Answer:
        """GETXATTR; of size 0 it asks how long the value is."""
        size, _ = wire.GETXATTR_IN.unpack_from(request.body)
        name = request.name(wire.GETXATTR_IN.size)
        get = self._fs.getacl if self.acls and name in posixacl.NAMES else self._fs.getxattr
        return _sized(get(Inode(request.node), name), size)

    def listxattr(self, request: wire.Request) -> Answer:
        """LISTXATTR."""
        size, _ = wire.GETXATTR_IN.unpack_from(request.body)
        names = self._fs.listxattr(Inode(request.node), trusted=request.caller.is_root, acls=self.acls)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def setxattr(self, request: wire.Request) -> Answer:
        """SETXATTR."""
        size, flags, more, _ = wire.SETXATTR_IN.unpack_from(request.body)
        name, found, value = bytes(request.body[wire.SETXATTR_IN.size :]).partition(b"\0")
        if not found or len(value) != size:
            raise wire.Malformed
        if self.acls and name in posixacl.NAMES:
            kills = bool(more & wire.SETXATTR_ACL_KILL_SGID)
            self._fs.setacl(Inode(request.node), name, value, drops_setgid=kills)
        else:
            self._fs.setxattr(Inode(request.node), name, value, flags)
        return self._replies.synced(request.node, b"")

    def removexattr(self, request: wire.Request) -> Answer:
        """REMOVEXATTR."""
        name = request.name()
        remove = self._fs.removeacl if self.acls and name in posixacl.NAMES else self._fs.removexattr
        remove(Inode(request.node), name)
        return self._replies.synced(request.node, b"")


def _sized(value: bytes, room: int) -> bytes:
    if room == 0:
        return wire.WRITE_OUT.pack(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, "the value is longer")
    return value
