"""Protect: copy files that nobody lets be sealed, because somebody has them open for ever, as they are at a moment.

Finds versions that stay OPEN, remembers since when (`index.protections`), and makes a content of what their bytes are
now: from a clone, from a read during which nobody wrote, from one during which writers were held, or from two that
found the same. The tree is told nothing: the file stays OPEN, nothing is evicted for such a copy, and it is dropped
once the file has copies of its own. Nothing here holds up sealing: one file at a time, in a thread of its own, only
while packs find room.

One thread calls `step`; any thread may read `standing`. Every row is on stable storage before what it replaces is
forgotten.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Copy
from vnafs.domain.errors import NotFound, Suspect, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileState, Fingerprint, Seal, Verdict
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.index import condemned, contents, protections
from vnafs.index.engine import Engine
from vnafs.index.inodes import InodeRow
from vnafs.index.protections import Frozen, Protection
from vnafs.local.frozen import FrozenCopies, FrozenCopy
from vnafs.local.spool import fingerprint_of
from vnafs.pipeline.held import copies_of_content
from vnafs.pipeline.hints import hints_of
from vnafs.pipeline.namespace import Described, Namespace
from vnafs.pipeline.pack import Packer
from vnafs.pipeline.seal import Reading
from vnafs.pipeline.suspects import Suspects
from vnafs.pipeline.tree import Tree

log = logging.getLogger(__name__)

LOOKS_PER_AGE = 10
"""So often in `unprotected_seconds_max` files are looked at."""
LOOK_SECONDS_MIN = 0.2
LOOK_SECONDS_MAX = 30.0
RETRY_SECONDS_MIN = 10.0
"""After an attempt that failed; twice as long after each further one, up to the age at which files are copied."""
ATTEMPTS = 3
"""Reads of a file that goes on changing, before its writers are held for one more."""
COPY_SECONDS_MAX = 3600.0
FILES_MAX = 100_000
"""Followed at once; more than can be open."""
ROWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, slots=True)
class ProtectorSettings:
    """Times of protecting."""

    unprotected_seconds_max: float
    hold_seconds_max: float
    """How long the tree lets writers wait; 0 when never."""


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How files that stay open are protected, for status."""

    without_copy: int = 0
    without_copy_oldest_seconds: float = 0.0
    """For how long the first of them has been open."""
    with_copy: int = 0
    copy_oldest_seconds: float = 0.0
    """Age of the oldest copy among those that were changed since."""
    suspects: int = 0
    """Files of which the local disk did not keep all bytes, closed or not."""


@dataclasses.dataclass(frozen=True, slots=True)
class AsOf:
    """A copy of a file that stays open, with the targets that hold it verified."""

    frozen: Frozen
    copies: list[Copy]


def copy_as_of(store: Engine, inode: Inode) -> AsOf | None:
    """The youngest verified copy of a file that stays open, from any process that can read the store."""
    with store.read() as reader:
        row = protections.get(reader, inode)
    for frozen in row.copies() if row is not None else ():
        held = copies_of_content(store, frozen.sha256, row.repository) if row is not None else []
        if held:
            return AsOf(frozen, held)
    return None


# -- decisions ---------------------------------------------------------------------------------------------------------


def is_due(row: Protection, mark: Fingerprint, now: Instant, seconds_max: float) -> bool:
    """Whether a file that is open, and has this fingerprint now, is to be copied."""
    if row.coming is not None:
        return False  # one at a time: a target that is down must not fill the disk with copies
    kept = row.kept
    if kept is None or kept.version != row.version:
        return mark.size_bytes > 0 and _is_old(row.since, now, seconds_max)
    return mark != kept.fingerprint and _is_old(kept.taken, now, seconds_max)


def _is_old(since: Instant, now: Instant, seconds_max: float) -> bool:
    """A time in the future is one from before the clock was set back: as old as can be."""
    return not 0 <= now - since < seconds_max * NANOSECONDS


def followed(row: Protection, file: InodeRow | None, now: Instant) -> Protection | None:
    """The row as the file is now; None when there is nothing left to protect."""
    if file is None or not file.nlink or file.state in {FileState.REPLICATED, FileState.STUB}:
        return None
    if file.version != row.version and file.state is FileState.OPEN:
        return dataclasses.replace(row, version=file.version, since=now)
    return row


# -- the stage ---------------------------------------------------------------------------------------------------------


class Protector:
    """See the module. *ready* says whether packs would find room and a target now."""

    def __init__(  # noqa: PLR0913 - a stage's parts, each named where it is wired
        self,
        store: Engine,
        namespace: Namespace,
        tree: Tree,
        packer: Packer,
        copies: FrozenCopies,
        settings: ProtectorSettings,
        *,
        suspects: Suspects,
        local_path: Callable[[Inode, Version], str],
        ready: Callable[[], bool],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._tree = tree
        self._packer = packer
        self._copies = copies
        self._seconds_max = settings.unprotected_seconds_max
        self._hold_seconds_max = settings.hold_seconds_max
        self._local_path = local_path
        self._ready = ready
        self._clock = clock
        self._faults = faults
        self._pause = min(max(self._seconds_max / LOOKS_PER_AGE, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)
        self._look_at = clock.monotonic()
        self._seen: dict[tuple[Inode, Version], Instant] = {}
        """Open at the last look and without a row yet: most files are closed before they get one."""
        self._due: collections.deque[Inode] = collections.deque()
        self._failures: dict[Inode, tuple[int, float]] = {}
        """How often in a row a file could not be copied, and when to try again."""
        self._standing = Standing()
        self._suspects = suspects
        self._suspects_seen = 0

    @property
    def standing(self) -> Standing:
        """As of the last look."""
        return self._standing

    def step(self) -> bool:
        """Look at the files when it is time to, or copy one that is due; whether one was."""
        try:
            if self._clock.monotonic() >= self._look_at:
                self._look_at = self._clock.monotonic() + self._pause
                self._look()
            return self._copy_next()
        except VnaError as problem:
            log.warning("protect.later", extra={"why": str(problem)})
            return False

    # -- looking -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = self._clock.now()
        self._suspects_seen = 0
        waiting = self._waiting(now)
        with self._store.read() as reader:
            known = list(protections.every(reader))
        rows: list[Protection] = []
        for row in known:
            follows = followed(row, self._file(row.inode), now)
            moved = None if follows is None else self._arrived(follows)
            if moved is not row:
                self._write(row.inode, moved)
            if moved is not None:
                rows.append(moved)
        rows += self._found(waiting - {(row.inode, row.version) for row in rows}, now)
        self._judge(rows, waiting, now)

    def _waiting(self, now: Instant) -> set[tuple[Inode, Version]]:
        """Versions that are OPEN and not due: open for write, or put off again. Those that are due are sealed soon."""
        found: set[tuple[Inode, Version]] = set()
        after = Candidate(Inode(0), Version(0), FileState.OPEN, now)
        while batch := self._namespace.every(FileState.OPEN, limit=ROWS_AT_ONCE, after=after):
            found.update((candidate.inode, candidate.version) for candidate in batch)
            after = batch[-1]
            if len(found) >= FILES_MAX:
                log.warning("protect.too_many_open", extra={"files": len(found)})
                break
        return found

    def _file(self, inode: Inode) -> InodeRow | None:
        try:
            row = self._namespace.row(inode)
        except NotFound:
            return None
        self._suspects_seen += row.is_suspect
        return row

    def _found(self, strangers: set[tuple[Inode, Version]], now: Instant) -> Iterable[Protection]:
        """Rows for files that were open at the last look too."""
        before, self._seen = self._seen, {}
        for inode, version in sorted(strangers):
            since = before.get((inode, version))
            file = self._file(inode)
            if since is None or file is None or file.version != version or file.state is not FileState.OPEN:
                self._seen[inode, version] = now if since is None else since
                continue
            if version == 1:  # nothing of it can be older than itself, and tierd may have been away
                since = Instant(min(since, file.birth_ns))
            row = Protection(inode, file.repository, version, since)
            self._write(inode, row)
            yield row

    def _arrived(self, row: Protection) -> Protection:
        """A copy on its way is kept once a target has verified it; one whose pack was given up is made again."""
        if row.kept is not None and self._is_lost(row.kept, row.repository):
            row = dataclasses.replace(row, kept=None)
        coming = row.coming
        if coming is None or self._packer.has(coming.sha256, row.repository):
            return row
        if self._is_lost(coming, row.repository):
            return dataclasses.replace(row, coming=None)
        if not copies_of_content(self._store, coming.sha256, row.repository):
            return row
        self._faults.reach("protect.verified")
        log.info("protect.verified", extra={"inode": row.inode, "version": coming.version})
        return dataclasses.replace(row, kept=coming, coming=None)

    def _is_lost(self, copy: Frozen, repository: RepositoryId) -> bool:
        """Whether the store knows nothing, or nothing good, of a copy that is not in an open pack."""
        with self._store.read() as reader:
            content = contents.find(reader, copy.sha256, repository)
            is_lost = content is None or condemned.any_of(reader, content.packs())
        if is_lost:
            log.warning("protect.pack_lost", extra={"version": copy.version})
        return is_lost

    def _write(self, inode: Inode, row: Protection | None) -> None:
        with self._store.write() as tx:
            if row is None:
                protections.remove(tx, inode)
            else:
                protections.put(tx, row)

    def _judge(self, rows: list[Protection], waiting: set[tuple[Inode, Version]], now: Instant) -> None:
        """Which of them are due, and how they stand."""
        due: list[tuple[Instant, Inode]] = []
        without, with_copy = _Ages(now), _Ages(now)
        for row in rows:
            mark = self._mark(row)
            if mark is None or (row.inode, row.version) not in waiting:
                continue
            kept = row.kept
            if kept is None:
                without.add(row.since, counts=mark.size_bytes > 0)
            else:
                with_copy.add(kept.taken if mark != kept.fingerprint else now)
            if is_due(row, mark, now, self._seconds_max):
                due.append((kept.taken if kept else row.since, row.inode))
        self._due = collections.deque(inode for _, inode in sorted(due))
        followed_now = {row.inode for row in rows}
        self._failures = {inode: known for inode, known in self._failures.items() if inode in followed_now}
        self._standing = Standing(
            without.count, without.oldest_seconds, with_copy.count, with_copy.oldest_seconds, self._suspects_seen
        )

    def _mark(self, row: Protection) -> Fingerprint | None:
        try:
            return fingerprint_of(os.stat(self._local_path(row.inode, row.version), follow_symlinks=False))
        except OSError:
            return None  # on its way to another version: the next look finds it

    # -- copying -----------------------------------------------------------------------------------------------

    def _copy_next(self) -> bool:
        while self._due:
            inode = self._due.popleft()
            failures, not_before = self._failures.get(inode, (0, 0.0))
            if self._clock.monotonic() < not_before:
                continue
            if not self._ready():
                self._due.clear()
                return False
            try:
                done = self._copy(inode)
            except (VnaError, OSError) as problem:
                log.warning("protect.failed", extra={"inode": inode, "why": str(problem)})
                done = False
            if done:
                self._failures.pop(inode, None)
            else:
                self._failures[inode] = (failures + 1, self._clock.monotonic() + self._retry_seconds(failures))
            return True
        return False

    def _retry_seconds(self, failures: int) -> float:
        longest = max(RETRY_SECONDS_MIN, self._seconds_max)
        return float(min(longest, RETRY_SECONDS_MIN * 2.0 ** min(failures, 20)))

    def _copy(self, inode: Inode) -> bool:
        """Make a content of what a file is now; False when that could not be caught."""
        with self._store.read() as reader:
            row = protections.get(reader, inode)
        try:
            described = self._namespace.described(inode)
        except NotFound:
            return True
        file = described.row
        if row is None or file.version != row.version or file.state is not FileState.OPEN or not file.nlink:
            return True  # the next look follows it
        if file.is_suspect or (inode, row.version) in self._suspects:
            return True  # what is read of it need not be what was written
        taken = self._clock.now()
        try:
            copy = self._freeze(inode, row.version)
        except Suspect as problem:
            self._suspects.add(inode, row.version, problem)
            return True
        if copy is None:
            log.warning("protect.changes_too_fast", extra={"inode": inode, "version": row.version})
            return False
        try:
            self._faults.reach("protect.frozen")
            seal = self._pack(described, copy)
            self._faults.reach("protect.packed")
            if seal is not None:
                frozen = Frozen(row.version, seal.sha256, taken, copy.fingerprint)
                self._write(inode, dataclasses.replace(row, coming=frozen))
                self._faults.reach("protect.recorded")
        except (VnaError, OSError):
            self._copies.remove(copy)
            raise
        self._copies.remove(copy)
        log.info("protect.copied", extra={"inode": inode, "version": row.version})
        return seal is not None

    def _freeze(self, inode: Inode, version: Version) -> FrozenCopy | None:
        path, name = self._local_path(inode, version), f"{inode:x}.{version:x}"
        copy = self._copies.clone(path, name)
        attempt = 0
        while copy is None and attempt < ATTEMPTS:
            copy = self._copies.copy(path, name, seconds_max=COPY_SECONDS_MAX)
            attempt += 1
        return copy or self._freeze_held(inode, version, path, name)

    def _freeze_held(self, inode: Inode, version: Version, path: str, name: str) -> FrozenCopy | None:
        """The same while its writers wait; of those who cannot be held, what two readings find alike."""
        verdict = self._tree.hold(inode, version)
        if verdict is Verdict.UNHELD:
            return self._copies.copy_while_written(path, name, seconds_max=COPY_SECONDS_MAX)
        if verdict is not Verdict.DONE:
            return None
        self._faults.reach("protect.held")
        try:
            copy = self._copies.copy(path, name, seconds_max=self._hold_seconds_max)
        except VnaError:
            self._tree.let_go(inode, version)
            raise
        self._tree.let_go(inode, version)
        return copy

    def _pack(self, described: Described, copy: FrozenCopy) -> Seal | None:
        facts = described.facts
        hints = dataclasses.replace(hints_of(described), mtime_ns=copy.mtime_ns, is_open=True)
        repository = self._namespace.repository(facts.repository)
        candidate = Candidate(facts.inode, facts.version, FileState.OPEN, Instant(0))
        descriptor = os.open(copy.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return self._packer.keep(Reading(candidate, facts, descriptor, self._faults), repository, hints)
        finally:
            os.close(descriptor)


class _Ages:
    """How many, and how old the oldest is."""

    def __init__(self, now: Instant) -> None:
        self._now = now
        self.count = 0
        self.oldest_seconds = 0.0

    def add(self, since: Instant, *, counts: bool = True) -> None:
        if counts:
            self.count += 1
            self.oldest_seconds = max(self.oldest_seconds, (self._now - since) / NANOSECONDS)
