"""The port that every target fills: a place for immutable objects. `tests/contract/test_target.py` defines it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from vnafs.domain.clock import Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.ids import WHOLE, ObjectName, Sha256, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import Rehydration


class Body(Protocol):
    """The bytes of an object about to be put: sized, and readable again from the start for each attempt."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        ...

    @property
    def sha256(self) -> Sha256:
        """Of all the bytes; known before the first is sent."""
        ...

    def open(self) -> BinaryIO:
        """A fresh reader at the first byte; the caller closes it."""
        ...


class Target(Protocol):
    """A place for immutable objects. Every call may be repeated; none leaves half an object visible.

    Calls may come from several threads at once. All of them raise TargetUnavailable (try again later),
    TargetRefused (will not work until someone acts) or, where an object is named, ObjectMissing.

    Where a target keeps versions, the first one that was written under a name is the object: what somebody writes over
    it later is not read, and a delete marker hides nothing.
    """

    @property
    def name(self) -> TargetName:
        """The administrator's name for it."""
        ...

    def probe(self) -> Capabilities:
        """Find out, with small objects under `probe/`, what the target can do.

        They are removed again; a credential that may not delete leaves a fixed few, which the next probe uses again.
        """
        ...

    def powers(self) -> Powers:
        """What the credential can do that it should not, tried on an object of its own under `probe/`."""
        ...

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """Store an object that must not exist yet.

        A put that finds an object of the same size at *name* returns evidence of what is there (a reply was
        lost after an earlier put arrived: the caller verifies either way). Raises ObjectExists when what is
        there has another size.
        """
        ...

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """The bytes of *span* in order, in blocks of at most 1 MiB. Raises ObjectMissing, ObjectArchived.

        A transfer cut short raises TargetUnavailable; it never ends early as if it were whole.
        """
        ...

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """All bytes as they are on stable storage: a directory syncs and reads past the page cache."""
        ...

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """Ask that an object in an archive class can be read again, once: later calls only look how it stands.

        Raises ObjectMissing.
        """
        ...

    def evidence(self, name: ObjectName) -> Evidence:
        """What the target itself vouches for, now. Raises ObjectMissing."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """Names that start with *prefix*, in order."""
        ...

    def delete(self, name: ObjectName) -> None:
        """Remove an object, all versions of it; one that is not there is no error.

        Raises ObjectLocked: it is all there, as it was.
        """
        ...

    def retain(self, name: ObjectName, until: Instant) -> None:
        """Lock an object until then; a lock that lasts longer stays. Raises TargetRefused where there are no locks."""
        ...

    def retained(self, name: ObjectName) -> Instant | None:
        """Until when an object is locked; None for one without a lock, and where there are none."""
        ...

    def exists(self, name: ObjectName) -> bool:
        """Whether there is anything under a name: an object, or where the target keeps them a version or its marker.

        A fresh look. Raises TargetRefused where versions are kept and the credential may not see them.
        """
        ...

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...
