"""A world (see `pipelineworld`) with a plain mirror, and the tree as that must be."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from tests.mirrormemory import MemoryMirror
from tests.mirrorreader import rebuilt
from tests.model.pipelineworld import SOMEBODY, World
from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT, Inode
from vnafs.index import mirrored
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.repositories import every
from vnafs.targets.faulty import FaultyMirror
from vnafs.upkeep.mirroring import Mirroring, MirrorRules


class Mirrored(World):
    """One archive and its mirror, each step driven by the test."""

    def __init__(self, home: Path, rules: MirrorRules | None = None, **words: Any) -> None:
        self.rules = rules or MirrorRules("memory:", harm_seconds=0.0, transfers_max=2)
        self.rows = MemoryEngine()
        self.place = MemoryMirror()
        super().__init__(home, **words)

    def begin(self) -> None:
        super().begin()
        if not hasattr(self, "faulty"):
            self.faulty = FaultyMirror(self.place, self.clock)
        self.mirroring = Mirroring(
            self.rows,
            self._namespace,
            self.faulty,
            self.rules,
            str(self.home / "mirror"),
            local_path=self.fs.local_path,
            bytes_of=self.tiering.recaller.reading,
            taking_room=lambda _: contextlib.nullcontext(),
            clock=self.clock,
            faults=self.fate,
            fatal=_raise,
        )

    def mirror(self, seconds_max: float = 3_000.0) -> None:
        """Let time pass until the mirror has nothing more to do."""
        passed = 0.0
        while passed < seconds_max:
            while self.mirroring.step():
                pass
            if self.is_mirrored():
                return
            self.clock.advance(2.0)
            passed += 2.0
        raise AssertionError(f"not mirrored: {self.mirroring.standing()}")

    def is_mirrored(self) -> bool:
        now = self.mirroring.standing()
        return now.reachable and not (now.waiting or now.walks or now.unread_events)

    def seal(self) -> None:
        """Everything is sealed and in packs on every target."""
        for _ in range(2_000):
            while self.tiering.step():
                pass
            rows = [self.namespace().row(found["inode"]) for found in self.tree(chosen=False).values()]
            if all(row.state >= FileState.REPLICATED for row in rows if row.is_file):
                return
            self.clock.advance(2.0)
        raise AssertionError("not sealed")

    def settled(self) -> None:
        """Everything is sealed and packed, then mirrored."""
        self.seal()
        self.mirror()

    # -- what must be ----------------------------------------------------------------------------------------------

    def tree(self, *, chosen: bool = True) -> dict[bytes, dict[str, Any]]:
        """Everything that is mirrored by path, as the tree has it."""
        found: dict[bytes, dict[str, Any]] = {}
        with self._namespace.read() as reader:
            wanted = {r.name.encode() for r in every(reader) if not chosen or self.rules.chosen(r)}

        def walk(folder: Inode, path: bytes) -> None:
            for _, name, shown in self.fs.listing(folder, 0):
                if name in (b".", b"..") or (folder == ROOT and name not in wanted):
                    continue
                below = path + b"/" + name if path else name
                row = self.namespace().row(shown.inode)
                kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
                found[below] = {
                    "type": kind.get(stat.S_IFMT(row.mode), "fifo"),
                    "inode": shown.inode,
                    "row": row,
                    "seal": row.seal,
                    "xattrs": {n: self.fs.getxattr(shown.inode, n) for n in self.fs.listxattr(shown.inode)},
                }
                if row.is_directory:
                    walk(shown.inode, below)

        walk(ROOT, b"")
        return found

    def check(self) -> None:
        """The mirror is the tree: nothing more, nothing less, by a reader that knows nothing of ours."""
        there = rebuilt(self.place.objects)
        assert there.pop(b"")["own"]["mode"]
        tree = self.tree()
        assert set(there) == set(tree)
        for path, wanted in tree.items():
            have, row = there[path], wanted["row"]
            told = have["own"] if row.is_directory else have
            assert have["type"] == wanted["type"]
            assert (told["mode"], told["uid"], told["gid"]) == (f"{stat.S_IMODE(row.mode):04o}", row.uid, row.gid)
            assert told["mtime_ns"] == row.mtime_ns, path
            assert told.get("xattrs", {}) == wanted["xattrs"], (path, told, wanted)
            if row.is_symlink:
                assert have["target"] == self.fs.readlink(wanted["inode"])
            if row.is_file:
                assert "pending" not in have
                assert have["sha256"] == row.seal.sha256.hex()
                assert len(have["bytes"]) == row.size_bytes
                assert have.get("inode", wanted["inode"]) == wanted["inode"]
                assert ("inode" in have) == (row.nlink > 1)
        with self.rows.read() as reader:
            files = [len(have["bytes"]) for have in there.values() if "bytes" in have]
            assert mirrored.count(reader, mirrored.OBJECTS) == len(files)
            assert mirrored.count(reader, mirrored.BYTES) == sum(files)

    # -- what clients do in folders ----------------------------------------------------------------------------------

    def put(self, folder: Inode, name: bytes, data: bytes) -> None:
        handle, _ = self._recalling(lambda: self.fs.create(folder, name, 0o644, os.O_WRONLY | os.O_TRUNC, SOMEBODY))
        if data:
            self.fs.write(handle, 0, data)
        self.fs.release(handle)

    def folder(self, *names: bytes) -> Inode:
        inode = self.share
        for name in names:
            found = self.fs.find(inode, name)
            inode = self.fs.mkdir(inode, name, 0o755, SOMEBODY).inode if found is None else found.inode
        return inode

    def objects(self) -> dict[str, bytes]:
        """What is on the mirror, but what describes it."""
        return {name: data for name, data in self.place.objects.items() if not name.endswith(".jsonl")}


def _raise(problem: BaseException) -> None:
    raise problem
