"""The drill: the worst day rehearsed. An index is rebuilt from one target alone, compared, and files are read back.

Nothing of the running archive is used but what it is compared with at the end: manifests, packs and, of an encrypted
archive, the keyring come from the target, and the secret is the recovery key. What changed since the last segment is
counted, and is no difference. The target is only read. One thread; what it makes lies in a scratch folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import stat
from collections.abc import Iterator
from typing import NoReturn

from vnafs.domain.clock import Clock
from vnafs.domain.errors import VnaError
from vnafs.domain.faults import NoFaults
from vnafs.domain.ids import Inode, RepositoryId, Sha256, TargetName
from vnafs.domain.repositories import Repository
from vnafs.index import entries, inodes, keys
from vnafs.index.engine import Engine, Reader, in_batches, prefix_stop
from vnafs.index.inodes import InodeRow
from vnafs.pipeline.budgets import Budgets
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.recall import Recaller
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.thawing import Thaws
from vnafs.targets.port import Target
from vnafs.upkeep import restore
from vnafs.upkeep.restored import TARGET_NUMBER, Progress

DIFFERENCES_MAX = 100
"""Told by name; more are only counted."""
ROWS_AT_ONCE = 2000
FILE_BYTES_MAX = 1 << 30
"""A larger file is not drawn: its time would say nothing of the others'."""


@dataclasses.dataclass(slots=True)
class Drill:
    """What a drill came to. Differences are of inodes, never of names."""

    target: str
    began_ns: int = 0
    recorded_ns: int = 0
    """The moment that the target knows."""
    number: int = 0
    """Of the last segment that was used."""
    index_seconds: float = 0.0
    first_file_seconds: float = 0.0
    """From the beginning until the first file was whole; 0 when none was read."""
    seconds: float = 0.0
    files: int = 0
    """In the rebuilt index."""
    rows_equal: int = 0
    changed_since: int = 0
    on_their_way: int = 0
    """Files that were recorded before they had copies: they are no loss of the target's."""
    differences: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    files_read: int = 0
    bytes_read: int = 0
    unreadable: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    """Of manifests."""

    @property
    def passed(self) -> bool:
        """Whether everything was there and right."""
        return not (self.differences or self.unreadable or self.problems)

    def differs(self, what: str) -> None:
        """Note a difference."""
        self.differences += 1
        if len(self.examples) < DIFFERENCES_MAX:
            self.examples.append(what)


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """A file whose bytes are read back."""

    inode: Inode
    repository: RepositoryId
    sha256: Sha256


class Rehearsal:
    """See the module. *scratch*: an empty namespace and store; *folders*: for staged files and fetched packs.

    *live* is the running archive's namespace, *key_ring* what the recovery key opened on the target.
    """

    def __init__(
        self,
        target: Target,
        live: Engine,
        scratch: tuple[Engine, Engine],
        folders: tuple[str, str],
        key_ring: Keys | None,
        *,
        dice: random.Random,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self._target = target
        self._live = live
        self._namespace, self._store = scratch
        self._folders = folders
        self._key_ring = key_ring
        self._dice = dice
        self._clock = clock
        self._progress = progress
        self._began = clock.monotonic()
        self._drill = Drill(target.name, clock.now())

    def hold(self, files_max: int) -> Drill:
        """Restore, compare, read so many files back; once.

        Raises NotFound when the target has no usable manifests, and what the target raises.
        """
        found = restore.rebuild(
            self._target,
            "drill://scratch",
            self._namespace,
            self._store,
            name=lambda _: TargetName("drill"),
            clock=self._clock,
            progress=self._progress,
            secrets=None if self._key_ring is None else self._key_ring.manifests(),
        )
        drill = self._drill
        drill.index_seconds = self._seconds()
        drill.recorded_ns, drill.files, drill.problems = found.recorded_ns, found.files, found.problems
        drill.number = found.number
        lacking = found.without_bytes + found.older_bytes
        drill.on_their_way = len(found.on_their_way)
        drill.unreadable = lacking - drill.on_their_way
        self._read(self._compare(files_max, found.on_their_way))
        drill.seconds = self._seconds()
        return drill

    def _seconds(self) -> float:
        return round(self._clock.monotonic() - self._began, 2)

    def _compare(self, files_max: int, on_their_way: set[Inode]) -> list[Drawn]:
        """Compare every row with the running archive's; files drawn from all of them with equal chance."""
        drawn: list[Drawn] = []
        seen = 0
        for number, row in self._compared(on_their_way):
            if row.is_file and row.seal is not None and 0 < row.size_bytes <= FILE_BYTES_MAX:
                seen += 1
                file = Drawn(number, row.repository, row.seal.sha256)
                if len(drawn) < files_max:
                    drawn.append(file)
                elif (place := self._dice.randrange(seen)) < files_max:
                    drawn[place] = file
        return sorted(drawn, key=lambda file: file.inode)

    def _compared(self, on_their_way: set[Inode]) -> Iterator[tuple[Inode, InodeRow]]:
        """The rebuilt rows, each compared with what is there now."""
        done = 0
        for batch in in_batches(self._namespace, keys.INODES, ROWS_AT_ONCE):
            rows = [(Inode(keys.number_of(key)), inodes.decode(value)) for key, value in batch]
            with self._namespace.read() as there, self._live.read() as here:
                for number, row in rows:
                    if number not in on_their_way:
                        _compare_row(number, row, there, here, self._drill)
            yield from (found for found in rows if found[0] not in on_their_way)
            done += len(batch)
            self._progress("comparing", done, None)

    def _read(self, drawn: list[Drawn]) -> None:
        recaller = self._recaller()
        for done, file in enumerate(drawn):
            self._progress("reading files back", done, len(drawn))
            try:
                self._drill.bytes_read += recaller.check(file.sha256, file.repository)
            except VnaError as problem:
                self._drill.unreadable += 1
                self._drill.differs(f"inode {file.inode}: {problem}")
                continue
            self._drill.files_read += 1
            self._drill.first_file_seconds = self._drill.first_file_seconds or self._seconds()

    def _recaller(self) -> Recaller:
        """One that has this target and nothing else."""
        staging, cache = self._folders
        shelf = Shelf(
            staging,
            cache,
            self._store,
            sources=lambda: {TARGET_NUMBER: self._target},
            has_room=lambda _: False,
            spare_room=lambda _: contextlib.nullcontext(),
            cache_bytes_max=0,
            budgets=Budgets(self._store, lambda number: Repository(number, "drill"), self._clock),
            thaws=Thaws(self._store, self._clock),
        )
        return Recaller(
            self._store,
            shelf,
            staging,
            self._key_ring,
            taking_room=lambda _: contextlib.nullcontext(),
            parts_bytes_max=0,
            clock=self._clock,
            faults=NoFaults(),
            fatal=_raise,
        )


def _compare_row(number: Inode, row: InodeRow, there: Reader, here: Reader, report: Drill) -> None:
    now = inodes.find(here, number)
    if now is None or now.ctime_ns != row.ctime_ns:
        report.changed_since += 1
        return
    if _shown(row) != _shown(now):
        report.differs(f"inode {number}: attributes")
    elif row.is_file and row.version == now.version and now.seal is not None and _bytes(row) != _bytes(now):
        report.differs(f"inode {number}: the bytes are others")
    elif stat.S_ISDIR(row.mode) and not _same(_names(there, number), _names(here, number)):
        report.differs(f"inode {number}: names in the directory")
    elif not _same(_tags(there, number), _tags(here, number)):
        report.differs(f"inode {number}: extended attributes")
    else:
        report.rows_equal += 1


def _shown(row: InodeRow) -> tuple[int, ...]:
    return row.mode, row.uid, row.gid, row.nlink, row.mtime_ns, row.birth_ns, row.rdev


def _bytes(row: InodeRow) -> tuple[int, bytes | None]:
    return row.size_bytes, None if row.seal is None else row.seal.sha256


def _same(there: Iterator[object], here: Iterator[object]) -> bool:
    """Whether both give the same in the same order; neither has to fit into memory."""
    return all(one == other for one, other in itertools.zip_longest(there, here))


def _names(reader: Reader, parent: Inode) -> Iterator[tuple[bytes, Inode]]:
    prefix = keys.entries(parent)
    for key, value in reader.scan(prefix, prefix_stop(prefix)):
        yield keys.entry_of(bytes(key))[1], entries.decode(bytes(value)).inode


def _tags(reader: Reader, number: Inode) -> Iterator[tuple[bytes, bytes]]:
    prefix = keys.xattrs(number)
    for key, value in reader.scan(prefix, prefix_stop(prefix)):
        yield bytes(key), bytes(value)


def _raise(problem: BaseException) -> NoReturn:
    raise problem
