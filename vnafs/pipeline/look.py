"""Look: find versions that are due, have what was written to them put on stable storage, and hand them to workers.

Also those that are over and still to be packed. Reads queue rows, a bounded number at a time; knows nothing of what is
done with a version. One thread calls `look`; workers take what was found. Syncing a busy disk takes its time, so
nothing else waits for this thread.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import Inode, Version
from vnafs.index import meta
from vnafs.index.engine import Engine
from vnafs.local.syncing import FileSystemSync, Synced
from vnafs.pipeline.flights import Flights
from vnafs.pipeline.namespace import ANY_TIME, Namespace

CANDIDATES_MAX = 256
SEALED_LOOK_SECONDS = 5.0
SET_BACK_SECONDS = 60.0
"""A row that is due later than any quiet time and retry explains was made before the clock was set back."""
SYNC_FAILED = "spool.sync_failed"
"""When the spool's file system last failed to keep something."""

Found = tuple[Candidate, Synced]


class Lookout:
    """See the module."""

    def __init__(
        self,
        store: Engine,
        namespace: Namespace,
        flights: Flights,
        spool_folder: str,
        quiet_seconds: float,
        clock: Clock,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._flights = flights
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._found: queue.Queue[Found | None] = queue.Queue()
        self._sealed_look = clock.monotonic()
        with store.read() as reader:
            failed = meta.get_int(reader, SYNC_FAILED)
        self._disk = FileSystemSync(
            spool_folder, clock, failed=Instant(-1 if failed is None else failed), note=self._note_failure
        )

    def look(self) -> None:
        """Find what is due and put it before the workers."""
        self._dispatch(FileState.OPEN, self._clock.now())
        if self._clock.monotonic() >= self._sealed_look:
            # rows of versions that were in hand when a daemon died, and of packs that were lost
            self._dispatch(FileState.SEALED, ANY_TIME)
            self._begin(self._fresh(self._unpacked, None))
            self._dispatch_set_back()
            self._sealed_look = self._clock.monotonic() + SEALED_LOOK_SECONDS

    def take(self) -> Found | None:
        """The next one; waits for it. None once there are to be no more."""
        return self._found.get()

    def take_now(self) -> Found | None:
        """The next one if there is any."""
        try:
            return self._found.get_nowait()
        except queue.Empty:
            return None

    def stop(self, workers: int) -> None:
        """Let so many workers know that there are to be no more."""
        for _ in range(workers):
            self._found.put(None)

    def close(self) -> None:
        """Let go of the disk; nobody looks any more."""
        self._disk.close()

    def _dispatch(self, state: FileState, until: Instant, after: Candidate | None = None) -> None:
        def waiting(after: Candidate | None) -> list[Candidate]:
            return self._namespace.waiting(state, until=until, limit=CANDIDATES_MAX, after=after)

        self._begin(self._fresh(waiting, after))

    def _unpacked(self, after: Candidate | None) -> list[Candidate]:
        return self._namespace.unpacked(limit=CANDIDATES_MAX, after=after)

    def _begin(self, found: list[Candidate]) -> None:
        if not found:
            return
        synced = self._disk.sync()  # one for all of them
        for candidate in found:
            self._flights.begin(candidate)
            self._found.put((candidate, synced))

    def _dispatch_set_back(self) -> None:
        """Rows that an hour's step of the clock put into the future: they get a due time that will come."""
        latest = self._clock.now() + int((self._quiet_seconds + SET_BACK_SECONDS) * NANOSECONDS)
        self._dispatch(FileState.OPEN, ANY_TIME, Candidate(Inode(0), Version(0), FileState.OPEN, Instant(latest)))

    def _fresh(
        self, waiting: Callable[[Candidate | None], list[Candidate]], after: Candidate | None
    ) -> list[Candidate]:
        """Versions that wait and not in hand, as many as there is room for: the next look finds the others."""
        room = CANDIDATES_MAX - self._found.qsize()
        found: list[Candidate] = []
        while len(found) < room:
            batch = waiting(after)
            found += self._flights.fresh(batch)
            if len(batch) < CANDIDATES_MAX:
                break
            after = batch[-1]
        return found[:room]

    def _note_failure(self, when: Instant) -> None:
        with self._store.write() as tx:
            meta.set_int(tx, SYNC_FAILED, when)
        self._store.sync(self._store.position)
