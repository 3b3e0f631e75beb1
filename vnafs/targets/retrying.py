"""Patience around a target: what is unavailable is tried again, later each time, within limits.

Only TargetUnavailable is tried again; what needs somebody to act is not. A get goes on at the byte it reached.
Holds no state between calls; any thread may call.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import TargetUnavailable
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import Rehydration
from vnafs.targets.limits import Limits
from vnafs.targets.port import Body, Target

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RetryingTarget:
    """See Target. Raises the last TargetUnavailable once attempts or time are used up."""

    def __init__(self, inner: Target, clock: Clock, limits: Limits, dice: random.Random | None = None) -> None:
        self._inner = inner
        self._clock = clock
        self._limits = limits
        self._dice = dice or random.Random()

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._inner.name

    def probe(self) -> Capabilities:
        """See Target."""
        return self._again("probe", self._inner.probe)

    def powers(self) -> Powers:
        """See Target."""
        return self._again("powers", self._inner.powers)

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        return self._again("put", lambda: self._inner.put(name, body))

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""

        def rest(done: int) -> Iterator[bytes]:
            length = None if span.length is None else span.length - done
            return iter(()) if length == 0 and done else self._inner.get(name, Span(span.offset + done, length))

        return self._resumed("get", rest)

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target. Every byte handed out was read back; after a failure those before it are read again."""
        return self._resumed("read_back", lambda done: _without_first(self._inner.read_back(name), done))

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        return self._again("rehydrate", lambda: self._inner.rehydrate(name))

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        return self._again("evidence", lambda: self._inner.evidence(name))

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target. After a failure names up to the last one handed out are listed again and left out."""
        patience = _Patience(self, "list")
        last = ObjectName("")
        while True:
            try:
                for name in self._inner.list(prefix):
                    if name > last:
                        last = name
                        patience.progress()
                        yield name
            except TargetUnavailable as error:
                patience.wait(error)
            else:
                return

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        self._again("delete", lambda: self._inner.delete(name))

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target."""
        self._again("retain", lambda: self._inner.retain(name, until))

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        return self._again("retained", lambda: self._inner.retained(name))

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        return self._again("exists", lambda: self._inner.exists(name))

    def close(self) -> None:
        """See Target."""
        self._inner.close()

    def _again(self, operation: str, attempt: Callable[[], _T]) -> _T:
        patience = _Patience(self, operation)
        while True:
            try:
                return attempt()
            except TargetUnavailable as error:
                patience.wait(error)

    def _resumed(self, operation: str, rest: Callable[[int], Iterator[bytes]]) -> Iterator[bytes]:
        patience = _Patience(self, operation)
        done = 0
        while True:
            try:
                for data in rest(done):
                    done += len(data)
                    patience.progress()
                    yield data
            except TargetUnavailable as error:
                patience.wait(error)
            else:
                return


class _Patience:
    """How much is left for one call. Progress renews it: a long transfer over a bad line still arrives."""

    def __init__(self, owner: RetryingTarget, operation: str) -> None:
        self._clock = owner._clock  # the wrapper's own helper
        self._limits = owner._limits
        self._dice = owner._dice
        self._name = owner.name
        self._operation = operation
        self._failures = 0
        self._failing_since: float | None = None

    def progress(self) -> None:
        """Bytes or names came."""
        self._failures = 0
        self._failing_since = None

    def wait(self, error: TargetUnavailable) -> None:
        """Sleep before the next attempt, or raise *error* when there is to be none."""
        now = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        limits = self._limits
        pause = min(limits.backoff_seconds_max, limits.backoff_seconds_first * 2 ** (self._failures - 1))
        pause *= 0.5 + self._dice.random() / 2  # so that many clients of one server do not come back together
        asked = error.fields.get("retry_after_seconds")
        if isinstance(asked, int | float):
            pause = max(pause, asked)
        left = limits.retry_seconds_max - (now - self._failing_since)
        if self._failures >= limits.attempts_max or pause > left:
            raise error
        _log.info(
            "target_retry",
            extra={"target": self._name, "operation": self._operation, "attempt": self._failures, "seconds": pause},
        )
        self._clock.sleep(pause)


def _without_first(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        if count >= len(block):
            count -= len(block)
            continue
        yield block[count:]
        count = 0
