"""Custody: what can be vouched for of some files now, after a barrier, from rows and local bytes alone.

Nothing is remembered and nothing is changed. What is said was true at one moment between a first and a second look at
the same rows: a file that is another one at the second look is vouched for in no way. Any thread.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.custody import NAME_NOT_RECORDED, Custody, CustodyCopy, may_delete
from vnafs.domain.errors import NotFound, Refused, TooMuch
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, TargetName, Version
from vnafs.domain.repositories import Repository
from vnafs.index import (
    contents,
    copies,
    entries,
    feeds,
    inodes,
    keeping,
    keys,
    repositories,
    targets,
)
from vnafs.index.engine import Engine, Reader, prefix_stop
from vnafs.index.holds import Holds
from vnafs.index.inodes import InodeRow
from vnafs.local.spool import fingerprint_of
from vnafs.upkeep.manifests import Manifests

_REGULAR = stat.S_IFREG >> 12
LOOK_SECONDS = 0.1
"""Between two looks at whether manifests have reached a target."""
CHANGED = "it was changed, renamed or removed while it was looked at"
OTHER_BYTES = "its local bytes are not those that were sealed"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Some files as they were between two moments."""

    begun: Instant
    as_of: Instant
    files: tuple[Custody, ...]

    @property
    def not_safe(self) -> int:
        """How many the sender should keep."""
        return sum(1 for file in self.files if not may_delete(file).yes)

    @property
    def waits_for_names(self) -> bool:
        """Whether all that is missing is that some name reaches a target, which is a matter of a moment."""
        decisions = [decision for file in self.files if not (decision := may_delete(file)).yes]
        return bool(decisions) and all(decision.why == NAME_NOT_RECORDED for decision in decisions)

    @property
    def why(self) -> str:
        """What keeps the first of them, or nothing."""
        decisions = (may_delete(file) for file in self.files)
        return next((decision.why for decision in decisions if not decision.yes), "")


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    path: bytes
    inode: Inode
    row: InodeRow


class Custodian:
    """Looks at one archive's rows. *fold* makes everything answered so far visible in them."""

    def __init__(
        self,
        store: Engine,
        namespace: Engine,
        manifests: Manifests,
        local_path: Callable[[Inode, Version], str],
        *,
        fold: Callable[[], None],
        files_max: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._manifests = manifests
        self._local_path = local_path
        self._fold = fold
        self._files_max = files_max
        self._clock = clock

    def look(self, paths: Sequence[bytes], *, names_seconds_max: float = 0.0) -> Found:
        """Every regular file at or below *paths*, which are relative to the mount, in order of name.

        Waits up to *names_seconds_max* until their names are recorded on a target. Raises NotFound, TooMuch for more
        files than one receipt may have, Refused when the archive went on elsewhere, DaemonUnreachable.
        """
        if self._manifests.rival:
            raise Refused(what="Vouching for files", why=self._manifests.rival)
        begun = self._clock.now()
        self._fold()
        with self._namespace.read() as reader:
            seen = list(self._walk(reader, paths))
            held_by = Holds(reader)
            kept = [keeping.reasons(reader, held_by, file.inode, file.row) for file in seen]
            rules = {row.id: row for row in repositories.every(reader)}
            ends = (feeds.end(reader), 0)
        if not seen:
            raise NotFound(what="A file at or below what was asked for")
        with self._store.read() as reader:
            ends = (ends[0], feeds.end(reader))
        recorded = self._recorded(ends, names_seconds_max)
        held = [self._copies(file.row, recorded) for file in seen]
        trouble = [self._trouble(file) for file in seen]
        self._fold()
        with self._namespace.read() as reader:
            still = [_is_still(reader, file) for file in seen]
        return Found(
            begun,
            self._clock.now(),
            tuple(
                dataclasses.replace(
                    _custody(file, rules[file.row.repository], copies_of, why if is_same else CHANGED), holds=holds_of
                )
                for file, copies_of, why, is_same, holds_of in zip(seen, held, trouble, still, kept, strict=True)
            ),
        )

    # -- names -------------------------------------------------------------------------------------------------

    def _walk(self, reader: Reader, paths: Iterable[bytes]) -> Iterator[_Seen]:
        listed: set[bytes] = set()
        for path in paths:
            for found in _below(reader, path):
                if found.path in listed:
                    continue
                listed.add(found.path)
                if len(listed) > self._files_max:
                    raise TooMuch(
                        what="What was asked for",
                        limit=f"{self._files_max} files",
                        fix="Ask for one folder after the other, or set files_max below [receipts]",
                    )
                yield found

    # -- what is known of one file -----------------------------------------------------------------------------

    def _trouble(self, file: _Seen) -> str:
        """Local bytes count only as those that were sealed; a stub's are on targets alone."""
        row = file.row
        if row.seal is None or row.state is FileState.STUB:
            return ""
        try:
            now = fingerprint_of(os.stat(self._local_path(file.inode, row.version), follow_symlinks=False))
        except FileNotFoundError:
            return "" if row.state is FileState.REPLICATED else OTHER_BYTES  # its copies have its bytes
        return "" if now == row.seal.fingerprint else OTHER_BYTES

    def _copies(self, row: InodeRow, recorded: set[TargetName]) -> tuple[CustodyCopy, ...]:
        if row.seal is None:
            return ()
        with self._store.read() as reader:
            content = contents.find(reader, row.seal.sha256, row.repository)
            if content is None:
                return ()
            current = targets.current(reader)
            held = copies.verified_copies(reader, content.packs())
        return tuple(
            CustodyCopy(
                current[number].name,
                min(copy.verified for copy in those),
                tuple(sorted({copy.verified_by for copy in those})),
                current[number].name in recorded,
            )
            for number, those in sorted(held.items())
            if number in current
        )

    # -- what manifests say ------------------------------------------------------------------------------------

    def _recorded(self, ends: tuple[int, int], seconds_max: float) -> set[TargetName]:
        """The targets whose manifests say everything up to the ends of both feeds; waits until there is one."""
        until = self._clock.monotonic() + seconds_max
        hurried = False
        while not (found := self._up_to_date(ends)):
            left = until - self._clock.monotonic()
            if left <= 0:
                break
            if not hurried:
                self._manifests.hurry()
                hurried = True
            self._clock.sleep(min(LOOK_SECONDS, left))
        return found

    def _up_to_date(self, ends: tuple[int, int]) -> set[TargetName]:
        progress = self._manifests.progress()  # before the position, which only grows
        here = self._manifests.ledger.position()
        if here.namespace_cursor < ends[0] or here.store_cursor < ends[1]:
            return set()
        return {row.name for row in progress if row.sent.snapshot is not None and row.sent.number >= here.number}


def _below(reader: Reader, path: bytes) -> Iterator[_Seen]:
    """The regular files at or below one path, in order of name; links are followed nowhere."""
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    top = entries.follow(reader, parts)
    if top is None:
        raise NotFound(what=os.fsdecode(path))
    waiting = [(b"/".join(parts), top.inode, top.is_directory)]
    while waiting:
        here, inode, is_directory = waiting.pop()
        if not is_directory:
            row = inodes.find(reader, inode)
            if row is not None and row.is_file:
                yield _Seen(here, inode, row)
            continue
        below = []
        for key, value in reader.scan(keys.entries(inode), prefix_stop(keys.entries(inode))):
            entry, name = entries.decode(value), keys.entry_of(key)[1]
            if entry.is_directory or entry.kind == _REGULAR:
                below.append((here + b"/" + name if here else name, entry.inode, entry.is_directory))
        waiting.extend(reversed(below))


def _is_still(reader: Reader, file: _Seen) -> bool:
    """Whether the name still leads to the same bytes."""
    entry = entries.follow(reader, file.path.split(b"/"))
    row = None if entry is None or entry.inode != file.inode else inodes.find(reader, file.inode)
    if row is None or row.version != file.row.version:
        return False
    return row.seal == file.row.seal or _stayed_sealed(row, file.row)


def _stayed_sealed(now: InodeRow, before: InodeRow) -> bool:
    """Sealed in between, or recalled: the bytes are the same, and nothing was said of others."""
    return before.seal is None or (now.seal is not None and now.seal.sha256 == before.seal.sha256)


def _custody(file: _Seen, repository: Repository, held: tuple[CustodyCopy, ...], trouble: str) -> Custody:
    row = file.row
    return Custody(
        path=file.path,
        repository=repository,
        size_bytes=row.size_bytes,
        mtime_ns=row.mtime_ns,
        state=row.state,
        sha256=None if row.seal is None else row.seal.sha256,
        copies=held,
        trouble=trouble,
    )
