"""A target in memory, for tests of everything that uses targets. Holds what it is given; durable it is not.

Any thread may call.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Iterator

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import ObjectArchived, ObjectExists, ObjectMissing, TargetRefused
from vnafs.domain.ids import WHOLE, ObjectName, Sha256, Span, TargetName
from vnafs.domain.locks import Lock, Powers, locked
from vnafs.domain.rehydration import READY, Rehydration, Thaw
from vnafs.targets.body import BLOCK_BYTES, Stretch
from vnafs.targets.names import checked
from vnafs.targets.port import Body


class MemoryTarget:
    """See Target. `checksums=False` makes one that vouches for nothing, so that callers must read back.

    With *clock*, by which they run out, it has locks, and gives *lock* to each object that is put. `may_delete` is a
    right that its credential has, and may be taken away.
    """

    def __init__(
        self, name: TargetName, *, checksums: bool = True, clock: Clock | None = None, lock: Lock | None = None
    ) -> None:
        self._name = name
        self._clock = clock
        self._lock_wanted = lock
        self._until: dict[ObjectName, Instant] = {}
        self.may_delete = True
        self._checksums = checksums
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._names: list[ObjectName] = []
        self._archived: dict[ObjectName, bool] = {}
        """Objects in an archive class, and whether they were asked back."""

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._name

    def probe(self) -> Capabilities:
        """See Target."""
        return Capabilities(
            exclusive_create=True,
            exclusive_create_multipart=True,
            checksum_sha256=self._checksums,
            checksum_md5=False,
            multipart=False,
            object_lock=self._clock is not None,
        )

    def powers(self) -> Powers:
        """See Target."""
        return Powers(can_delete=self.may_delete, can_lock=self._clock is not None)

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        checked(name)
        with Stretch(body) as reader:
            data = reader.readall()
        with self._lock:
            existing = self._objects.get(name)
            if existing is None:
                self._objects[name] = data
                bisect.insort(self._names, name)
                if self._lock_wanted is not None and self._clock is not None:
                    self._until[name] = self._lock_wanted.until(self._clock.now())
                existing = data
            elif len(existing) != len(data):
                raise ObjectExists(target=self._name, name=name)
        return self._vouch(existing)

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        data = memoryview(self._object(name))[span.offset : span.stop]
        if name in self._archived:
            raise ObjectArchived(target=self._name, name=name)
        for at in range(0, len(data), BLOCK_BYTES):
            yield bytes(data[at : at + BLOCK_BYTES])

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        return self.get(name)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target."""
        self._object(name)
        with self._lock:
            asked = self._archived.get(name)
            if asked is None:
                return READY
            self._archived[name] = True
        return Rehydration(Thaw.PENDING if asked else Thaw.ASKED, 3600)

    def archive(self, name: ObjectName) -> None:
        """Move an object to an archive class, as a rule of the provider does."""
        with self._lock:
            self._archived[name] = False

    def thaw(self, name: ObjectName) -> None:
        """Let it come back."""
        with self._lock:
            del self._archived[name]

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        return self._vouch(self._object(name))

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target."""
        at = prefix
        inclusive = True
        while True:
            with self._lock:
                index = (bisect.bisect_left if inclusive else bisect.bisect_right)(self._names, at)
                if index == len(self._names) or not self._names[index].startswith(prefix):
                    return
                found = self._names[index]
            yield found
            at, inclusive = found, False

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        checked(name)
        if not self.may_delete:
            raise TargetRefused(target=self._name, why="deleting an object: access is denied")
        with self._lock:
            until = self._until.get(name)
            if until is not None and self._clock is not None and until > self._clock.now():
                raise locked(self._name, name, until)
            self._until.pop(name, None)
            if self._objects.pop(name, None) is not None:
                self._names.remove(name)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target."""
        self._object(name)
        if self._clock is None:
            raise TargetRefused(target=self._name, why="it has no locks")
        with self._lock:
            self._until[name] = max(until, self._until.get(name, until))

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        self._object(name)
        with self._lock:
            return self._until.get(name)

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        checked(name)
        with self._lock:
            return name in self._objects

    def close(self) -> None:
        """See Target."""

    def replace(self, name: ObjectName, data: bytes) -> None:
        """Change stored bytes behind everybody's back, as bit rot does."""
        with self._lock:
            if name not in self._objects:
                raise ObjectMissing(target=self._name, name=name)
            self._objects[name] = data

    def _object(self, name: ObjectName) -> bytes:
        checked(name)
        with self._lock:
            data = self._objects.get(name)
        if data is None:
            raise ObjectMissing(target=self._name, name=name)
        return data

    def _vouch(self, data: bytes) -> Evidence:
        digest = hashlib.sha256(data).digest()
        return Evidence(len(data), Sha256(digest) if self._checksums else None, etag=digest[:8].hex())
