"""A limit around a target: bytes a second and calls at once, over all threads that share it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import Rehydration
from vnafs.targets.limits import Limits
from vnafs.targets.port import Body, Target


class TokenBucket:
    """Lets *bytes_per_second* pass on average, at most one second's worth at once after a pause.

    What is larger than that passes whole and is paid for before the next: an object's bytes leave at the speed of
    the line, but no more of them over a minute than allowed. Any thread; waits outside its lock.
    """

    def __init__(self, bytes_per_second: float, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = bytes_per_second
        self._at = clock.monotonic()

    def take(self, count_bytes: int) -> None:
        """Wait until earlier takers are paid for, then take."""
        with self._lock:
            now = self._clock.monotonic()
            self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
            self._at = now
            debt_seconds = max(0.0, -self._tokens / self._rate)
            self._tokens -= count_bytes
        if debt_seconds:
            self._clock.sleep(debt_seconds)


class ThrottledTarget:
    """See Target. A transfer that is handed out block by block holds its place until it ends or is closed."""

    def __init__(self, inner: Target, clock: Clock, limits: Limits) -> None:
        self._inner = inner
        self._places = threading.BoundedSemaphore(limits.requests_max)
        rate = limits.bytes_per_second_max
        self._bucket = TokenBucket(rate, clock) if rate else None

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._inner.name

    def probe(self) -> Capabilities:
        """See Target."""
        with self._places:
            return self._inner.probe()

    def powers(self) -> Powers:
        """See Target."""
        with self._places:
            return self._inner.powers()

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        with self._places:
            self._pay(body.size_bytes)
            return self._inner.put(name, body)

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        return self._paid(self._inner.get(name, span))

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        return self._paid(self._inner.read_back(name))

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        with self._places:
            return self._inner.rehydrate(name)

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        with self._places:
            return self._inner.evidence(name)

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target. Holds no place: whoever lists may use the target between two names."""
        return self._inner.list(prefix)

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        with self._places:
            self._inner.delete(name)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target."""
        with self._places:
            self._inner.retain(name, until)

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        with self._places:
            return self._inner.retained(name)

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        with self._places:
            return self._inner.exists(name)

    def close(self) -> None:
        """See Target."""
        self._inner.close()

    def _paid(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        with self._places, contextlib.ExitStack() as stack:
            stack.callback(getattr(blocks, "close", lambda: None))
            for block in blocks:
                self._pay(len(block))
                yield block

    def _pay(self, count_bytes: int) -> None:
        if self._bucket is not None:
            self._bucket.take(count_bytes)
