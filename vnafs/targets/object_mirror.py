"""An object store as a plain mirror. A put is atomic there: readers find the old object or the new one.

What mirrors in stores of every provider have in common: the marker, what objects carry, and answers that make no
sense. An object carries `sha256` and `mtime` (seconds since 1970, as rclone writes it) in its own metadata. Knows no
provider. Never tries again by itself; any thread may call.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Protocol

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.body import BytesBody
from vnafs.targets.mirror import MARKER, Original
from vnafs.targets.port import Body

_log = logging.getLogger(__name__)


class PlainStore(Protocol):
    """A bucket or container below a prefix. All but `close` raise TargetUnavailable, TargetRefused."""

    probes: str
    """Begins the names of the objects that trying out has, some of which it may have left when it was killed."""

    @property
    def name(self) -> TargetName:
        """The administrator's name for it."""
        ...

    def try_out(self) -> None:
        """Look whether objects can be put there."""
        ...

    def replace(self, name: str, body: Body, about: dict[str, str]) -> None:
        """Put an object with that metadata, and verify it. Raises Damaged."""
        ...

    def copy(self, source: Original, name: str, about: dict[str, str]) -> bool:
        """See Mirror."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small object; None when the store is there and the object is not."""
        ...

    def remove(self, name: str) -> None:
        """Have nothing at *name*."""
        ...

    def names(self) -> Iterator[str]:
        """Every name there is."""
        ...

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


class ObjectMirror:
    """See Mirror. *archive* is the id of the archive that is mirrored, *foreign* what else the library may raise."""

    def __init__(self, store: PlainStore, archive: bytes, foreign: tuple[type[Exception], ...]) -> None:
        self._store = store
        self._archive = archive.hex()
        # what libraries raise over answers that make no sense; see `sensible`
        self._nonsense: tuple[type[Exception], ...] = (
            *(ValueError, LookupError, TypeError, AttributeError),
            RecursionError,
            *foreign,
        )

    @property
    def name(self) -> TargetName:
        """See Mirror."""
        return self._store.name

    def probe(self, *, known: bool) -> bool:
        """See Mirror."""
        with self._told_apart("probing"):
            found = self._store.read(MARKER)
            if found is None:
                self._begin(known=known)
                return False
            try:
                archive = json.loads(found)["archive"]
            except (ValueError, KeyError, TypeError):
                archive = "unreadable"
            if archive != self._archive:
                raise TargetRefused(target=self.name, why=f"this is the mirror of another archive ({archive})")
            self._store.try_out()
            return True

    def _begin(self, *, known: bool) -> None:
        if known:
            raise TargetUnavailable(target=self.name, why=f"the place has lost {MARKER}")
        if any(not name.startswith(self._store.probes) for name in self._store.names()):
            raise TargetRefused(target=self.name, why="the place is not empty, and no mirror; name another prefix")
        self._store.try_out()
        marker = json.dumps({"vnafs_mirror": 1, "archive": self._archive}).encode() + b"\n"
        self._store.replace(MARKER, BytesBody(marker), {})

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        """See Mirror."""
        with self._told_apart("putting an object"):
            self._store.replace(name, body, _about(body.sha256, mtime_ns))

    def copy(self, source: Original, name: str, mtime_ns: int) -> bool:
        """See Mirror."""
        with self._told_apart("copying an object"):
            return self._store.copy(source, name, _about(source.sha256, mtime_ns))

    def remove(self, name: str) -> None:
        """See Mirror."""
        with self._told_apart("removing an object"):
            self._store.remove(name)

    def list(self) -> Iterator[str]:
        """See Mirror."""
        with self._told_apart("listing"):
            yield from (name for name in self._store.names() if name != MARKER)

    def close(self) -> None:
        """See Mirror."""
        self._store.close()

    @contextlib.contextmanager
    def _told_apart(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._nonsense as problem:
            # without its trace, which could name an object
            _log.error("target.nonsense", extra={"target": self.name, "problem": type(problem).__name__})
            why = f"{doing}: the answer makes no sense ({type(problem).__name__}); is something between us and it?"
            raise TargetUnavailable(target=self.name, why=why) from problem


def _about(sha256: bytes, mtime_ns: int) -> dict[str, str]:
    seconds, rest = divmod(mtime_ns, NANOSECONDS)
    return {"sha256": sha256.hex(), "mtime": f"{seconds}.{rest:09d}"}
