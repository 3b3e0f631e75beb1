"""The tree as a plain mirror sees it: by path, and only the repositories that are mirrored. Read-only.

A view is what is folded at one moment; whoever wants to know what came later takes another one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vnafs.domain.events import Event
from vnafs.domain.ids import ROOT, Inode
from vnafs.domain.repositories import Repository
from vnafs.index import entries, erasures, feeds, inodes, keys, meta, repositories
from vnafs.index.engine import Engine, Reader, prefix_stop
from vnafs.index.inodes import InodeRow


class Name(NamedTuple):
    """A name in a folder."""

    leaf: bytes
    inode: Inode
    is_folder: bool


class MirroredTree:
    """*chosen* says of a repository whether it is mirrored."""

    def __init__(self, namespace: Engine, chosen: Callable[[Repository], bool]) -> None:
        self._namespace = namespace
        self._chosen = chosen

    @contextlib.contextmanager
    def view(self) -> Iterator[View]:
        """The tree as it is now."""
        with self._namespace.read() as reader:
            yield View(reader, {_raw(one): one for one in repositories.every(reader) if self._chosen(one)})


class View:
    """The tree at one moment."""

    def __init__(self, reader: Reader, chosen: Mapping[bytes, Repository]) -> None:
        self.reader = reader
        self.chosen = chosen
        """Repositories by name."""

    def repository(self, parts: Sequence[bytes], leaf: bytes) -> Repository | None:
        """Whose a name is; None for what is not mirrored, or not any more."""
        return self.chosen.get(parts[0] if parts else leaf)

    def folder(self, parts: Sequence[bytes]) -> Inode | None:
        """The directory at a path; no parts: the root."""
        if parts and parts[0] not in self.chosen:
            return None
        entry = entries.follow(self.reader, parts)
        return entry.inode if entry is not None and entry.is_directory else None

    def at(self, parts: Sequence[bytes], leaf: bytes) -> tuple[Inode, InodeRow] | None:
        """What a name leads to."""
        if self.repository(parts, leaf) is None:
            return None
        entry = entries.follow(self.reader, [*parts, leaf])
        row = None if entry is None else inodes.find(self.reader, entry.inode)
        return None if entry is None or row is None else (entry.inode, row)

    def is_erased(self, inode: Inode) -> bool:
        """Whether a file was erased for good: then it goes where what is removed stays, too."""
        return any(erasures.has(self.reader, erasure.number, inode) for erasure in erasures.every(self.reader))

    def row(self, inode: Inode) -> InodeRow | None:
        """What there is to say of an inode."""
        return inodes.find(self.reader, inode)

    def names(self, folder: Inode, after: bytes = b"") -> Iterator[Name]:
        """The names in a folder past *after*, in byte order; lazily."""
        prefix = keys.entries(folder)
        for key, value in self.reader.scan(prefix + after + b"\0" if after else prefix, prefix_stop(prefix)):
            leaf = keys.entry_of(bytes(key))[1]
            if folder != ROOT or leaf in self.chosen:
                entry = entries.decode(bytes(value))
                yield Name(leaf, entry.inode, entry.is_directory)

    def events(self, cursor: int, limit: int) -> list[tuple[int, Event]]:
        """See feeds.read_from. Raises CursorLost."""
        return list(itertools.islice(feeds.read_from(self.reader, cursor, limit), limit))

    def epoch(self) -> int:
        """Another one: the archive went on from an older state."""
        return meta.get_int(self.reader, meta.EPOCH) or 0

    def feed_end(self) -> int:
        """The number that the next event will get."""
        return feeds.end(self.reader)


def _raw(repository: Repository) -> bytes:
    return repository.name.encode("utf-8", "surrogateescape")
