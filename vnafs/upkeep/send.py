"""Sending: bring the ledger to one target, in order, and notice when somebody else wrote there.

A thread for each target, so that a dead one delays nobody. Every object is created exclusively and verified; then a
row says that the target has it. A name that is taken by other bytes of the same archive is a rival's: an older state
of this machine came back, or a copy of it runs. Nothing is sent then, to no target, until an administrator decides.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator

from vnafs.content import manifest
from vnafs.content.manifest import Header, Kind, Operation
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import (
    Damaged,
    FormatUnknown,
    KeyMissing,
    ObjectExists,
    ObjectMissing,
    Superseded,
    TargetError,
    TargetUnavailable,
    VnaError,
)
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ObjectName, Sha256, Span, TargetName
from vnafs.index.engine import Engine
from vnafs.local.quarantine import Quarantine
from vnafs.pipeline.aside import about_manifest, from_target, keep_object
from vnafs.pipeline.keys import Keys
from vnafs.targets.body import BytesBody
from vnafs.targets.discarding import discard
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify
from vnafs.upkeep.heads import head_of
from vnafs.upkeep.ledger import (
    Ledger,
    Position,
    Sent,
    digest_of,
    oldest_of,
    sent,
    set_oldest,
    set_sent,
    trim_wanted,
)
from vnafs.upkeep.trim import Trim

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
TRIM_SECONDS = 6 * 3600.0
"""Between two trims of a target."""
TRIM_AGAIN_SECONDS = 600.0
"""After one that did not go to its end."""
OBJECT_BYTES_MAX = 300 * 1024 * 1024
"""Read of what is at a name of ours."""


class Send:
    """See the module.

    *rival* is told why, once; *rotten* of a local object that is not what was written. *epoch* is the archive's, and
    *go_on_after* is told of a number that an earlier life of the archive used up on this target. *keys* are those of
    an encrypted archive. What is older than *kept_seconds* and needed by no restore is removed there; 0: nothing is.
    What is looked at again and wrong is kept in *quarantine*, if there is one, before it is put again.
    """

    def __init__(  # noqa: PLR0913 - what it sends, where, and whom it tells, each named where it is wired
        self,
        number: int,
        target: Target,
        capabilities: Callable[[], Capabilities],
        ledger: Ledger,
        store: Engine,
        archive: bytes,
        *,
        clock: Clock,
        faults: Faults,
        rival: Callable[[str], None],
        rotten: Callable[[ObjectName], None],
        epoch: Callable[[], int],
        go_on_after: Callable[[int], None],
        keys: Keys | None = None,
        kept_seconds: float = 0.0,
        quarantine: Quarantine | None = None,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._quarantine = quarantine
        self._kept_seconds = kept_seconds
        self._trim_not_before = clock.monotonic()
        self.number = number
        self.target = target
        self.why = ""
        """What keeps this target from being up to date, if anything."""
        self._capabilities = capabilities
        self._ledger = ledger
        self._store = store
        self._archive = archive
        self._clock = clock
        self._faults = faults
        self._rival = rival
        self._rotten = rotten
        self._epoch = epoch
        self._go_on_after = go_on_after
        self._keys = keys
        self._fatal = fatal
        self._snapshot: int | None = None
        self._runs: list[Sha256] = []
        """Of that snapshot, what is still to be sent."""
        self._failures = 0
        self._not_before = 0.0
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"manifests-to-{target.name}", daemon=True)

    @property
    def name(self) -> TargetName:
        """The target's name."""
        return self.target.name

    def start(self) -> None:
        """Begin, in a thread; once."""
        if self._thread.ident is None:
            self._thread.start()

    def kick(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def ask_to_stop(self) -> None:
        """End after the object in hand."""
        self._stopping = True
        self._wake.set()

    def join(self, seconds_max: float) -> bool:
        """Whether it has ended; a request that hangs is given up with the process."""
        if self._thread.ident is not None:
            self._thread.join(seconds_max)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.wait(max(0.05, self._not_before - self._clock.monotonic()) if self._failures else 60.0)
                self._wake.clear()
                if not self._stopping and self._clock.monotonic() >= self._not_before:
                    self.step()
        except BaseException as problem:
            self._fatal(problem)

    def sent(self) -> Sent:
        """What the target has."""
        with self._store.read() as reader:
            return sent(reader, self.number)

    def step(self) -> bool:
        """Send what there is to send; whether the target is up to date now."""
        try:
            if self._keys is not None:  # also where nothing is to be sent: what is there is of no use without them
                self._keys.bring(self.target, self._capabilities())
            while not self._stopping and self._send_next():
                pass
            self._trim()
        except Superseded as rival:
            self._stopping = True
            self.why = str(rival)
            self._rival(str(rival))
            return False
        except (VnaError, OSError) as problem:
            self._failures += 1
            pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(self._failures - 1, 10))
            self._not_before = self._clock.monotonic() + pause
            self.why = str(problem)
            log.warning("manifest.later", extra={"target": self.name, "why": str(problem)})
            return False
        self._failures = 0
        self._not_before = 0.0
        self.why = ""
        return True

    def compare(self) -> None:
        """Whether the target has gone on without us. Raises Superseded, TargetError."""
        self._capabilities()  # a directory is known by what its first probe left there
        there = self.sent()
        if there == Sent():
            self._meet(self._ledger.position())
            return
        if there.number < self._ledger.position().number:
            return  # what is sent next will show it
        # no number is left out on any target, so whoever went on has taken the next one
        try:
            self.target.evidence(manifest.segment_name(there.number + 1))
        except ObjectMissing:
            self.leads()  # unless it was long ago, and the one who went on has trimmed
        else:
            self._look_at(manifest.segment_name(there.number + 1))

    # -- what is not needed any more -----------------------------------------------------------------------------

    def leads(self) -> bool:
        """Whether the last segment there is the last that we sent, looked at now. Raises Superseded, TargetError."""
        there = self.sent().number
        head = max(filter(None, map(manifest.number_in, self.target.list(manifest.SEGMENTS))), default=0)
        name = manifest.segment_name(head)
        if head > there and not (self._ledger.has(name) and self._same(name)):
            self._look_at(name)  # else it is ours, and on its way to being noted
        return head == there and head > 0

    def _trim(self) -> None:
        """Remove what no restore needs, when that is due and all that was recorded is there. Raises Superseded."""
        now, there = self._ledger.position(), self.sent()
        if self._clock.monotonic() < self._trim_not_before or now.snapshot is None:
            return
        with self._store.read() as reader:
            wanted, oldest = trim_wanted(reader) or 0, oldest_of(reader, self.number) or 0
        all_before = bool(wanted) and oldest <= wanted <= now.snapshot_from
        if there != Sent(now.number, now.snapshot) or not (self._kept_seconds or all_before):
            return
        self._trim_not_before = self._clock.monotonic() + TRIM_AGAIN_SECONDS
        before = Instant(self._clock.now() - int(0 if all_before else self._kept_seconds * NANOSECONDS))
        try:
            if not self.leads():
                return
            work = Trim(self.target, self._archive, self._secrets(), self._go_on_trimming)
            trimmed = work.trim(before, base_min=now.snapshot if all_before else 0)
        except TargetError as problem:
            log.warning("manifest.not_trimmed", extra={"target": self.name, "why": str(problem)})
            return
        if trimmed is not None:
            with self._store.write() as tx:
                set_oldest(tx, self.number, trimmed.oldest)
            self._faults.reach("manifest.trimmed")
        if not all_before or (trimmed is not None and trimmed.oldest > wanted):
            self._trim_not_before = self._clock.monotonic() + TRIM_SECONDS

    def trim_soon(self) -> None:
        """Not only when it is time again."""
        self._trim_not_before = self._clock.monotonic()

    def _go_on_trimming(self) -> None:
        if self._stopping:
            raise TargetUnavailable(target=self.name, why="the archive is stopping")

    def needed(self) -> Iterator[ObjectName]:
        """What a restore from this target needs, and it has: the last snapshot, its runs, the segments from it on."""
        now, there = self._ledger.position(), self.sent()
        if there.snapshot is None or there.snapshot != now.snapshot:
            return  # it is on its way
        name = manifest.snapshot_name(there.snapshot)
        _, rows = manifest.decode(self._read(name), self._secrets())
        yield name
        for row in rows:
            if row.operation is Operation.RUN:
                yield manifest.run_name(manifest.run_of(row).sha256)
        for number in range(now.snapshot_from + 1, there.number + 1):
            yield manifest.segment_name(number)

    def look_again(self, name: ObjectName) -> tuple[int, bool]:
        """Compare an object there with ours, and put it again if it is wrong or gone; its bytes, and whether it was.

        Raises Damaged when ours is not what was written, Superseded, TargetError.
        """
        if not self._ledger.has(name):
            return 0, False  # another snapshot took its place meanwhile
        body = BytesBody(self._read(name))
        try:
            verify(self.target, name, body.size_bytes, body.sha256, self._capabilities())
        except ObjectMissing:
            self._put_bytes(name, self._read(name))
        except Damaged as problem:
            self._look_at(name, self._read(name))
            self._set_aside(name, body.sha256, str(problem))
            discard(self.target, name)
            self._put_bytes(name, self._read(name))
        else:
            return body.size_bytes, False
        return body.size_bytes, True

    def _set_aside(self, name: ObjectName, sha256: Sha256, why: str) -> None:
        if self._quarantine is not None:
            about = about_manifest(name, sha256, from_target(self.target), why)
            keep_object(self._quarantine, self.target, name, about)

    # -- one object ----------------------------------------------------------------------------------------------

    def _send_next(self) -> bool:
        """Send one object, segments before all else; whether there was one to send."""
        now, there = self._ledger.position(), self.sent()
        if there == Sent() and not self._meet(now):
            return False
        there = self.sent()
        if there.number < now.number:
            return self._send_segment(now, there)
        if now.snapshot is not None and there.snapshot != now.snapshot:
            self._send_of_snapshot(now.snapshot, there)
            return True
        return False

    def _meet(self, now: Position) -> bool:
        """Look at what is on a target of which nothing is known; whether sending may begin.

        Raises Superseded when another archive, or a life of this one that is not over, writes there. What an earlier
        life left there stays: it ended when this one was restored or adopted, and its numbers are not used again.
        """
        self._capabilities()  # a directory is known by what its first probe left there
        head = head_of(self.target, self._archive)
        if head.number == 0:
            return True
        name = manifest.segment_name(head.number)
        if self._ledger.has(name) and self._same(name):
            return True  # ours: the answer to it was lost
        if head.epoch >= self._epoch() or self._is_foreign(name):
            self._look_at(name)
        if head.number > now.number:
            self._go_on_after(head.number)
            return False
        self._note(Sent(number=head.number))
        return True

    def _is_foreign(self, name: ObjectName) -> bool:
        try:
            header = manifest.decode_header(b"".join(self.target.get(name, Span(0, manifest.HEADER_BYTES))))
        except Damaged:
            return False
        return header.archive != self._archive

    def _same(self, name: ObjectName) -> bool:
        return b"".join(self.target.get(name)) == self._ledger.read(name)

    def _send_segment(self, now: Position, there: Sent) -> bool:
        number = there.number + 1
        name = manifest.segment_name(number)
        if self._ledger.has(name):
            self._put(name, digest=now.digest if number == now.number else None)
            self._note(dataclasses.replace(there, number=number))
            return True
        if now.snapshot is None or now.snapshot_from < number:
            return False  # a snapshot will come that makes it needless
        # The target was away for so long that these are gone; the snapshot says it all. An index from before must
        # find its next number taken all the same.
        filler = manifest.encode(Header(Kind.SEGMENT, self._archive, number=number), (), self._secrets())
        self._put_bytes(name, filler)
        self._note(dataclasses.replace(there, number=now.snapshot_from))
        return True

    def _send_of_snapshot(self, number: int, there: Sent) -> None:
        """Its next run, and itself after the last."""
        name = manifest.snapshot_name(number)
        if self._snapshot != number:
            _, rows = manifest.decode(self._read(name), self._secrets())
            self._runs = [manifest.run_of(row).sha256 for row in rows if row.operation is Operation.RUN]
            self._snapshot = number
        if self._runs:
            self._put(manifest.run_name(self._runs[0]), digest=self._runs[0])
            self._runs.pop(0)
            return
        self._put(name)
        self._note(dataclasses.replace(there, snapshot=number))
        self._snapshot = None

    def _put(self, name: ObjectName, digest: Sha256 | None = None) -> None:
        """Send an object of the ledger, whose hash is *digest* if that is known."""
        self._put_bytes(name, self._read(name, digest))

    def _read(self, name: ObjectName, digest: Sha256 | None = None) -> bytes:
        """An object of the ledger, if it is what was written."""
        data = self._ledger.read(name)
        if not self._is_whole(data, digest):
            # it would be sent as it is, and be of no use there: all there is is written down again instead
            self._ledger.remove(name)
            self._rotten(name)
            raise Damaged(what=f"The local manifest {name}")
        return data

    def _put_bytes(self, name: ObjectName, data: bytes) -> None:
        body = BytesBody(data)
        capabilities = self._capabilities()
        if self._keys is not None:
            self._keys.bring(self.target, capabilities)
        try:
            self.target.put(name, body)
            self._faults.reach("manifest.sent")
            verify(self.target, name, body.size_bytes, body.sha256, capabilities)
        except (ObjectExists, Damaged):
            self._look_at(name, data)
            # Not another's, so it is what became of ours: by its name it counts for nothing.
            discard(self.target, name)
            raise

    def _look_at(self, name: ObjectName, ours: bytes | None = None) -> None:
        """Raises Superseded when what is at a name of ours is another index's. *ours* is what we would put there."""
        data = bytearray()
        for block in self.target.get(name):
            data += block
            if len(data) > OBJECT_BYTES_MAX:
                raise Damaged(what=f"Object {name} on target {self.name}")
        try:
            header = manifest.decode_header(bytes(data))
            if header.archive != self._archive:
                raise Superseded(why=f"target {self.name} holds {name} of another archive, {header.archive.hex()}")
            manifest.decode(bytes(data), self._secrets())
        except FormatUnknown as problem:
            raise Superseded(why=f"target {self.name} holds {name}, which a newer program wrote") from problem
        except KeyMissing as problem:
            raise Superseded(why=f"target {self.name} holds {name}, encrypted with a key of another run") from problem
        except Damaged:
            return
        if header.kind is Kind.RUN or bytes(data) == ours:
            return
        written = header.created // 1_000_000_000
        raise Superseded(
            why=f"target {self.name} holds {name}, written at {written} s since 1970 by another run of this archive: "
            "an older state of this machine came back, or a copy of it runs. Find out which is right, then use "
            "`vna adopt` or `vna restore`"
        )

    def capabilities(self) -> Capabilities:
        """What the target can do. Raises TargetError."""
        return self._capabilities()

    def _secrets(self) -> manifest.Keys | None:
        return None if self._keys is None else self._keys.manifests()

    def _is_whole(self, data: bytes, digest: Sha256 | None) -> bool:
        try:
            manifest.decode(data, self._secrets())
        except Damaged:
            return False
        return digest is None or digest_of(data) == digest

    def _note(self, there: Sent) -> None:
        with self._store.write() as tx:
            set_sent(tx, self.number, there)
        self._store.sync(self._store.position)
        self._faults.reach("manifest.noted")
