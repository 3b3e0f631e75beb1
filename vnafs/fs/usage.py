"""Usage: what each repository has, and whether it may have more.

Counted are inodes and the sizes of files as their rows say, in the transaction that changes the rows: nothing is ever
walked. While a file is open for write its local file is ahead of its row; by how much is kept here for repositories
with a limit of bytes, and forgotten when the row follows. Where the kernel writes past us that is learned when
somebody closes or looks, and about once a second.

One thread. Nothing here is durable but the counts, which `record` writes.
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Mapping

from vnafs.domain.errors import OverQuota
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.fs.handles import OpenFile
from vnafs.index import counts
from vnafs.index.counts import Count
from vnafs.index.engine import Reader, Transaction

_LOG = logging.getLogger(__name__)

WELL_BELOW = 0.95
"""Of a limit: used less than this, the next refusal is news for the log."""


Used = tuple[int, int]
"""Inodes and bytes."""
NOTHING: Used = (0, 0)


class Usage:
    """What is used, and the limits."""

    def __init__(self, reader: Reader) -> None:
        self._counts: dict[RepositoryId, Used] = dict(counts.every_used(reader))
        self._ahead: collections.Counter[RepositoryId] = collections.Counter()
        """Bytes by which local files of open files are larger than their rows, as last seen."""
        self._ahead_of: dict[Inode, tuple[RepositoryId, int]] = {}
        """The same of each file."""
        self._refused: set[RepositoryId] = set()
        """Where the log has said so already."""
        self._rules: Mapping[RepositoryId, Repository] = {}
        self.limited: frozenset[RepositoryId] = frozenset()
        """Repositories with a limit of bytes."""
        self.unseen: dict[Inode, tuple[RepositoryId, OpenFile]] = {}
        """Files in them that the kernel writes past us."""

    # -- counting -------------------------------------------------------------------------------------------

    def record(self, tx: Transaction, more: Mapping[RepositoryId, tuple[int, int]]) -> dict[RepositoryId, Used]:
        """Write down so many inodes and bytes more; what is used then, for `recorded` once that is committed."""
        found = {}
        for number, (files, size_bytes) in more.items():
            files_before, bytes_before = self._counts.get(number, NOTHING)
            found[number] = now = (files_before + files, bytes_before + size_bytes)
            counts.put_used(tx, number, *now)
        return found

    def recorded(self, found: Mapping[RepositoryId, Used]) -> None:
        """What `record` returned is committed."""
        self._counts.update(found)

    def of(self, number: RepositoryId) -> Count:
        """Inodes and bytes of a repository, with those of open files as far as they are known."""
        files, size_bytes = self._counts.get(number, NOTHING)
        return Count(files, size_bytes + self._ahead.get(number, 0))

    def note(self, number: RepositoryId, file: OpenFile, row_bytes: int, local_bytes: int | None = None) -> None:
        """The local file of one that is open for write has *local_bytes* (None: look), and its row says *row_bytes*."""
        if number not in self.limited or file.writing < 0:
            return
        size_bytes = os.fstat(file.writing).st_size if local_bytes is None else local_bytes
        ahead = size_bytes - row_bytes
        self._ahead[number] += ahead - self._ahead_of.get(file.inode, (number, 0))[1]
        self._ahead_of[file.inode] = number, ahead

    def settled(self, inode: Inode) -> None:
        """The row of a file says what its local file has, or is gone."""
        if self._ahead_of and (known := self._ahead_of.pop(inode, None)) is not None:
            self._ahead[known[0]] -= known[1]
        if self.unseen:
            self.unseen.pop(inode, None)

    # -- limits ---------------------------------------------------------------------------------------------

    def follow(self, rules: Mapping[RepositoryId, Repository]) -> frozenset[RepositoryId]:
        """Other rules; returns the repositories whose bytes are limited only now, whose open files are to be noted."""
        before, self._rules = self.limited, rules
        self.limited = frozenset(number for number, found in rules.items() if found.quota_bytes)
        self._refused &= rules.keys()
        return self.limited - before

    def claim_file(self, number: RepositoryId) -> None:
        """One more inode is about to be made. Raises OverQuota."""
        rules = self._rules.get(number)
        if rules is None or not rules.quota_files:
            return
        used = self.of(number).rows
        if used >= rules.quota_files:
            self._refuse(rules, "files", rules.quota_files, used, 1)
        self._fits(number, used, rules.quota_files)

    def claim_bytes(self, number: RepositoryId, more_bytes: int) -> None:
        """A file is about to grow by so much. Raises OverQuota; what does not grow is never refused."""
        rules = self._rules.get(number)
        if rules is None or not rules.quota_bytes or more_bytes <= 0:
            return
        used = self.of(number).size_bytes
        if used + more_bytes > rules.quota_bytes:
            self._refuse(rules, "bytes", rules.quota_bytes, used, more_bytes)
        self._fits(number, used, rules.quota_bytes)

    def has_room(self, number: RepositoryId, wanted_bytes: int) -> bool:
        """Whether a repository may have so many bytes more; claims nothing."""
        if number not in self.limited:
            return True
        return self.of(number).size_bytes + wanted_bytes <= self._rules[number].quota_bytes

    def _fits(self, number: RepositoryId, used: int, limit: int) -> None:
        if self._refused and used < limit * WELL_BELOW:
            self._refused.discard(number)

    def _refuse(self, rules: Repository, unit: str, limit: int, used: int, wanted: int) -> None:
        if rules.id not in self._refused:
            self._refused.add(rules.id)
            _LOG.warning("quota.reached", extra={"repository": rules.id, "unit": unit, "limit": limit, "used": used})
        fix = f"`vna repository set --quota-{unit}`"
        raise OverQuota(repository=rules.name, limit=limit, unit=unit, used=used, wanted=wanted, fix=fix)
