"""The start of a tree: what a crash left half done is finished, in time that follows the work in flight.

Files that a mount keeps open for its clients while its process is replaced stay open (`vnafs.fs.takeover`).
Reads the queue rows of files that were open for write, the rows of inodes and local bytes that wait for their end or
for packing, copies of such bytes, and the spool directories that the last reserved inode numbers fall into; never all
files. After loss of power (the kernel booted since) also every other file that is still OPEN, because what ext4 had not
written yet is gone.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator

from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT, Inode, Version
from vnafs.fs import leaving
from vnafs.fs.core import ROOT_REPOSITORY, Core
from vnafs.fs.data import Data
from vnafs.fs.removal import end
from vnafs.fs.takeover import NOTHING_OPEN, OpenBefore
from vnafs.index import inodes, keys, meta, unpacked
from vnafs.index.engine import prefix_stop
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER
from vnafs.local.spool import FILES_PER_DIRECTORY_BITS, original_of

_LOG = logging.getLogger(__name__)
_ROWS_PER_CHANGE_MAX = 256
BOOT = "boot_id"
SWEPT = "spool_swept_to"
"""Inode numbers below this were checked for local files that no row names."""


class Recovery:
    """Runs once, before the first call."""

    def __init__(self, core: Core, open_before: OpenBefore = NOTHING_OPEN) -> None:
        self._core = core
        self._opened = open_before.inodes()
        self._written = open_before.written()
        self._clients_wait = open_before is not NOTHING_OPEN

    def run(self, boot_id: str) -> None:
        """Repair everything; raises StorageFailed. *boot_id* tells whether the kernel booted since; "" is unknown."""
        self._make_root()
        core, boot = self._core, boot_id.encode()
        with core.engine.read() as reader:
            known = meta.get_bytes(reader, BOOT)
        self._repair_open(lost_power=known not in (None, boot))
        self._purge_orphans()
        self._finish_drops()
        self._check_unpacked()
        self._sweep()
        if known != boot:
            with core.engine.write() as tx:  # last: whoever dies before it begins again
                meta.set_bytes(tx, BOOT, boot)

    def _make_root(self) -> None:
        core = self._core
        if core.find(ROOT) is not None:
            return
        now = core.clock.now()
        with core.change() as change:
            change.new(
                ROOT,
                InodeRow(
                    stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, now, now, now, now,
                    ROOT_REPOSITORY, ROOT, 0, Version(0), FileState.OPEN, NOT_QUEUED,
                ),
            )  # fmt: skip

    # -- files that were open for write -----------------------------------------------------------------------

    def _repair_open(self, *, lost_power: bool) -> None:
        core = self._core
        start = keys.queue_from(FileState.OPEN) if lost_power else keys.queue_from(FileState.OPEN, DUE_NEVER)
        count = 0
        for batch in self._batches(start, prefix_stop(keys.queue_from(FileState.OPEN)[:2])):
            with core.change() as change:
                for key in batch:
                    inode = Inode(keys.number_of(key))
                    row = change.row(inode)
                    repaired = self._repaired(inode, row)
                    if repaired is not None and inode not in self._written:
                        change.set(inode, repaired)
                        count += 1
        if count:
            _LOG.info("tree.repaired", extra={"files": count})

    def _repaired(self, inode: Inode, row: InodeRow) -> InodeRow | None:
        spool = self._core.spool
        local = spool.stat(inode, row.version)
        if local is None and leaving.may_follow(self._core, inode, row.version):
            spool.move(inode, Version(row.version - 1), row.version)
            local = spool.stat(inode, row.version)
        if local is None:
            if row.size_bytes:
                _LOG.error("tree.bytes_missing", extra={"inode": inode, "version": row.version})
                return None  # stays parked: opening it says Damaged, and each start says so again
            # made just before the crash, nothing of it was ever acknowledged as durable
            os.close(spool.create(inode, row.version))
            local = spool.stat(inode, row.version)
        if local is None:
            return None
        if (row.due != DUE_NEVER or row.is_suspect) and local.st_size == row.size_bytes:
            return row._replace(blocks=local.st_blocks)  # it was closed: its row is the truth for times that were set
        due = self._core.clock.now() if row.due == DUE_NEVER and not row.is_suspect else row.due
        return Data.as_local(row, local, due=due)

    # -- what waited for its end ------------------------------------------------------------------------------

    def _purge_orphans(self) -> None:
        core = self._core
        for batch in self._batches(keys.ORPHANS, prefix_stop(keys.ORPHANS)):
            with core.change() as change:
                for key in batch:
                    inode = Inode(keys.number_of(key))
                    row = core.find(inode, change.tx)
                    if row is None or row.nlink:
                        change.tx.delete(key)
                    elif inode not in self._opened:
                        end(change, inode, change.row(inode), core.clock.now())

    def _finish_drops(self) -> None:
        core, done = self._core, 0
        if self._clients_wait:
            core.drops.clear()
        for batch in self._batches(keys.DROPPED, prefix_stop(keys.DROPPED)):
            if done >= core.settings.drops_pending_max:
                core.drops_left = True  # after a rollback there may be very many
                return
            done += len(batch)
            if self._clients_wait:
                self._drop_later(batch)  # and not for the disk
                continue
            # the change that gave these bytes up may not be synced yet; it must be before they go
            core.engine.sync(core.engine.position)
            places = [keys.dropped_of(key) for key in batch]
            with core.engine.read() as reader:
                for inode, version in places:
                    row = inodes.find(reader, inode)
                    if row is None or row.version != version or row.state is FileState.STUB:
                        core.spool.remove(inode, version)
            core.spool.sync_places(places)  # without its row nobody would remove what loss of power brings back
            with core.engine.write() as tx:
                for key in batch:
                    tx.delete(key)
        if not self._clients_wait:
            core.drops.clear()

    def _drop_later(self, batch: list[bytes]) -> None:
        """As in a tree that goes on: once what gave them up survives loss of power."""
        core = self._core
        with core.engine.write() as tx:
            for key in batch:
                inode, version = keys.dropped_of(key)
                row = inodes.find(tx, inode)
                if row is None or row.version != version or row.state is FileState.STUB:
                    core.drops.append((core.engine.position, inode, version))
                else:
                    tx.delete(key)

    def _check_unpacked(self) -> None:
        """Versions that wait to be packed without any bytes wait no more; copies that no version waits for go."""
        core, lost = self._core, 0
        for batch in self._batches(keys.UNPACKED, prefix_stop(keys.UNPACKED)):
            with core.engine.write() as tx:
                for key in batch:
                    found = unpacked.find(tx, *keys.unpacked_of(key))
                    if found is not None and core.spool.stat(found.inode, found.place) is None:
                        tx.delete(key)
                        lost += 1
        if lost:
            _LOG.error("tree.unpacked_missing", extra={"versions": lost})
        for inode, place in list(core.spool.copies()):
            with core.engine.read() as reader:
                found = unpacked.find(reader, inode, original_of(place))
            if found is None or found.place != place:
                core.spool.remove(inode, place)  # of somebody who died before saying so

    def _sweep(self) -> None:
        """Local files made just before a crash have numbers from the last range; whoever has no row is put away."""
        core = self._core
        end_of_range = core.inode_numbers.reserved_before
        with core.engine.read() as reader:
            begin = meta.get_int(reader, SWEPT) or 0
        begin = max(begin, end_of_range - core.settings.numbers_ahead)
        if begin >= end_of_range:
            return
        group = 1 << FILES_PER_DIRECTORY_BITS
        for first in range(begin - begin % group, end_of_range, group):
            for inode, version in list(core.spool.versions_near(Inode(first))):
                if inode >= begin and core.find(inode) is None and not self._is_known(inode, version):
                    core.spool.quarantine(inode, version)
        with core.engine.write() as tx:
            meta.set_int(tx, SWEPT, end_of_range)

    def _is_known(self, inode: Inode, version: Version) -> bool:
        """Whether a local file without an inode is known nevertheless: it goes soon, or when it was packed."""
        with self._core.engine.read() as reader:
            is_left = unpacked.find(reader, inode, version) is not None
            return is_left or reader.get(keys.dropped(inode, version)) is not None

    def _batches(self, start: bytes, stop: bytes) -> Iterator[list[bytes]]:
        """Keys of a range in batches, each read before the last one's changes could disturb it."""
        core = self._core
        while True:
            batch: list[bytes] = []
            with core.engine.read() as reader:
                for key, _ in reader.scan(start, stop):
                    batch.append(bytes(key))
                    if len(batch) >= _ROWS_PER_CHANGE_MAX:
                        break
            if not batch:
                return
            start = batch[-1] + b"\0"
            yield batch
