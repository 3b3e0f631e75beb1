"""A second credential around a target, for deleting, and for seeing that nothing is left; for nothing else.

What runs every day can then have a credential that cannot destroy what it wrote. No client is made of the second one
before the first delete. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import ObjectLocked, TargetError, TargetRefused
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers, locked
from vnafs.domain.rehydration import Rehydration
from vnafs.targets.port import Body, Target


class RemovalTarget:
    """See Target. *opened* gives the same place as the second credential sees it, told what was last probed."""

    def __init__(
        self, daily: Target, opened: Callable[[Capabilities | None], Target], known: Capabilities | None = None
    ) -> None:
        self._daily = daily
        self._opened = opened
        self._known = known
        self._lock = threading.Lock()
        self._removal: Target | None = None

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._daily.name

    def probe(self) -> Capabilities:
        """See Target. What it leaves behind is left: the second credential is not for what happens every day."""
        self._known = self._daily.probe()
        return self._known

    def powers(self) -> Powers:
        """See Target. Of the daily credential."""
        return self._daily.powers()

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        return self._daily.put(name, body)

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        return self._daily.get(name, span)

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        return self._daily.read_back(name)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        return self._daily.rehydrate(name)

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        return self._daily.evidence(name)

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target."""
        return self._daily.list(prefix)

    def delete(self, name: ObjectName) -> None:
        """See Target. With the second credential."""
        try:
            self._second().delete(name)
        except (TargetRefused, ObjectLocked) as problem:
            until = self._until(name)
            if until is None:
                raise
            raise locked(self.name, name, until) from problem

    def _second(self) -> Target:
        with self._lock:
            if self._removal is None:
                self._removal = self._opened(self._known)
            return self._removal

    def _until(self, name: ObjectName) -> Instant | None:
        """Whoever may delete need not be allowed to look at what others put."""
        try:
            return self._daily.retained(name)
        except TargetError:
            return None

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target. It only ever extends."""
        self._daily.retain(name, until)

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        return self._daily.retained(name)

    def exists(self, name: ObjectName) -> bool:
        """See Target. With the second credential where the daily one may not see versions: they are its to remove."""
        try:
            return self._daily.exists(name)
        except TargetRefused:
            return self._second().exists(name)

    def close(self) -> None:
        """See Target."""
        with self._lock:
            removal, self._removal = self._removal, None
        if removal is not None:
            removal.close()
        self._daily.close()
