"""mount: serves the tree. Wiring only.

The tree belongs to trio's thread; the control socket's threads hand their work to it. Recalls wait in threads of
their own, so that one that hangs holds nobody but whoever asked for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from appliance import system
from appliance.config import Configuration, load
from appliance.control.client import ControlClient
from appliance.control.erasure import erasure_methods
from appliance.control.mount import mount_methods
from appliance.control.recall import RecallClient
from appliance.control.retention import retention_methods
from appliance.control.rollback import rollback_methods
from appliance.control.server import ControlServer
from appliance.control.tree import tree_methods
from appliance.control.versions import version_methods
from appliance.daemons import keeping
from appliance.daemons.room import LOOK_SECONDS, TargetRoom
from appliance.shares import sessions
from appliance.shares.settings import ShareSettings
from vnafs import store as archive_store
from vnafs.domain.copies import Copy
from vnafs.domain.errors import Busy, DaemonUnreachable, NotFound, RecallFailed, Refused, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileFacts, FileState
from vnafs.domain.ids import Inode, Sha256, Span, Version
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.settings import Settings
from vnafs.fuse.admission import Admission
from vnafs.fuse.serving import MountOptions, together
from vnafs.local.fileclock import FileClock
from vnafs.pipeline.held import copies_of_content

log = logging.getLogger(__name__)

OPEN_FILES_KEPT = 256
"""Of the limit of open files, for the index, sockets and /dev/fuse."""
ASK_AGAIN_SECONDS = 0.5
START_AGAIN = 1
"""Exit code: nothing is mounted, and the next process begins without what could not be taken over."""
RECALLS_MAX = 96
"""Threads that may wait for tierd at once; fewer than it serves (CONNECTIONS_MAX), so that others still get through."""


def run(configuration: Configuration, faults: Faults, *, keeper: str = "") -> int:
    """Serve until SIGTERM or SIGINT. Raises ArchiveBusy and what opening an archive raises.

    *keeper* are the words of a supervisor that keeps the mount (`keeping.given`).
    """
    # A lease that is broken while it is held sends SIGIO, whose default is to end the process (fcntl(2)).
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    archive = configuration.archive
    end: keeping.KeeperEnd | None = None
    descriptors: Sequence[int] = ()
    if keeper:
        system.hold_stop_signals()  # whoever is asked to end from here on takes the mount away
        _engine(system.engine_for(configuration.file_system.engine))  # whoever waits to be needed has it loaded
        end, descriptors = keeping.given(keeper)
        configuration = load(archive)  # who waited read it long ago
        if descriptors:
            system.hurry()  # clients wait
    open_files_max = system.raise_open_files()
    engine, clock = archive_store.open_namespace(archive, faults=faults), FileClock()
    try:
        copies = _Copies(archive)
        open_tree = functools.partial(
            archive_store.open_tree,
            archive,
            engine,
            tree_settings(configuration, open_files_max),
            clock=clock,
            faults=faults,
            copies_of=copies.of,
            boot_id=system.boot_id(),
            boot_clock=clock,
        )
        identity = archive_store.archive_id(engine, archive) if descriptors else b""
        filesystem, kept = _open(configuration, identity, end, descriptors, open_tree)
        ready = functools.partial(_ready, configuration, end, is_new="inheritance" not in kept)
        copies.facts = filesystem.facts
        _forget_staged(configuration.folder("staging"))
        system.make_mount_point(configuration.mount)
        try:
            trio.run(_serve, configuration, filesystem, kept, ready)
        except (Busy, Refused) as problem:
            if "inheritance" not in kept:
                raise
            log.warning("mount.not_taken_over", extra={"why": str(problem)})
            return START_AGAIN
        filesystem.close()
    finally:
        engine.close()
        clock.close()
    return 0


def _open(
    configuration: Configuration,
    identity: bytes,
    end: keeping.KeeperEnd | None,
    descriptors: Sequence[int],
    open_tree: Callable[..., Filesystem],
) -> tuple[Filesystem, Mapping[str, object]]:
    """The tree, and what the engine must be told: the keeper, and the mount that it kept, if we go on with that."""
    is_kernel = system.engine_for(configuration.file_system.engine) == "kernel"
    if end is None or not (is_kernel or descriptors):
        return open_tree(), {}
    from vnafs.fuse.kernel.keeper import abandon, inherited  # noqa: PLC0415 - as `_engine`

    inheritance = None
    if descriptors:
        [control, estate] = descriptors
        inheritance = inherited(control, estate, archive=identity, mountpoint=configuration.mount)
    if inheritance is not None:
        try:
            if not is_kernel:
                raise Refused(what="Taking over", why="the engine is another one now")
            return open_tree(open_before=inheritance.open_before()), {"keeper": end, "inheritance": inheritance}
        except VnaError as problem:
            log.warning("mount.not_taken_over", extra={"why": str(problem)})
            abandon(inheritance.control, inheritance.estate.mount)
            inheritance.estate.close()
    if descriptors:
        end.let_go()
    return open_tree(), {"keeper": end} if is_kernel else {}


def tree_settings(configuration: Configuration, open_files_max: int) -> Settings:
    """What the tree needs of the configuration and of the system's limit of open files."""
    return Settings(
        quiet_seconds=configuration.file_system.quiet_seconds,
        handles_open_max=min(configuration.file_system.open_files_max, open_files_max - OPEN_FILES_KEPT),
        reserve_bytes=configuration.spool.reserve_bytes,
        recall_whole_bytes_max=configuration.file_system.recall_whole_bytes_max,
        hold_seconds_max=configuration.file_system.hold_seconds_max,
    )


def _forget_staged(folder: str) -> None:
    """Remove what was staged for a mount that died before it adopted it; ranges (`.part`) are tierd's own."""
    for name in os.listdir(folder):
        if not name.endswith(".part"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _ready(configuration: Configuration, end: keeping.KeeperEnd | None, *, is_new: bool) -> None:
    log.info("mount.ready", extra={"engine": system.engine_for(configuration.file_system.engine)})
    if end is not None:
        end.serves()
        system.as_whoever_started_us()
    if is_new:  # in a thread of its own, because the tree's answers clients meanwhile
        threading.Thread(target=_tell_servers, args=(configuration.shares,), daemon=True).start()


def _tell_servers(shares: Sequence[ShareSettings]) -> None:
    if sessions.look_again(shares, system.run):
        log.info("mount.nfs_server_told")


async def _serve(
    configuration: Configuration, filesystem: Filesystem, kept: Mapping[str, object], ready: Callable[[], None]
) -> None:
    token = trio.lowlevel.current_trio_token()
    tierd = ControlClient(
        os.path.join(configuration.folder("run"), "tierd.sock"),
        "tierd",
        timeout_seconds=configuration.file_system.recall_seconds_max,
    )
    recaller = DaemonRecaller(
        filesystem, RecallClient(tierd), wait_seconds_max=configuration.file_system.recall_seconds_max
    )

    def in_loop(work: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(work, trio_token=token)

    def recall(inode: Inode, version: Version) -> None:
        trio.from_thread.run(recaller.recall, inode, version, trio_token=token)

    never = configuration.recall
    admission = Admission(never.never_processes, never.never_uids, never.never_hosts)
    methods = [
        *tree_methods(filesystem, in_loop),
        *mount_methods(filesystem, in_loop, recall, admission.refused),
        *version_methods(filesystem, in_loop),
        *rollback_methods(filesystem, in_loop),
        *retention_methods(filesystem, in_loop),
        *erasure_methods(filesystem, in_loop),
    ]
    server = ControlServer(os.path.join(configuration.folder("run"), "mount.sock"), methods)
    server.start()
    engine = system.engine_for(configuration.file_system.engine)
    options = MountOptions(allow_other=configuration.file_system.allow_other and os.geteuid() == 0, admission=admission)
    try:
        with trio.open_signal_receiver(*system.STOPPING) as signals, trio.CancelScope() as scope:
            system.let_stop_signals()  # before anything is mounted or taken over
            served = functools.partial(
                _engine(engine),
                filesystem,
                configuration.mount,
                recaller,
                ready=ready,
                options=options,
                **kept,
            )
            room = TargetRoom(lambda: [target.url for target in load(configuration.archive).targets])
            await together(
                served,
                functools.partial(_until_signal, signals, scope),
                functools.partial(_follow_room, room, filesystem),
            )
    finally:
        server.close()


async def _follow_room(room: TargetRoom, filesystem: Filesystem) -> None:
    while True:
        found = await trio.to_thread.run_sync(room.look, abandon_on_cancel=True)
        if found is not None:
            filesystem.targets_have(found)
        await trio.sleep(LOOK_SECONDS)


def _engine(name: str) -> Callable[..., Awaitable[None]]:
    """What serves; the other one is not even loaded."""
    module = {"kernel": "vnafs.fuse.kernel.engine", "pyfuse3": "vnafs.fuse.pyfuse3"}[name]
    serve: Callable[..., Awaitable[None]] = importlib.import_module(module).serve
    return serve


async def _until_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("mount.stopping", extra={"signal": number})
        scope.cancel()
        return


class DaemonRecaller:
    """Brings bytes back through tierd; requests for one version share one recall."""

    def __init__(self, filesystem: Filesystem, client: RecallClient, *, wait_seconds_max: float) -> None:
        self._filesystem = filesystem
        self._client = client
        self._wait_seconds_max = wait_seconds_max
        self._under_way: dict[tuple[Inode, Version], trio.Event] = {}
        self._threads = trio.CapacityLimiter(RECALLS_MAX)

    async def recall(self, inode: Inode, version: Version) -> None:
        """See Recaller."""
        key = (inode, version)
        while (other := self._under_way.get(key)) is not None:
            await other.wait()
        facts = self._stub(inode, version)
        if facts is None or facts.sha256 is None:
            return
        done = self._under_way[key] = trio.Event()
        try:
            work = functools.partial(self._client.recall, inode, version, facts.sha256, facts.repository)
            staged = await self._in_thread(work)
            try:
                self._filesystem.adopt(inode, version, staged)
            finally:
                if os.path.exists(staged):
                    os.unlink(staged)  # somebody truncated, replaced or brought it meanwhile
        finally:
            del self._under_way[key]
            done.set()

    async def fetch_range(self, inode: Inode, version: Version, offset: int, length: int) -> str:
        """See Recaller."""
        facts = self._stub(inode, version) or self._filesystem.asof.kept_facts(inode, version)
        if facts is None or facts.sha256 is None:
            raise RecallFailed(what=f"inode {inode} version {version}", why="it is not a stub any more")
        work = functools.partial(
            self._client.ensure, inode, version, facts.sha256, facts.repository, Span(offset, length)
        )
        path, _ = await self._in_thread(work)
        return str(path)

    def _stub(self, inode: Inode, version: Version) -> FileFacts | None:
        try:
            facts = self._filesystem.facts(inode)
        except NotFound:
            return None
        return facts if facts.version == version and facts.state is FileState.STUB else None

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """The result of a call that waits; a tierd that restarts is waited for, as readers of a disk wait for it."""
        deadline = trio.current_time() + self._wait_seconds_max
        while True:
            try:
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
            except DaemonUnreachable as problem:
                if trio.current_time() + ASK_AGAIN_SECONDS >= deadline:
                    raise RecallFailed(what="A file", why=str(problem)) from problem
                await trio.sleep(ASK_AGAIN_SECONDS)


class _Copies:
    """Answers `user.vna.copies` from the store, read-only; no copies before tierd ever ran."""

    def __init__(self, archive: str) -> None:
        self._late = archive_store.LateStore(archive)
        self.facts: Callable[[Inode], FileFacts] | None = None

    def of(self, inode: Inode, sha256: Sha256) -> Sequence[Copy]:
        """Verified copies of a file's content."""
        store = self._late.get()
        if store is None or self.facts is None:
            return ()
        return copies_of_content(store, sha256, self.facts(inode).repository)
