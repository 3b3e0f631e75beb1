"""Telling the kernel to forget what it cached when something changed that it did not ask for.

Tiering changes blocks, `vna repository` changes the root. Notices are gathered, without repeats, and sent from a
thread: the kernel may make the sender wait for a request that only the loop can answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from vnafs.domain.ids import Inode
from vnafs.fs.core import Watcher

_LOG = logging.getLogger(__name__)

NOTICES_MAX = 65536
ForgetInode = Callable[[int, bool], None]
"""Forget an inode: number, whether only its attributes."""
ForgetEntry = Callable[[int, bytes], None]


class Invalidations(Watcher):
    """A watcher that tells the kernel. Any thread of trio's may report; `run` sends."""

    def __init__(
        self, forget_inode: ForgetInode, forget_entry: ForgetEntry, expire_entry: ForgetEntry | None = None
    ) -> None:
        """*expire_entry* makes the kernel look again, where forgetting would take a directory from who is in it."""
        self._forget_inode = forget_inode
        self._forget_entry = forget_entry
        self._expire_entry = expire_entry or forget_entry
        self._sending = False
        self._inodes: dict[Inode, bool] = {}
        self._entries: dict[tuple[Inode, bytes], bool] = {}
        """Whether it is forgotten; else it is only looked up again."""
        self._demand = trio.Event()

    def is_behind(self) -> bool:
        """See Watcher."""
        return len(self._inodes) + len(self._entries) > NOTICES_MAX // 4

    def attributes_changed(self, inode: Inode) -> None:
        """See Watcher."""
        self._inodes.setdefault(inode, True)
        self._wake()

    def bytes_changed(self, inode: Inode) -> None:
        """See Watcher."""
        self._inodes[inode] = False
        self._wake()

    def entry_changed(self, parent: Inode, name: bytes) -> None:
        """See Watcher."""
        self._entries[parent, name] = True
        self._wake()

    def entry_doubted(self, parent: Inode, name: bytes) -> None:
        """See Watcher."""
        self._entries.setdefault((parent, name), False)
        self._wake()

    @property
    def is_idle(self) -> bool:
        """Whether the kernel was told of everything."""
        return not (self._inodes or self._entries or self._sending)

    def _wake(self) -> None:
        if len(self._inodes) > NOTICES_MAX:
            # the kernel shows old block counts until its timeout: harmless, and said
            del self._inodes[next(iter(self._inodes))]
            _LOG.warning("fuse.notices_dropped")
        self._demand.set()

    async def run(self) -> None:
        """Send notices as they come, for ever."""
        while True:
            await self._demand.wait()
            self._demand = trio.Event()
            inodes, self._inodes = self._inodes, {}
            entries, self._entries = self._entries, {}
            self._sending = True
            await trio.to_thread.run_sync(self._send, inodes, entries, abandon_on_cancel=True)
            self._sending = False

    def _send(self, inodes: dict[Inode, bool], entries: dict[tuple[Inode, bytes], bool]) -> None:
        for inode, attributes_only in inodes.items():
            try:
                self._forget_inode(inode, attributes_only)
            except FileNotFoundError:
                continue  # the kernel does not know it
            except OSError as error:
                _LOG.warning("fuse.notice_refused", extra={"inode": inode, "errno": error.errno})
        for (parent, name), is_gone in entries.items():
            try:
                (self._forget_entry if is_gone else self._expire_entry)(parent, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                _LOG.warning("fuse.notice_refused", extra={"inode": parent, "errno": error.errno})
