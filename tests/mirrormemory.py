"""A plain mirror in memory that behaves like a directory: no name is a file and a folder at once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

from vnafs.domain.errors import ObjectExists, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.mirror import Original
from vnafs.targets.port import Body


class MemoryMirror:
    """See Mirror."""

    def __init__(self, name: str = "m") -> None:
        self._name = TargetName(name)
        self._lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.mtimes: dict[str, int] = {}
        self.is_marked = False
        self.puts: list[str] = []
        """Copies too."""
        self.copied: list[str] = []
        self.copies_asked = 0
        self.removed: list[str] = []
        self.refused: set[str] = set()

    @property
    def name(self) -> TargetName:
        return self._name

    def probe(self, *, known: bool) -> bool:
        was_one = self.is_marked
        if known and not was_one:
            raise TargetUnavailable(target=self._name, why="it lost its marker")
        if not was_one and self.objects:
            raise TargetRefused(target=self._name, why="not empty")
        self.is_marked = True
        return was_one

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        with body.open() as file:
            self._put(name, file.read(), mtime_ns)

    def copy(self, source: Original, name: str, mtime_ns: int) -> bool:
        with self._lock:
            self.copies_asked += 1
            data = self.objects.get(source.name)
        if data is None or (len(data), hashlib.sha256(data).digest()) != (source.size_bytes, source.sha256):
            return False
        self._put(name, data, mtime_ns)
        self.copied.append(name)
        return True

    def _put(self, name: str, data: bytes, mtime_ns: int) -> None:
        with self._lock:
            if name in self.refused:
                raise TargetRefused(target=self._name, why="scripted: not this one")
            above = name.split("/")
            for depth in range(1, len(above)):
                if "/".join(above[:depth]) in self.objects:
                    raise ObjectExists(target=self._name, name="a part of a path")
            if any(other.startswith(f"{name}/") for other in self.objects):
                raise ObjectExists(target=self._name, name="the name of a file")
            self.objects[name] = data
            self.mtimes[name] = mtime_ns
            self.puts.append(name)

    def remove(self, name: str) -> None:
        with self._lock:
            if self.objects.pop(name, None) is not None:
                self.removed.append(name)

    def list(self) -> Iterator[str]:
        with self._lock:
            yield from list(self.objects)

    def close(self) -> None:
        """Nothing to let go."""
