"""What must be true of an archive after a power cut, on an image of its disk.

Most cuts are looked at in this process, which opens what the daemons open: the index, the tree, tiering. Some by the
real daemons on a real mount. In both, whatever starts believes that the machine has booted since.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from appliance import config
from appliance.daemons.mount import tree_settings
from appliance.daemons.tierd import destinations, tiering_settings
from tests.cuts.promises import FILE, FOLDER, LINK, PIPE, Found, broken
from tests.cuts.recordings import ROOT, SETTINGS, Recording, targets_at
from tests.model.treecheck import check_tree
from tests.system.archives import Archive, with_engine
from tests.system.load import Daemons
from vnafs import store
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT as ROOT_INODE
from vnafs.domain.ids import Inode, Span
from vnafs.fs.attributes import Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.commitment import settle
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.local.fileclock import FileClock
from vnafs.local.spool import Spool
from vnafs.pipeline.held import stubs_without_copy
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.runner import Tiering

SOMEBODY = Caller(0, 0, 1)
READ_BYTES = 1 << 24
KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK, stat.S_IFIFO: PIPE}
AFTER = "written after the cut"
_FoundT = TypeVar("_FoundT")


def _raise(problem: BaseException) -> None:
    raise problem


class Opened:
    """An archive opened in this process."""

    def __init__(self, archive: str, *, also_tiering: bool) -> None:
        configuration = config.load(archive)
        self.clock = FileClock()
        self.engine = store.open_namespace(archive)
        self.store = store.open_store(archive)
        self.fs: Filesystem = store.open_tree(
            archive,
            self.engine,
            tree_settings(configuration, 4096),
            clock=self.clock,
            faults=NoFaults(),
            copies_of=lambda _, __: (),
            boot_id="after the cut",
            boot_clock=self.clock,
        )
        self.spool = Spool(store.folder(archive, "spool"))
        self.tiering: Tiering = store.open_tiering(
            archive,
            self.store,
            self.engine,
            self.fs,
            lambda identity: tiering_settings(configuration, identity),
            clock=SystemClock(),
            faults=NoFaults(),
            fatal=_raise,
        )
        self.tiering.set_targets(destinations(configuration, {}))

    def close(self) -> None:
        self.tiering.stop()
        self.fs.close()
        self.store.close()
        self.engine.close()
        self.clock.close()

    # -- reading -------------------------------------------------------------------------------------------------

    def folder(self, *names: str) -> Inode:
        inode = ROOT_INODE
        for name in names:
            inode = self.fs.lookup(inode, name.encode()).inode
        return inode

    def everything(self, folder: Inode, above: str = "") -> dict[str, Found]:
        """All names below a folder."""
        found: dict[str, Found] = {}
        for _, raw, attributes in list(self.fs.listing(folder, 0)):
            if raw in (b".", b".."):
                continue
            name = f"{above}{raw.decode()}"
            found[name] = self._found(attributes)
            if found[name].kind == FOLDER:
                found |= self.everything(attributes.inode, f"{name}/")
        return found

    def _found(self, attributes: Attributes) -> Found:
        inode, kind = attributes.inode, KINDS[stat.S_IFMT(attributes.mode)]
        names = self.fs.listxattr(inode, trusted=False)
        return Found(
            kind,
            inode,
            self.read(inode) if kind == FILE else b"",
            self.fs.readlink(inode).decode() if kind == LINK else "",
            stat.S_IMODE(attributes.mode),
            attributes.mtime_ns,
            {name.decode(): self.fs.getxattr(inode, name) for name in names},
        )

    def read(self, inode: Inode) -> bytes:
        handle = self._recalling(lambda: self.fs.open(inode, os.O_RDONLY, SOMEBODY))
        try:
            return self.fs.read(handle, 0, READ_BYTES)
        except RangeNeeded as needed:
            facts = self.fs.facts(inode)
            assert facts.sha256 is not None
            span = Span(needed.offset, needed.length)
            path, _ = self.tiering.recaller.ensure(inode, needed.version, facts.sha256, facts.repository, span)
            return Path(path).read_bytes()[needed.offset : needed.offset + needed.length]
        finally:
            self.fs.release(handle)

    def _recalling(self, call: Callable[[], _FoundT]) -> _FoundT:
        for _ in range(3):
            try:
                return call()
            except RecallNeeded as needed:
                facts = self.fs.facts(needed.inode)
                assert facts.sha256 is not None
                staged = self.tiering.recaller.recall(needed.inode, needed.version, facts.sha256, facts.repository)
                self.fs.adopt(needed.inode, needed.version, staged)
        raise AssertionError("a file that was recalled is a stub each time")

    def goes_on(self) -> None:
        """One more file, durably, and tiering takes it up."""
        share = self.folder("archive")
        handle, made = self.fs.create(share, AFTER.encode(), 0o644, os.O_WRONLY, SOMEBODY)
        data = os.urandom(5000)
        self.fs.write(handle, 0, data)
        commitment = self.fs.flush(handle)
        assert commitment is not None
        settle(commitment, self.engine)
        self.fs.settled(commitment)
        self.fs.release(handle)
        assert self.read(made.inode) == data

    def replicates(self) -> None:
        """Until every file has its copies."""
        clock = SystemClock()
        until = clock.monotonic() + 60
        while not self._all_copied():
            assert clock.monotonic() < until, f"tiering does not go on: {self.tiering.stalled}"
            if not self.tiering.step():
                clock.sleep(0.02)

    def _all_copied(self) -> bool:
        pending = (FileState.OPEN, FileState.SEALED, FileState.PACKED)
        found = self.everything(self.folder("archive"))
        files = [self.fs.facts(Inode(one.inode)) for one in found.values() if one.kind == FILE]
        return not any(facts.state in pending for facts in files)


def look(recording: Recording, position: int, *, replicates: bool) -> None:
    """In this process, on the image that is mounted. Raises AssertionError and whatever does not open."""
    opened = Opened(str(recording.place / "archive"), also_tiering=True)
    try:
        check_tree(opened.engine, opened.spool)
        _compare(recording, position, lambda name: opened.everything(opened.folder("archive", name)))
        # what recalls left to be removed goes once it is synced, as the mount process has it go every second
        lost = list(stubs_without_copy(opened.store, Namespace(opened.engine)))
        assert not lost, f"stubs without a copy: {lost}"
        opened.goes_on()
        if replicates:
            opened.replicates()
            _compare(recording, position, lambda name: opened.everything(opened.folder("archive", name)))
    finally:
        opened.close()


def _compare(recording: Recording, position: int, everything: Callable[[str], Mapping[str, Found]]) -> None:
    for name, deeds in recording.clients.items():
        try:
            found = everything(name)
        except Exception as problem:
            if position >= recording.first:
                problem.add_note(f"in {name}")
                raise
            continue
        why = broken(deeds, position, found)
        assert not why, f"{name}: {why}"


class Rebooted(Archive):
    """An archive whose daemons believe that the machine has booted since."""

    def start(self, name: str, *words: str, wait: bool = True) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.cuts.rebooted", name, *words]
            process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log, cwd=ROOT)
        self._processes.append(process)
        if wait:
            self.ready((name,), process)
        return process


def look_mounted(recording: Recording, position: int) -> None:
    """By the real daemons, through a real mount. Everything is copied, evicted and read again besides."""
    place = recording.place
    archive = Rebooted(place, targets_at(place), {}, with_engine(SETTINGS, recording.engine))
    try:
        for name in ("mount", "tierd"):
            archive.start(name)
        _compare(recording, position, lambda name: _walk(archive.share / name))
        more = archive.share / AFTER
        more.write_bytes(b"more")
        archive.wait()
        ask = Daemons(archive)
        paths = [Path(folder, name) for folder, _, names in os.walk(archive.share) for name in names]
        ask.evict_all(*[path for path in paths if path.is_file() and not path.is_symlink()])
        ask.close()
        _compare(recording, position, lambda name: _walk(archive.share / name))
        assert more.read_bytes() == b"more"
    except BaseException as problem:
        problem.add_note(archive.tail())
        raise
    finally:
        archive.stop()


def _walk(folder: Path) -> dict[str, Found]:
    found = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            status = path.lstat()
            kind = KINDS[stat.S_IFMT(status.st_mode)]
            keys = os.listxattr(path, follow_symlinks=False) if kind == FILE else []
            found[str(path.relative_to(folder))] = Found(
                kind,
                status.st_ino,
                path.read_bytes() if kind == FILE else b"",
                os.readlink(path) if kind == LINK else "",
                stat.S_IMODE(status.st_mode),
                status.st_mtime_ns,
                {key: os.getxattr(path, key) for key in keys if key.startswith("user.")},
            )
    return found
