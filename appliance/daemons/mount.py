"""mount: serves the tree. Wiring only.

The tree belongs to trio's thread; the control socket's threads hand their work to it. Recalls wait in threads of
their own, so that one that hangs holds nobody but whoever asked for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import trio

from appliance import system
from appliance.config import Configuration
from appliance.control.client import ControlClient
from appliance.control.erasure import erasure_methods
from appliance.control.mount import mount_methods
from appliance.control.recall import RecallClient
from appliance.control.retention import retention_methods
from appliance.control.rollback import rollback_methods
from appliance.control.server import ControlServer
from appliance.control.tree import tree_methods
from appliance.control.versions import version_methods
from vnafs import store as archive_store
from vnafs.domain.clock import SystemClock
from vnafs.domain.copies import Copy
from vnafs.domain.errors import DaemonUnreachable, NotFound, RecallFailed
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileFacts, FileState
from vnafs.domain.ids import Inode, Sha256, Span, Version
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.settings import Settings
from vnafs.fuse.admission import Admission
from vnafs.fuse.pyfuse3 import MountOptions, serve, together
from vnafs.pipeline.held import copies_of_content

log = logging.getLogger(__name__)

OPEN_FILES_KEPT = 256
"""Of the limit of open files, for the index, sockets and /dev/fuse."""
ASK_AGAIN_SECONDS = 0.5
RECALLS_MAX = 96
"""Threads that may wait for tierd at once; fewer than it serves (CONNECTIONS_MAX), so that others still get through."""


def run(configuration: Configuration, faults: Faults) -> int:
    """Serve until SIGTERM or SIGINT. Raises ArchiveBusy and what opening an archive raises."""
    # A lease that is broken while it is held sends SIGIO, whose default is to end the process (fcntl(2)).
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    archive = configuration.archive
    open_files_max = system.raise_open_files()
    engine = archive_store.open_namespace(archive, faults=faults)
    try:
        copies = _Copies(archive)
        filesystem = archive_store.open_tree(
            archive,
            engine,
            tree_settings(configuration, open_files_max),
            clock=SystemClock(),
            faults=faults,
            copies_of=copies.of,
            boot_id=system.boot_id(),
            boot_clock=SystemClock(),
        )
        copies.facts = filesystem.facts
        _forget_staged(configuration.folder("staging"))
        system.make_mount_point(configuration.mount)
        trio.run(_serve, configuration, filesystem)
        filesystem.close()
    finally:
        engine.close()
    return 0


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


async def _serve(configuration: Configuration, filesystem: Filesystem) -> None:
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

    admission = Admission(configuration.recall.never_processes, configuration.recall.never_uids)
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
    options = MountOptions(allow_other=configuration.file_system.allow_other and os.geteuid() == 0, admission=admission)
    try:
        with trio.CancelScope() as scope:
            served = functools.partial(
                serve,
                filesystem,
                configuration.mount,
                recaller,
                ready=lambda: log.info("mount.ready"),
                options=options,
            )
            await together(served, functools.partial(_until_signal, scope))
    finally:
        server.close()


async def _until_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
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
