"""Requests about names, attributes and directories, as calls on Filesystem. It decides nothing. One thread."""

from __future__ import annotations

import functools

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.ids import Inode
from vnafs.fs.attributes import AttributeChanges, Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.fences import WritersHeld
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.recall import RecallNeeded
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.replies import BLOCK_BYTES, NAME_BYTES_MAX, Answer, Handler, Later, Replies
from vnafs.fuse.recalls import Recalls

_DOTS = (b".", b"..")


class NameRequests:
    """Handlers by opcode; see fuse.h for what each is asked."""

    def __init__(self, filesystem: Filesystem, recalls: Recalls, replies: Replies, clock: Clock) -> None:
        self._fs = filesystem
        self._recalls = recalls
        self._replies = replies
        self._clock = clock

    def handlers(self) -> dict[int, Handler]:
        """Opcode to handler."""
        return {
            wire.LOOKUP: self.lookup,
            wire.GETATTR: self.getattr,
            wire.STATX_OP: self.statx,
            wire.SETATTR: self.setattr,
            wire.READLINK: self.readlink,
            wire.SYMLINK: self.symlink,
            wire.MKNOD: self.mknod,
            wire.MKDIR: self.mkdir,
            wire.UNLINK: self.unlink,
            wire.RMDIR: self.rmdir,
            wire.RENAME: self.rename,
            wire.RENAME2: self.rename2,
            wire.LINK: self.link,
            wire.STATFS: self.statfs,
            wire.OPENDIR: self.opendir,
            wire.READDIR: self.readdir,
            wire.READDIRPLUS: self.readdirplus,
            wire.RELEASEDIR: self.releasedir,
            wire.FSYNCDIR: self.fsyncdir,
        }

    def lookup(self, request: wire.Request) -> Answer:
        """LOOKUP."""
        found = self._fs.find(Inode(request.node), request.name())
        return self._replies.missing if found is None else self._replies.entry(found)

    def getattr(self, request: wire.Request) -> Answer:
        """GETATTR."""
        return self._replies.attributes(self._fs.getattr(Inode(request.node)))

    def statx(self, request: wire.Request) -> Answer:
        """STATX."""
        return self._replies.statx(self._fs.getattr(Inode(request.node)))

    def setattr(self, request: wire.Request) -> Answer:
        """SETATTR; the time of a change itself is the tree's."""
        changes = self._changes(request)
        inode, caller = Inode(request.node), request.caller
        call = functools.partial(self._fs.setattr, inode, changes, caller)
        try:
            found = call()
        except (RecallNeeded, WritersHeld):
            return Later(functools.partial(self._set_later, call, inode, caller), may_be_interrupted=True)
        return self._set(inode, found, sets_size=changes.size_bytes is not None)

    def _changes(self, request: wire.Request) -> AttributeChanges:
        (valid, _, _, size, _, atime, mtime, _, atime_part, mtime_part, _, mode, _, uid, gid, _) = (
            wire.SETATTR_IN.unpack_from(request.body)
        )
        now = self._clock.now() if valid & (wire.FATTR_ATIME_NOW | wire.FATTR_MTIME_NOW) else 0
        atime_ns = now if valid & wire.FATTR_ATIME_NOW else atime * NANOSECONDS + atime_part
        mtime_ns = now if valid & wire.FATTR_MTIME_NOW else mtime * NANOSECONDS + mtime_part
        return AttributeChanges(
            mode=mode if valid & wire.FATTR_MODE else None,
            uid=uid if valid & wire.FATTR_UID else None,
            gid=gid if valid & wire.FATTR_GID else None,
            size_bytes=size if valid & wire.FATTR_SIZE else None,
            atime_ns=atime_ns if valid & wire.FATTR_ATIME else None,
            mtime_ns=mtime_ns if valid & wire.FATTR_MTIME else None,
        )

    def _set(self, inode: Inode, found: Attributes, *, sets_size: bool) -> Answer:
        payload = self._replies.attributes(found)
        settling = self._fs.must_settle if sets_size else self._fs.must_settle_times
        return self._replies.settled(settling(inode), payload)

    async def _set_later(self, call: functools.partial[Attributes], inode: Inode, caller: Caller) -> bytes:
        found = await self._recalls.with_bytes(call, caller)
        answer = self._set(inode, found, sets_size=True)
        return await answer.work() if isinstance(answer, Later) else self._replies.attributes(found)

    def readlink(self, request: wire.Request) -> Answer:
        """READLINK."""
        return self._fs.readlink(Inode(request.node))

    # -- adding and removing --------------------------------------------------------------------------------

    def symlink(self, request: wire.Request) -> Answer:
        """SYMLINK."""
        name, target = request.names(2)
        made = self._fs.symlink(Inode(request.node), name, target, request.caller)
        return self._replies.synced(request.node, self._replies.entry(made))

    def mknod(self, request: wire.Request) -> Answer:
        """MKNOD."""
        mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(request.body)
        name = request.name(wire.MKNOD_IN.size)
        made = self._fs.mknod(Inode(request.node), name, mode, rdev, request.caller, umask)
        return self._replies.synced(request.node, self._replies.entry(made))

    def mkdir(self, request: wire.Request) -> Answer:
        """MKDIR."""
        mode, umask = wire.MKDIR_IN.unpack_from(request.body)
        made = self._fs.mkdir(Inode(request.node), request.name(wire.MKDIR_IN.size), mode, request.caller, umask)
        return self._replies.synced(request.node, self._replies.entry(made))

    def unlink(self, request: wire.Request) -> Answer:
        """UNLINK."""
        self._fs.unlink(Inode(request.node), request.name())
        return self._replies.synced(request.node, b"")

    def rmdir(self, request: wire.Request) -> Answer:
        """RMDIR."""
        self._fs.rmdir(Inode(request.node), request.name())
        return self._replies.synced(request.node, b"")

    def rename(self, request: wire.Request) -> Answer:
        """RENAME."""
        (parent,) = wire.RENAME_IN.unpack_from(request.body)
        return self._rename(request, parent, wire.RENAME_IN.size, 0)

    def rename2(self, request: wire.Request) -> Answer:
        """RENAME2: with flags."""
        parent, flags, _ = wire.RENAME2_IN.unpack_from(request.body)
        return self._rename(request, parent, wire.RENAME2_IN.size, flags)

    def _rename(self, request: wire.Request, parent: int, start: int, flags: int) -> Answer:
        name, new_name = request.names(2, start)
        self._fs.rename(Inode(request.node), name, Inode(parent), new_name, flags)
        return self._replies.synced(parent, b"")

    def link(self, request: wire.Request) -> Answer:
        """LINK: the node is the directory, the body begins with the inode."""
        (inode,) = wire.LINK_IN.unpack_from(request.body)
        linked = self._fs.link(Inode(inode), Inode(request.node), request.name(wire.LINK_IN.size))
        return self._replies.synced(request.node, self._replies.entry(linked))

    # -- directories ----------------------------------------------------------------------------------------

    def opendir(self, request: wire.Request) -> Answer:
        """OPENDIR: listings keep no state, the cookie says where to go on."""
        self._fs.getattr(Inode(request.node))
        return wire.OPEN_OUT.pack(0, 0, 0)

    def readdir(self, request: wire.Request) -> Answer:
        """READDIR."""
        _, cookie, room, *_ = wire.READ_IN.unpack_from(request.body)
        entries: list[bytes] = []
        for after, name, found in self._fs.listing(Inode(request.node), cookie):
            entry = wire.dirent(found.inode, after, name, found.mode)
            room -= len(entry)
            if room < 0:
                break
            entries.append(entry)
        return b"".join(entries)

    def readdirplus(self, request: wire.Request) -> Answer:
        """READDIRPLUS: each entry as a lookup of it would be answered; the dots are not looked up."""
        _, cookie, room, *_ = wire.READ_IN.unpack_from(request.body)
        entries: list[bytes] = []
        unknown, reply = bytes(wire.ENTRY.size + wire.ATTR.size), self._replies.entry
        for after, name, found in self._fs.listing(Inode(request.node), cookie):
            entry = wire.dirent(found.inode, after, name, found.mode)
            room -= len(unknown) + len(entry)
            if room < 0:
                break
            entries.append(unknown if name in _DOTS else reply(found))
            entries.append(entry)
        return b"".join(entries)

    def releasedir(self, request: wire.Request) -> Answer:
        """RELEASEDIR: nothing is kept."""
        del request
        return b""

    def fsyncdir(self, request: wire.Request) -> Answer:
        """FSYNCDIR."""
        return self._replies.settled(self._fs.fsync_directory(Inode(request.node)))

    def statfs(self, request: wire.Request) -> Answer:
        """STATFS: asked of a directory or file, whose repository it is about."""
        found = self._fs.statfs(Inode(request.node))
        blocks, free = found.total_bytes // BLOCK_BYTES, found.free_bytes // BLOCK_BYTES
        return wire.KSTATFS.pack(
            blocks, free, free, found.files_total, found.files_free, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES
        )
