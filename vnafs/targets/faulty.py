"""Bad days on demand around a target, for tests: what servers and networks do, told by a script.

Each fault is used up by the next call that it fits; what fits none passes through. Time is the clock it is given.
Any thread may call.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import Damaged, TargetRefused, TargetUnavailable
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import Rehydration
from vnafs.targets.body import BytesBody
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.mirror import Mirror, Original
from vnafs.targets.port import Body, Target

_REFUSALS = frozenset({401, 403})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one call. Fields combine in the order they are listed; with none set it just passes."""

    operation: str = ""
    """`probe`, `put`, `get`, `read_back`, `evidence`, `list`, `delete`, `retain`, `retained` or `powers`; empty
    fits all."""
    times: int = 1
    slow_seconds: float = 0.0
    """Passes before anything else happens."""
    status: int = 0
    """Answered instead of done, as a server answers this HTTP status."""
    retry_after_seconds: float | None = None
    cut_at: int = -1
    """A transfer breaks after this many bytes; a put that breaks leaves nothing."""
    lost_reply: bool = False
    """Done, but the caller hears of a broken connection."""
    wrong_byte_at: int = -1
    """This byte comes out with its bits flipped."""
    truncated_at: int = -1
    """The transfer ends here as if that were all: a server that lies."""
    hidden: int = 0
    """A listing lacks this many of its last names."""


class FaultyTarget:
    """See Target."""

    def __init__(self, inner: Target, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._dead_until = clock.monotonic()
        self.calls: list[str] = []

    def script(self, *faults: Fault) -> None:
        """Add faults after those that are still waiting."""
        with self._lock:
            for fault in faults:
                self._faults.extend([fault] * fault.times)

    def die(self, seconds: float) -> None:
        """Answer nothing until so much time has passed."""
        with self._lock:
            self._dead_until = self._clock.monotonic() + seconds

    def forgive(self) -> None:
        """Be well from now on."""
        with self._lock:
            self._faults.clear()
            self._dead_until = self._clock.monotonic()

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._inner.name

    def probe(self) -> Capabilities:
        """See Target."""
        fault = self._meet("probe")
        found = self._inner.probe()
        self._lose(fault)
        return found

    def powers(self) -> Powers:
        """See Target."""
        fault = self._meet("powers")
        found = self._inner.powers()
        self._lose(fault)
        return found

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        fault = self._meet("put")
        if fault.cut_at >= 0:
            raise TargetUnavailable(target=self.name, why=f"scripted: cut after {fault.cut_at} bytes")
        found = self._inner.put(name, body)
        self._lose(fault)
        return found

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        fault = self._meet("get")
        yield from self._transfer(self._inner.get(name, span), fault)

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        fault = self._meet("read_back")
        yield from self._transfer(self._inner.read_back(name), fault)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        fault = self._meet("rehydrate")
        found = self._inner.rehydrate(name)
        self._lose(fault)
        return found

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        fault = self._meet("evidence")
        found = self._inner.evidence(name)
        self._lose(fault)
        return found

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target."""
        fault = self._meet("list")
        names = [*self._inner.list(prefix)]
        yield from names[: len(names) - fault.hidden]
        self._lose(fault)

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        fault = self._meet("delete")
        self._inner.delete(name)
        self._lose(fault)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target."""
        fault = self._meet("retain")
        self._inner.retain(name, until)
        self._lose(fault)

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        fault = self._meet("retained")
        found = self._inner.retained(name)
        self._lose(fault)
        return found

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        fault = self._meet("exists")
        found = self._inner.exists(name)
        self._lose(fault)
        return found

    def close(self) -> None:
        """See Target."""
        self._inner.close()

    def _meet(self, operation: str) -> Fault:
        with self._lock:
            self.calls.append(operation)
            dead = self._clock.monotonic() < self._dead_until
            fits = [at for at, fault in enumerate(self._faults) if fault.operation in {"", operation}]
            fault = self._faults.pop(fits[0]) if fits and not dead else Fault()
        if dead:
            raise TargetUnavailable(target=self.name, why="scripted: no answer")
        if fault.slow_seconds:
            self._clock.sleep(fault.slow_seconds)
        if fault.status in _REFUSALS:
            raise TargetRefused(target=self.name, why=f"scripted: HTTP {fault.status}")
        if fault.status:
            raise TargetUnavailable(
                target=self.name,
                why=f"scripted: HTTP {fault.status}",
                retry_after_seconds=fault.retry_after_seconds,
            )
        return fault

    def _lose(self, fault: Fault) -> None:
        if fault.lost_reply:
            raise TargetUnavailable(target=self.name, why="scripted: the reply was lost")

    def _transfer(self, blocks: Iterator[bytes], fault: Fault) -> Iterator[bytes]:
        at = 0
        for block in blocks:
            data = block
            if at <= fault.wrong_byte_at < at + len(data):
                spoiled = bytearray(data)
                spoiled[fault.wrong_byte_at - at] ^= 0xFF
                data = bytes(spoiled)
            for end in (fault.truncated_at, fault.cut_at):
                if 0 <= end <= at + len(data):
                    data = data[: end - at]
            if data:
                yield data
            at += len(data)
            if 0 <= fault.cut_at <= at:
                raise TargetUnavailable(target=self.name, why=f"scripted: cut after {at} bytes")
            if 0 <= fault.truncated_at <= at:
                return
        self._lose(fault)


class FaultyMirror:
    """See Mirror. The operations of its faults are `probe`, `replace`, `copy`, `remove` and `list`."""

    def __init__(self, inner: Mirror, clock: Clock) -> None:
        self._inner = inner
        self.bad = FaultyTarget(MemoryTarget(inner.name), clock)
        """Where its faults are scripted."""

    @property
    def name(self) -> TargetName:
        """See Mirror."""
        return self._inner.name

    def probe(self, *, known: bool) -> bool:
        """See Mirror."""
        fault = self.bad._meet("probe")
        found = self._inner.probe(known=known)
        self.bad._lose(fault)
        return found

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        """See Mirror. A wrong byte is stored, and seen by whoever verifies it."""
        fault = self.bad._meet("replace")
        if fault.cut_at >= 0:
            raise TargetUnavailable(target=self.name, why=f"scripted: cut after {fault.cut_at} bytes")
        if fault.wrong_byte_at >= 0:
            with body.open() as file:
                self._inner.replace(name, BytesBody(file.read() + b"!"), mtime_ns)
            raise Damaged(what=f"What was put on mirror {self.name}")
        self._inner.replace(name, body, mtime_ns)
        self.bad._lose(fault)

    def copy(self, source: Original, name: str, mtime_ns: int) -> bool:
        """See Mirror. A wrong byte is there, and seen."""
        fault = self.bad._meet("copy")
        if fault.cut_at >= 0:
            raise TargetUnavailable(target=self.name, why="scripted: broken off")
        if fault.wrong_byte_at >= 0:
            self._inner.replace(name, BytesBody(b"!"), mtime_ns)
            return False
        copied = self._inner.copy(source, name, mtime_ns)
        self.bad._lose(fault)
        return copied

    def remove(self, name: str) -> None:
        """See Mirror."""
        fault = self.bad._meet("remove")
        self._inner.remove(name)
        self.bad._lose(fault)

    def list(self) -> Iterator[str]:
        """See Mirror."""
        fault = self.bad._meet("list")
        names = [*self._inner.list()]
        yield from names[: len(names) - fault.hidden]
        self.bad._lose(fault)

    def close(self) -> None:
        """See Mirror."""
        self._inner.close()
