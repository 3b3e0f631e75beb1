"""What a `durable` repository has promised of a tree at any moment, and what it may look like after a power cut.

One client works in one directory, one call after the other. A deed that was answered before the cut is promised as
SEMANTICS.md has it (P-2, P-4, P-5): changes of names, attributes and sizes when the call returned; bytes when they were
closed, synced or written through O_SYNC. Bytes before that, and the one deed that was under way, may be there or not,
also in part. Nothing that was not begun may be there, and nothing that was taken away may come back.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass
class Deed:
    """One call. Positions count what was recorded of the disk when it was made, and when it had been answered."""

    kind: str
    words: tuple[Any, ...]
    begun: int
    answered: int | None = None

    def __str__(self) -> str:
        words = [f"<{len(word)} bytes>" if isinstance(word, bytes) else repr(word) for word in self.words]
        return f"{self.kind}({', '.join(words)})"


@dataclasses.dataclass
class Content:
    """Bytes that are promised, and what was done to them since: writes ("write", offset, data), sizes ("size", n)."""

    sure: bytes = b""
    since: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self.since.append(("write", offset, data))

    def resize(self, size: int) -> None:
        self.since.append(("size", size))

    def settle(self) -> None:
        """All of it is promised now."""
        self.sure = self.newest()
        self.since.clear()

    def settle_size(self, size: int) -> None:
        """The size is promised now, and bytes beyond the old ones are zeros; writes before need not be there."""
        self.sure = self.sure[:size].ljust(size, b"\0")
        kept = [("write", words[1], words[2][: max(0, size - words[1])]) for words in self.since if words[0] == "write"]
        self.since = [words for words in kept if words[2]]

    def newest(self) -> bytes:
        """What a reader saw before the cut."""
        data = bytearray(self.sure)
        for words in self.since:
            _do(data, words)
        return bytes(data)

    def wrong(self, found: bytes) -> str:
        """Empty when *found* is one of what may be there."""
        if not self.since:
            return (
                ""
                if found == self.sure
                else f"{len(found)} bytes for {len(self.sure)}, from {_first(found, self.sure)}"
            )
        sizes, data, may_be_zero = [len(self.sure)], bytearray(self.sure), len(self.sure)
        for words in self.since:
            _do(data, words)
            sizes.append(len(data))
            if words[0] == "size":
                may_be_zero = min(may_be_zero, words[1])
        if not min(sizes) <= len(found) <= max(sizes):
            return f"{len(found)} bytes, not {min(sizes)} to {max(sizes)}"
        layers = [(0, self.sure), *((words[1], words[2]) for words in self.since if words[0] == "write")]
        edges = sorted({0, len(found), may_be_zero, *(edge for at, data in layers for edge in (at, at + len(data)))})
        for start, end in itertools.pairwise(edges):
            if end > len(found):
                break
            run = found[start:end]
            could = [data[start - at : end - at] for at, data in layers if at <= start and end <= at + len(data)]
            if start >= may_be_zero:
                could.append(bytes(end - start))
            if run not in could and not all(byte in options for byte, *options in zip(run, *could, strict=True)):
                return f"bytes {start} to {end} of {len(found)} are none of what was written"
        return ""


def _do(data: bytearray, words: tuple[Any, ...]) -> None:
    if words[0] == "size":
        size = words[1]
        del data[size:]
        data.extend(bytes(size - len(data)))
        return
    _, offset, new = words
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(new)] = new


def _first(found: bytes, wanted: bytes) -> int:
    pairs = zip(found, wanted, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(found), len(wanted)))


@dataclasses.dataclass
class Node:
    """What a name leads to."""

    kind: str
    content: Content = dataclasses.field(default_factory=Content)
    target: str = ""
    mode: int | None = None
    mtime_ns: int | None = None
    xattrs: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found at a name."""

    kind: str
    inode: int
    data: bytes
    target: str
    mode: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]


FILE, FOLDER, LINK, PIPE = "file", "folder", "link", "pipe"


class Tree:
    """The names below one directory, as relative paths, and the handle that its client has open."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.nodes: dict[int, Node] = {}
        self.open: int | None = None
        self.syncs_each = False
        self._next = 1

    def copy(self) -> Tree:
        return copy.deepcopy(self)

    def of_kind(self, kind: str) -> list[str]:
        return sorted(name for name, number in self.names.items() if self.nodes[number].kind == kind)

    def node(self, name: str) -> Node:
        return self.nodes[self.names[name]]

    def below(self, folder: str) -> Iterator[str]:
        yield from (name for name in self.names if name.startswith(f"{folder}/"))

    @property
    def handle(self) -> Node:
        assert self.open is not None
        return self.nodes[self.open]

    def _add(self, name: str, node: Node) -> int:
        number, self._next = self._next, self._next + 1
        self.names[name], self.nodes[number] = number, node
        return number

    # -- answered ------------------------------------------------------------------------------------------------

    def apply(self, deed: Deed) -> None:
        """A deed was answered."""
        getattr(self, f"_{deed.kind}")(*deed.words)

    def outcomes(self, deed: Deed) -> list[Tree]:
        """A deed was under way: everything that it may have come to."""
        if deed.kind in ("write", "store"):
            tree = self.copy()
            tree.handle.content.write(*deed.words)
            tree.handle.mtime_ns = None
            return [tree]
        if deed.kind in ("close", "sync"):
            return [self]
        if deed.kind == "resize":
            tree = self.copy()
            tree.handle.content.resize(*deed.words)
            tree.handle.mtime_ns = None
            return [tree]
        if deed.kind == "cut":
            name, size = deed.words
            tree = self.copy()
            tree.node(name).content.resize(size)
            tree.node(name).mtime_ns = None
            return [tree]
        if deed.kind == "reopen":
            tree = self.copy()
            tree.apply(deed)
            return [tree]  # what an open promises is nothing but that it may begin to write
        after = self.copy()
        after.apply(deed)
        return [self, after]

    def _mkdir(self, name: str) -> None:
        self._add(name, Node(FOLDER))

    def _create(self, name: str, syncs_each: bool) -> None:
        self.open, self.syncs_each = self._add(name, Node(FILE)), syncs_each

    def _reopen(self, name: str, empties: bool, syncs_each: bool) -> None:
        self.open, self.syncs_each = self.names[name], syncs_each
        self.handle.mtime_ns = None
        if empties:
            self.handle.content.resize(0)

    def _write(self, offset: int, data: bytes) -> None:
        self.handle.mtime_ns = None
        self.handle.content.write(offset, data)
        if self.syncs_each:
            self.handle.content.settle()

    def _store(self, offset: int, data: bytes) -> None:
        """Through a mapping, and msync."""
        self.handle.mtime_ns = None
        self.handle.content.write(offset, data)
        self.handle.content.settle()

    def _sync(self) -> None:
        self.handle.content.settle()

    def _close(self) -> None:
        self.handle.content.settle()
        self.open = None

    def _resize(self, size: int) -> None:
        self.handle.mtime_ns = None
        self.handle.content.settle_size(size)

    def _cut(self, name: str, size: int) -> None:
        self.node(name).mtime_ns = None
        self.node(name).content.settle_size(size)

    def _rename(self, old: str, new: str) -> None:
        moved = self.names.pop(old)
        self.names[new] = moved
        for name in list(self.below(old)):
            self.names[new + name[len(old) :]] = self.names.pop(name)

    def _exchange(self, one: str, other: str) -> None:
        """Of two files."""
        self.names[one], self.names[other] = self.names[other], self.names[one]

    def _link(self, old: str, new: str) -> None:
        self.names[new] = self.names[old]

    def _unlink(self, name: str) -> None:
        del self.names[name]

    _rmdir = _unlink

    def _symlink(self, name: str, target: str) -> None:
        self._add(name, Node(LINK, target=target))

    def _mkfifo(self, name: str) -> None:
        self._add(name, Node(PIPE))

    def _chmod(self, name: str, mode: int) -> None:
        self.node(name).mode = mode

    def _utime(self, name: str, mtime_ns: int) -> None:
        self.node(name).mtime_ns = mtime_ns

    def _setxattr(self, name: str, key: str, value: bytes) -> None:
        self.node(name).xattrs[key] = value

    def _removexattr(self, name: str, key: str) -> None:
        del self.node(name).xattrs[key]

    # -- what is there ---------------------------------------------------------------------------------------------

    def differs(self, found: Mapping[str, Found]) -> str:
        """In words; empty when *found* is what was promised, or may be there besides."""
        if gone := sorted(self.names.keys() - found.keys()):
            return f"gone: {gone}"
        if extra := sorted(found.keys() - self.names.keys()):
            return f"should not be there: {extra}"
        inodes: dict[int, int] = {}
        for name, number in self.names.items():
            node, there = self.nodes[number], found[name]
            if inodes.setdefault(number, there.inode) != there.inode:
                return f"{name} is not the same file any more as its other name"
            if why := _differs(node, there):
                return f"{name}: {why}"
        if len(set(inodes.values())) != len(inodes):
            return "two files are one"
        return ""


def _differs(node: Node, there: Found) -> str:
    if node.kind != there.kind:
        return f"is a {there.kind}, not a {node.kind}"
    if node.kind == FILE and (why := node.content.wrong(there.data)):
        return why
    if node.target != there.target:
        return f"leads to {there.target!r}"
    if node.mode is not None and node.mode != there.mode:
        return f"has mode {there.mode:o}, not {node.mode:o}"
    if node.mtime_ns is not None and node.mtime_ns != there.mtime_ns:
        return f"was changed at {there.mtime_ns}, not {node.mtime_ns}"
    if node.kind == FILE and node.xattrs != there.xattrs:
        return f"has attributes {sorted(there.xattrs)}, not {sorted(node.xattrs)}"
    return ""


def broken(deeds: list[Deed], position: int, found: Mapping[str, Found]) -> str:
    """What of a client's tree is not as promised after a cut at *position*; empty when all is well."""
    tree = Tree()
    tail: list[str] = []
    for deed in deeds:
        if deed.answered is not None and deed.answered <= position:
            tree.apply(deed)
            tail.append(str(deed))
            continue
        if deed.begun >= position:
            break
        every = tree.outcomes(deed)
        whys = [one.differs(found) for one in every]
        return "" if "" in whys else f"{' / '.join(whys)}; under way {deed}; before {tail[-12:]}"
    why = tree.differs(found)
    return why and f"{why}; before {tail[-12:]}"
