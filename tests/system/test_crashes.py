"""kill -9 of each daemon at every named step of the pipeline: nothing acknowledged is lost, nobody repairs anything,
and nothing is done twice but what was in hand.

One archive serves all of them, one after another, so each also meets what the others left. What dies is started
again by the test; that `vna serve` does so by itself is shown at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.system.archives import Archive, an_archive, until
from tests.system.load import Daemons, Load, noise, nothing_left_over, objects, packs_known
from vnafs.domain.errors import VnaError
from vnafs.domain.faults import POINTS

pytestmark = pytest.mark.system

SETTINGS = """
[file_system]
quiet_seconds = 0.2

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.3
target_bytes = 1048576
"""

TIERD_ONLY = ("seal", "pack", "replicate")
TIERD_TOO = ("evict.decided", "recall.fetched", "recall.written")
REACHED = {
    # the mark of a busy log: not its first record, which its opening writes
    "log.appended": 20,
    "log.syncing": 10,
    "log.synced": 10,
    "log.folding": 8,
    "log.folded": 8,
    "tree.logged": 15,
    "pack.appended": 3,
}
"""The how manieth time kills; the first, where nothing is said."""


def daemon_of(point: str) -> str:
    """Whose code reaches a point. The store has no log: each of its transactions is synced by itself."""
    return "tierd" if point.split(".")[0] in TIERD_ONLY or point in TIERD_TOO else "mount"


class Served:
    """An archive whose two daemons a test starts, kills and starts again."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.ask = Daemons(archive)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.loads: list[Load] = []
        for name in ("mount", "tierd"):
            self.start(name)

    def start(self, name: str, *words: str, wait: bool = True) -> subprocess.Popen[bytes]:
        process = self.processes[name] = self.archive.start(name, *words, wait=wait)
        return process

    def stop(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGTERM)
        assert self.processes[name].wait(30) == 0

    def restart_to_die(self, name: str, point: str, times: int) -> subprocess.Popen[bytes]:
        """Start it again with a fault; it may die before it is ready."""
        if point == "log.replayed":
            self.die_with_a_log()
        else:
            self.stop(name)
        process = self.start(name, "--fault", f"{point}=kill:{times}", wait=False)

        def ready_or_dead() -> bool:
            with contextlib.suppress(VnaError):
                (self.ask.mount if name == "mount" else self.ask.tierd).call(
                    "mount.status" if name == "mount" else "tiering.status"
                )
                return True
            return process.poll() is not None

        until(ready_or_dead, f"{name} is ready or dead", 30)
        return process

    def die_with_a_log(self) -> None:
        """Kill the mount between a log record and its fold, so that the next start has something to replay."""
        self.stop("mount")
        process = self.start("mount", "--fault", "log.folding=kill", wait=False)
        until(lambda: process.poll() is not None or self.archive.is_mounted(), "a mount or none any more", 30)
        with contextlib.suppress(OSError):
            (self.archive.share / "unfolded").write_bytes(b"unfolded")
        until(lambda: process.poll() is not None, "the mount dies with a log to replay", 30)
        assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def _served(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        made: list[Served | None] = [None]

        def get(*, fresh: bool = False) -> Served:
            if fresh or made[0] is None:
                stack.close()
                folder = tmp_path_factory.mktemp("crashes")
                archive = stack.enter_context(an_archive(folder, settings=SETTINGS, serve=False))
                made[0] = Served(archive)
                stack.callback(made[0].ask.close)
            return made[0]

        yield get


@pytest.fixture
def served(_served, request):
    found = _served()
    yield found
    if getattr(request.node, "failed", True):
        # what a failed test leaves would only confuse the next one
        found.archive.stop()
        _served(fresh=True)


@pytest.fixture(autouse=True)
def _note_success(request):
    request.node.failed = True
    yield


def passed(request) -> None:
    request.node.failed = False


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point, served, request):
    archive, ask, daemon = served.archive, served.ask, daemon_of(point)
    load = Load(archive, point)
    load.prepare()
    until(lambda: ask.all_done() and all(archive.state(p) == "replicated" for p in load.paths()), "ready for it", 60)
    assert ask.evict(*(load.path(f"stub-{n}") for n in range(3)))["refused"] == []
    before = objects(archive.folder / "one")

    process = served.restart_to_die(daemon, point, REACHED.get(point, 1))
    with contextlib.suppress(OSError):
        load.run()
    give_work_until_dead(served, load, process)
    assert process.returncode == -signal.SIGKILL, f"{point} was never reached\n{archive.tail()}"

    served.start(daemon)
    load.resolve()
    load.check_all()
    until(
        lambda: ask.all_done() and all(archive.state(p) in {"replicated", "stub"} for p in load.paths()),
        f"replicated again after {point}",
        60,
    )
    load.check_all()
    # from the target, not from what is here
    answer = ask.evict(*load.paths())
    assert answer["refused"] == [], archive.tail()
    load.check_all()

    after = objects(archive.folder / "one")
    assert {name: after.get(name) for name in before} == before, "what was there was put again"
    assert len(after) == packs_known(archive), "an object nobody knows"
    new_bytes = sum(size for _, _, size in after.values()) - sum(size for _, _, size in before.values())
    distinct = {*load.expected.values()} | {load_gone(load)}
    assert new_bytes < 1.1 * sum(map(len, distinct)) + 200_000, "bytes were stored twice"
    served.loads.append(load)
    nothing_left_over(archive, sum(len(each.expected) for each in served.loads) + extra_files(archive))
    passed(request)


def load_gone(load: Load) -> bytes:
    """What was written and removed again may have been stored in between, as may what was replaced."""
    return b"x" * 150_000


def extra_files(archive: Archive) -> int:
    return sum(entry.is_file() for entry in os.scandir(archive.share))


def give_work_until_dead(served: Served, load: Load, process: subprocess.Popen[bytes]) -> None:
    """More files, evictions and recalls until the fault was met."""
    deadline = time.monotonic() + 15
    more = 0
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, VnaError):
            load.write(f"more-{more}", noise((load.seed, more), 100))
            more += 1
            kept = [path for name in load.expected if (path := load.path(name)).exists() and name.startswith("new-")]
            served.ask.evict(*kept)
            for path in kept:
                path.read_bytes()
        time.sleep(0.1)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
