"""Mirroring: keep one plain mirror like the tree, for other software to read.

One thread decides and notes (`Errands`), some others put and remove. The mirror has rows, a cursor and threads of its
own, so it holds up neither writers nor targets nor other mirrors, and it never counts as a copy. It begins, and begins
again when its cursor fell behind the feed, with a walk over the tree that goes on where a crash left it.

Names on a mirror are patient data: what is logged and shown of an error says what happened, never to which name.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.errors import (
    CursorLost,
    Damaged,
    NoSpace,
    ObjectExists,
    RecallFailed,
    StorageFailed,
    TargetError,
    TargetRefused,
    TargetUnavailable,
    VnaError,
)
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, RepositoryId, Sha256, TargetName, Version
from vnafs.domain.plainnames import LONG, METADATA, metadata_name, object_name, unescaped
from vnafs.domain.repositories import Repository
from vnafs.index import feeds, meta, mirrored
from vnafs.index.engine import Engine, Reader, Transaction
from vnafs.index.mirrored import Kind, Mirrored, Place, Work
from vnafs.local.turns import go_behind
from vnafs.targets.mirror import Mirror
from vnafs.targets.throttled import TokenBucket
from vnafs.upkeep import mirrormetadata
from vnafs.upkeep.mirrorerrands import Deed, Errands, Job, releasable
from vnafs.upkeep.mirrortree import MirroredTree, View
from vnafs.upkeep.stage import Stage

log = logging.getLogger(__name__)

FOLLOWER = "mirror"
CHOSEN = "mirror.chosen"
"""What was mirrored when the cursor was set; something else is walked over again."""
BEGUN = "mirror.begun"
"""The place was seen to be this mirror, in that epoch of the archive (and one more): in another one the rows may be
older than the mirror, and nothing of them is trusted."""
LOOK_SECONDS = 0.5
EVENTS_AT_ONCE = 2048
ERRANDS_AT_ONCE = 256
ERRANDS_MAX = 5000
"""A walk waits while so many names are to be looked at."""
HEARD_MAX = 100_000
"""While so many names are to be looked at, what else changed stays in the feed."""
FOUND_AT_ONCE = 1000
BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
BLOCK_BYTES = 1024 * 1024
STOP_SECONDS_MAX = 1.0
REFUSED_MAX = 10_000
OLDEST_LOOK_MAX = 10_000
PROGRESS_SECONDS = 60.0
"""Between two lines in the log while there is much to do."""

Bytes = Callable[[Sha256, RepositoryId], Iterator[bytes]]
"""A content from packs, compared. Raises RecallFailed and so on."""


@dataclasses.dataclass(frozen=True, slots=True)
class MirrorRules:
    """What an administrator says of a mirror."""

    url: str
    repositories: tuple[str, ...] = ()
    """All, unless some are named."""
    plain: bool = False
    """Encrypted repositories too."""
    keeps_removed: bool = False
    harm_seconds: float = 60.0
    """What is there is overwritten and removed this long after the tree changed."""
    transfers_max: int = 4
    bytes_per_second_max: int = 0

    def chosen(self, repository: Repository) -> bool:
        """Whether a repository is mirrored."""
        return self.names(repository) and (self.plain or not repository.encrypted)

    def names(self, repository: Repository) -> bool:
        """Whether a repository is meant, whatever else is in the way."""
        return not self.repositories or repository.name in self.repositories


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How a mirror does, for status."""

    reachable: bool
    why: str
    waiting: int
    """Names and folders that may differ."""
    walks: int
    """Folders that are still to be walked over."""
    held: int
    """What is not overwritten or removed until a tripwire is reset."""
    failing: int
    """Of those that were looked at soonest, how many were tried in vain."""
    objects: int
    size_bytes: int
    oldest_seconds: float
    """Since the oldest change that the mirror has not."""
    unread_events: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    job: Job
    problem: Exception | None = None
    was_sent: bool = False
    sha256: Sha256 | None = None
    size_bytes: int = 0


class Mirroring:
    """See the module. *local_path* and *bytes_of* are where the bytes of a version come from."""

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        rows: Engine,
        namespace: Engine,
        mirror: Mirror,
        rules: MirrorRules,
        folder: str,
        *,
        local_path: Callable[[Inode, Version], str],
        bytes_of: Bytes,
        taking_room: Callable[[int], contextlib.AbstractContextManager[None]],
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self.mirror = mirror
        self.rules = rules
        self.rows = rows
        self._tree = MirroredTree(namespace, rules.chosen)
        self._folder = folder
        self._local_path = local_path
        self._bytes_of = bytes_of
        self._taking_room = taking_room
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        rate = rules.bytes_per_second_max
        self._bucket = TokenBucket(rate, clock) if rate else None
        self._lock = threading.Lock()
        self._done: list[_Outcome] = []
        self._flying: set[Place] = set()
        """Handed to the threads that transfer, and not noted yet."""
        self._transfers = 0
        """Under way at this moment."""
        self._reachable, self._why = True, ""
        self._why_not_one = ""
        """Why the last name that alone failed did."""
        self._successes = 0
        self._refused: dict[Place, int] = {}
        """Names that were refused, and how many had come through when they were first."""
        self._failures = 0
        self._not_before = clock.monotonic()
        self._said = clock.monotonic()
        self.is_begun = False
        """The place was seen to be this mirror, in this run."""
        self._serial = 0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._thread = threading.Thread(target=self._run, name=f"mirror-{mirror.name}", daemon=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))  # staged for an earlier process

    @property
    def name(self) -> TargetName:
        """The mirror's."""
        return self.mirror.name

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._pool = concurrent.futures.ThreadPoolExecutor(self.rules.transfers_max, f"mirror-{self.name}")
        self._thread.start()

    def hurry(self) -> None:
        """Forget the back-off: an administrator says that the mirror is well again."""
        self._not_before = self._clock.monotonic()
        self._wake.set()

    def ask_to_stop(self) -> None:
        """Let it end; what is under way is done again by the next run."""
        self._stopping.set()
        self._wake.set()

    def join(self, seconds_max: float = STOP_SECONDS_MAX) -> bool:
        """Wait for its end; whether that came. A transfer that hangs ends with the process."""
        until = time.monotonic() + seconds_max
        if self._thread.is_alive():
            self._thread.join(seconds_max)
        if self._pool is not None and not self._thread.is_alive():
            self._pool.shutdown(wait=False, cancel_futures=True)
            while self._transfers and time.monotonic() < until:
                time.sleep(0.02)
        return not self._thread.is_alive() and not self._transfers

    def _run(self) -> None:
        go_behind()
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                if not self.step():
                    self._wake.wait(LOOK_SECONDS)
        except BaseException as problem:
            self._fatal(problem)

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Note what was done, hear what changed, and do a little; whether there was anything.

        Without `start` the mirror is changed in this thread.
        """
        try:
            if not self.is_begun:
                if self._clock.monotonic() < self._not_before:
                    return False
                self._begin()
            jobs, moved = self._decide()
        except NoSpace as problem:
            log.warning("mirror.no_space", extra={"target": self.name, "why": str(problem)})
            self._not_before = self._clock.monotonic() + BACKOFF_SECONDS_MIN
            return False
        except TargetError as problem:
            self._fell_back(problem)
            return False
        for job in jobs:
            if self._pool is None:
                self._fly(job)
            else:
                self._pool.submit(self._fly, job)
        return moved or bool(jobs)

    def _decide(self) -> tuple[list[Job], bool]:
        with self._lock:
            done = list(self._done)
        with self._tree.view() as view:
            if not done and not self._has_work(view):
                return [], False
            with self.rows.write() as tx:
                now = self._clock.now()
                errands = Errands(
                    tx, view, now, keeps_removed=self.rules.keeps_removed, harm_seconds=self.rules.harm_seconds
                )
                self._note(errands, tx, done)
                heard = self._hear(errands, tx, view)
                released = errands.release(ERRANDS_AT_ONCE)
                ended = {outcome.job.place for outcome in done}
                jobs, looked = self._take(errands, tx, now, self._flying - ended)
        self.rows.sync(self.rows.position)
        with self._lock:
            del self._done[: len(done)]
            self._flying -= ended
            self._flying |= {job.place for job in jobs}
        self._faults.reach("mirror.noted")
        self._say()
        return jobs, bool(done or heard or released or looked)

    def _has_work(self, view: View) -> bool:
        with self.rows.read() as reader:
            if feeds.cursor_of(reader, FOLLOWER) != view.feed_end() and self._may_hear(reader):
                return True
            return bool(releasable(reader, view) or self._candidates(reader, self._clock.now(), self._flying))

    @staticmethod
    def _may_hear(reader: Reader) -> bool:
        return mirrored.count(reader, mirrored.ERRANDS) < HEARD_MAX

    def _hear(self, errands: Errands, tx: Transaction, view: View) -> int:
        if not self._may_hear(tx):
            return 0
        self._note_chosen(tx, view)
        try:
            events = view.events(feeds.cursor_of(tx, FOLLOWER), EVENTS_AT_ONCE)
        except CursorLost as lost:
            log.warning("mirror.walked_anew", extra={"target": self.name, "why": str(lost)})
            feeds.set_cursor(tx, FOLLOWER, view.feed_end())
            errands.walk_later(())
            return 1
        for _, event in events:
            errands.hear(event)
        if events:
            feeds.set_cursor(tx, FOLLOWER, events[-1][0] + 1)
        return len(events)

    def _candidates(self, reader: Reader, now: Instant, flying: Set[Place]) -> list[Place]:
        """What is due and nobody has in hand, if there is a hand; walks only while there is little else to do."""
        if self._clock.monotonic() < self._not_before or self._stopping.is_set() or self._slots(flying) < 1:
            return []
        # what was put off before the clock was set back shall not wait for long
        late = now + int(2 * (BACKOFF_SECONDS_MAX + self.rules.harm_seconds) * NANOSECONDS)
        found = []
        for due, place in mirrored.due(reader, ERRANDS_AT_ONCE + len(flying)):
            if place not in flying and not now < due <= late:
                found.append(place)
        if mirrored.count(reader, mirrored.ERRANDS) < ERRANDS_MAX:
            walks = [place for _, place in mirrored.due(reader, 1 + len(flying), walks=True)]
            found += [place for place in walks if place not in flying][:1]
        return found

    def _slots(self, flying: Set[Place]) -> int:
        """How many more may be under way: some wait for each that is; while the mirror is down, one tries."""
        most = 1 if self._failures else 2 * self.rules.transfers_max
        return most - len(flying)

    def _take(self, errands: Errands, tx: Transaction, now: Instant, flying: Set[Place]) -> tuple[list[Job], int]:
        jobs: list[Job] = []
        looked = 0
        for place in self._candidates(tx, now, flying):
            if len(jobs) >= self._slots(flying):
                break
            looked += 1
            job = errands.run(place)
            if job is not None:
                jobs.append(job)
        return jobs, looked

    # -- the beginning -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Know the place, and walk over everything unless it was all walked over before. Raises TargetError."""
        with self._tree.view() as view, self.rows.read() as reader:
            begun, epoch = meta.get_int(reader, BEGUN), view.epoch() + 1
        was_one = self.mirror.probe(known=begun is not None)
        if was_one and begun != epoch:
            mirrored.doubted(self.rows, self._clock.now(), FOUND_AT_ONCE)
            self._adopt()
        with self._tree.view() as view, self.rows.write() as tx:
            meta.set_int(tx, BEGUN, epoch)
            if begun != epoch:
                meta.remove(tx, CHOSEN)
            if self._note_chosen(tx, view):
                feeds.set_cursor(tx, FOLLOWER, view.feed_end())
                Errands(tx, view, self._clock.now(), keeps_removed=False, harm_seconds=0.0).walk_later(())
        self.is_begun = True
        self._succeeded()

    def _note_chosen(self, tx: Transaction, view: View) -> bool:
        """Whether something else is mirrored than when it was noted. What changes while we run the feed tells too."""
        chosen = b"\0".join(sorted(view.chosen)) + (b"\0keep" if self.rules.keeps_removed else b"\0follow")
        if meta.get_bytes(tx, CHOSEN) == chosen:
            return False
        meta.set_bytes(tx, CHOSEN, chosen)
        return True

    def _adopt(self) -> None:
        """The place was this archive's mirror, and what it has is not known: look at every name of it."""
        names = self.mirror.list()
        while batch := list(itertools.islice(names, FOUND_AT_ONCE)):
            with self.rows.write() as tx:
                for name in batch:
                    self._adopt_one(tx, name)
        log.info("mirror.adopted", extra={"target": self.name})

    def _adopt_one(self, tx: Transaction, name: str) -> None:
        if name.startswith(f"{LONG}/"):
            if not self.rules.keeps_removed:
                self.mirror.remove(name)  # its path is not known; what the tree has is put again
            return
        text = name.split("/")
        if not all(text) or any("\ud800" <= character <= "\udfff" for character in name):
            return  # somebody else's: no name of ours has an empty part or bytes that are not UTF-8
        parts = tuple(unescaped(part) for part in text[:-1])
        now = self._clock.now()
        for depth in range(len(parts)):  # a folder is found by its name in the one above, or by a walk
            place = Place(mirrored.put_path(tx, parts[:depth]), parts[depth])
            known = mirrored.find(tx, place)
            if known is None or not known.is_present:
                mirrored.put(tx, place, Mirrored(Kind.FOLDER))
            elif known.kind is not Kind.FOLDER:
                below = Place(mirrored.put_path(tx, parts[: depth + 1]), b"")
                mirrored.mark(tx, below, now, work=Work.WALK | Work.METADATA)
        if text[-1] == METADATA and metadata_name(parts) == name:
            place = Place(mirrored.put_path(tx, parts), b"")
            mirrored.put(tx, place, Mirrored(Kind.METADATA, is_present=True, is_in_doubt=True))
            mirrored.mark(tx, place, now, work=Work.METADATA)
        elif parts and object_name((*parts, unescaped(text[-1]))) == name:
            place = Place(mirrored.put_path(tx, parts), unescaped(text[-1]))
            known = mirrored.find(tx, place)
            if known is not None and known.kind is Kind.FOLDER:  # objects below it were seen already
                below = Place(mirrored.put_path(tx, (*parts, place.leaf)), b"")
                mirrored.mark(tx, below, now, work=Work.WALK | Work.METADATA)
            mirrored.put(tx, place, Mirrored(Kind.FILE, is_present=True, is_in_doubt=True))
            mirrored.mark(tx, place, now)

    # -- on the mirror -------------------------------------------------------------------------------------------

    def _fly(self, job: Job) -> None:
        with self._lock:
            self._transfers += 1
        try:
            if self._stopping.is_set():  # nobody waits for one that has not begun
                return
            outcome = self._do(job)
            with self._lock:
                self._done.append(outcome)
        except BaseException as problem:
            if self._pool is None:
                raise
            self._fatal(problem)
        finally:
            with self._lock:
                self._transfers -= 1
            self._wake.set()

    def _do(self, job: Job) -> _Outcome:
        sent = False
        try:
            if job.deed is Deed.REMOVE:
                sent = True
                self.mirror.remove(job.name)
                self._faults.reach("mirror.removed")
                return _Outcome(job)
            if job.original is not None:
                sent = True
                if self.mirror.copy(job.original, job.name, job.mtime_ns):
                    self._faults.reach("mirror.put")
                    return _Outcome(job, sha256=job.original.sha256, size_bytes=job.original.size_bytes)
            with self._gathered(job) as stage:
                if job.before is not None and not job.before.is_in_doubt and job.before.sha256 == stage.sha256:
                    return _Outcome(job, sha256=stage.sha256, size_bytes=stage.size_bytes)  # so it describes already
                if self._bucket is not None:
                    self._bucket.take(stage.size_bytes)
                self._faults.reach("mirror.staged")
                sent = True
                self.mirror.replace(job.name, stage.body(), job.mtime_ns)
                self._faults.reach("mirror.put")
                return _Outcome(job, sha256=stage.sha256, size_bytes=stage.size_bytes)
        except StorageFailed:
            raise
        except (VnaError, OSError) as problem:
            return _Outcome(job, problem, sent)

    def _stage(self) -> Stage:
        with self._lock:
            self._serial += 1
            path = os.path.join(self._folder, f"{self._serial:x}")
        return Stage(path, self._taking_room)

    @contextlib.contextmanager
    def _gathered(self, job: Job) -> Iterator[Stage]:
        """What is to be put: of a version the local bytes if they are what was sealed, else those from packs."""
        if job.row is not None and job.row.seal is not None and job.row.state is not FileState.STUB:
            with self._stage() as stage:
                if self._is_local(self._local_path(job.inode, job.row.version), job, stage):
                    yield stage
                    return
        with self._stage() as stage:
            if job.sha256 is None:
                self._describe(job, stage)
            else:
                for block in self._bytes_of(job.sha256, job.repository):
                    stage.add(block)
            yield stage

    @staticmethod
    def _is_local(path: str, job: Job, stage: Stage) -> bool:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            while block := os.read(file, BLOCK_BYTES):
                stage.add(block)
        except OSError as problem:
            log.warning("mirror.unreadable", extra={"inode": job.inode, "why": os.strerror(problem.errno or 0)})
            return False
        finally:
            os.close(file)
        return stage.sha256 == job.sha256

    def _describe(self, job: Job, stage: Stage) -> None:
        with self._tree.view() as view, self.rows.read() as reader:
            for line in mirrormetadata.lines(view, reader, job.parts, job.inode):
                stage.add(line)

    # -- what became of it ---------------------------------------------------------------------------------------

    def _note(self, errands: Errands, tx: Transaction, done: Sequence[_Outcome]) -> None:
        failures = []
        for outcome in done:
            if outcome.problem is None:
                self._successes += 1
                self._refused.pop(outcome.job.place, None)
                errands.done(outcome.job, outcome.sha256, outcome.size_bytes)
            elif self._failed(errands, tx, outcome, outcome.problem):
                failures.append(outcome.problem)
        if any(outcome.problem is None for outcome in done):
            self._succeeded()  # one name alone does not hold up all others
        elif failures:
            self._fell_back(failures[0])

    def _failed(self, errands: Errands, tx: Transaction, outcome: _Outcome, problem: Exception) -> bool:
        """Whether the mirror itself is to blame."""
        job = outcome.job
        if isinstance(problem, RecallFailed) and job.row is not None and job.row.seal is None:
            errands.given_up(job)
            return False
        errand = mirrored.errand_at(tx, job.place)
        attempts = 0 if errand is None else errand.attempts
        seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2 ** min(attempts, 10))
        errands.failed(job, seconds, was_sent=outcome.was_sent)
        self._why_not_one = _without_names(problem)
        if isinstance(problem, TargetUnavailable | TargetRefused) and not self._is_refused_alone(job, problem):
            return True
        log.warning("mirror.later", extra={"target": self.name, "inode": job.inode, "why": self._why_not_one})
        return False

    def _is_refused_alone(self, job: Job, problem: Exception) -> bool:
        """Whether others came through since this one was refused first: then it is no news of the mirror."""
        if not isinstance(problem, TargetRefused):
            return False
        if len(self._refused) > REFUSED_MAX:
            self._refused.clear()
        return self._successes > self._refused.setdefault(job.place, self._successes)

    def _succeeded(self) -> None:
        if not self._reachable:
            log.info("mirror.back", extra={"target": self.name})
        self._reachable, self._why, self._failures = True, "", 0

    def _fell_back(self, problem: Exception) -> None:
        self._failures += 1
        self._reachable, self._why = False, _without_names(problem)
        asked = problem.fields.get("retry_after_seconds") if isinstance(problem, VnaError) else None
        seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2 ** min(self._failures - 1, 10))
        if isinstance(asked, int | float):
            seconds = max(seconds, asked)
        self._not_before = self._clock.monotonic() + seconds
        log.warning("mirror.waits", extra={"target": self.name, "seconds": seconds, "why": self._why})

    def _say(self) -> None:
        if self._clock.monotonic() - self._said < PROGRESS_SECONDS:
            return
        self._said = self._clock.monotonic()
        with self.rows.read() as reader:
            counts = {
                "objects": mirrored.count(reader, mirrored.OBJECTS),
                "waiting": mirrored.count(reader, mirrored.ERRANDS),
                "walks": mirrored.count(reader, mirrored.WALKS),
            }
        log.info("mirror.progress", extra={"target": self.name, **counts})

    # -- for status ----------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """How it does now."""
        now = self._clock.now()
        with self._tree.view() as view, self.rows.read() as reader:
            soonest = [place for _, place in mirrored.due(reader, OLDEST_LOOK_MAX)]
            soonest += [place for _, place in mirrored.due(reader, 1, walks=True)]
            errands = [errand for place in soonest if (errand := mirrored.errand_at(reader, place)) is not None]
            oldest = min((errand.since for errand in errands), default=now)
            failing = sum(errand.attempts > 0 for errand in errands)
            return Standing(
                self._reachable,
                self._why or (self._why_not_one if failing else ""),
                mirrored.count(reader, mirrored.ERRANDS),
                mirrored.count(reader, mirrored.WALKS),
                mirrored.count(reader, mirrored.HELD),
                failing,
                mirrored.count(reader, mirrored.OBJECTS),
                mirrored.count(reader, mirrored.BYTES),
                max(0.0, (now - oldest) / NANOSECONDS),
                max(0, view.feed_end() - feeds.cursor_of(reader, FOLLOWER)),
            )

    def left_out(self, repositories: Sequence[Repository]) -> list[str]:
        """Repositories that are meant and not mirrored, because a mirror is plain text and they are encrypted."""
        return [one.name for one in repositories if self.rules.names(one) and not self.rules.chosen(one)]

    def in_plain(self, repositories: Sequence[Repository]) -> list[str]:
        """Encrypted repositories whose bytes are on the mirror in plain text."""
        return [one.name for one in repositories if one.encrypted and self.rules.chosen(one)]


def _without_names(problem: Exception) -> str:
    """What may be logged and shown of an error; one about an object could name it."""
    if isinstance(problem, TargetUnavailable | TargetRefused | ObjectExists | RecallFailed | NoSpace | Damaged):
        return str(problem)
    return type(problem).__name__
