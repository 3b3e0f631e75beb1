"""Sending: bring the ledger to one target, in order, and notice when somebody else wrote there.

A thread for each target, so that a dead one delays nobody. Every object is created exclusively and verified; then a
row says that the target has it. A name that is taken by other bytes of the same archive is a rival's: an older state
of this machine came back, or a copy of it runs. Nothing is sent then, to no target, until an administrator decides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable

from vnafs.content import manifest
from vnafs.content.manifest import Kind, Operation
from vnafs.domain.clock import Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import Damaged, FormatUnknown, ObjectExists, ObjectMissing, Superseded, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.index.engine import Engine
from vnafs.targets.body import BytesBody
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify
from vnafs.upkeep.ledger import Ledger, Sent, sent, set_sent

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
OBJECT_BYTES_MAX = 300 * 1024 * 1024
"""Read of what is at a name of ours."""


class Send:
    """See the module. *rival* is told why, once."""

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
    ) -> None:
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
        while not self._stopping:
            self._wake.wait(max(0.05, self._not_before - self._clock.monotonic()) if self._failures else 60.0)
            self._wake.clear()
            if not self._stopping and self._clock.monotonic() >= self._not_before:
                self.step()

    def sent(self) -> Sent:
        """What the target has."""
        with self._store.read() as reader:
            return sent(reader, self.number)

    def step(self) -> bool:
        """Send what there is to send; whether the target is up to date now."""
        try:
            while not self._stopping and self._send_next():
                pass
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
        if there.number < self._ledger.position().number:
            return  # what is sent next will show it
        with contextlib.suppress(ObjectMissing):
            self.target.evidence(manifest.segment_name(there.number + 1))
            self._look_at(manifest.segment_name(there.number + 1))

    # -- one object ----------------------------------------------------------------------------------------------

    def _send_next(self) -> bool:
        now, there = self._ledger.position(), self.sent()
        if now.snapshot is None:
            return False  # the next one is being made; without it segments are of no use
        if there.snapshot != now.snapshot:
            first = there.number + 1 if there.number >= now.snapshot_from else now.snapshot_from + 1
            for number in range(first, now.snapshot + 1):
                self._put(manifest.segment_name(number))
                there = dataclasses.replace(there, number=number)
                self._note(there)
            self._send_snapshot(now.snapshot)
            self._note(Sent(max(there.number, now.snapshot), now.snapshot))
            return True
        if there.number < now.number:
            self._put(manifest.segment_name(there.number + 1))
            self._note(dataclasses.replace(there, number=there.number + 1))
            return True
        return False

    def _send_snapshot(self, number: int) -> None:
        name = manifest.snapshot_name(number)
        _, rows = manifest.decode(self._ledger.read(name))
        for row in rows:
            if row.operation is Operation.RUN:
                if self._stopping:
                    raise Damaged(what="Sending a snapshot: it was interrupted; what was sent")
                self._put(manifest.run_name(manifest.run_of(row).sha256))
        self._put(name)

    def _put(self, name: ObjectName) -> None:
        body = BytesBody(self._ledger.read(name))
        capabilities = self._capabilities()
        try:
            self.target.put(name, body)
            self._faults.reach("manifest.sent")
            verify(self.target, name, body.size_bytes, body.sha256, capabilities)
        except (ObjectExists, Damaged):
            self._look_at(name)
            # Not another's, so it is what became of ours: by its name it counts for nothing.
            self.target.delete(name)
            raise

    def _look_at(self, name: ObjectName) -> None:
        """Raises Superseded when what is at a name of ours is another index's."""
        data = bytearray()
        for block in self.target.get(name):
            data += block
            if len(data) > OBJECT_BYTES_MAX:
                raise Damaged(what=f"Object {name} on target {self.name}")
        try:
            header, _ = manifest.decode(bytes(data))
        except FormatUnknown as problem:
            raise Superseded(why=f"target {self.name} holds {name}, which a newer program wrote") from problem
        except Damaged:
            return
        if header.archive != self._archive:
            raise Superseded(why=f"target {self.name} holds {name} of another archive, {header.archive.hex()}")
        if header.kind is Kind.RUN or (self._ledger.has(name) and self._ledger.read(name) == data):
            return
        written = header.created // 1_000_000_000
        raise Superseded(
            why=f"target {self.name} holds {name}, written at {written} s since 1970 by another run of this archive: "
            "an older state of this machine came back, or a copy of it runs. Find out which is right, then use "
            "`vna adopt` or `vna restore`"
        )

    def _note(self, there: Sent) -> None:
        with self._store.write() as tx:
            set_sent(tx, self.number, there)
        self._store.sync(self._store.position)
        self._faults.reach("manifest.noted")
