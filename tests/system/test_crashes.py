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
recall_seconds_max = 2.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.3
target_bytes = 1048576

[manifests]
seconds_max = 0.3
"""

ELSEWHERE = "protect."
"""Needs files that nobody closes: `test_protect` walks them."""
TIERD_ONLY = ("seal.", "pack.", "replicate.", "manifest.")
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
    return "tierd" if point.startswith(TIERD_ONLY) or point in TIERD_TOO else "mount"


class Served:
    """An archive whose two daemons a test starts, kills and starts again."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.ask = Daemons(archive)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.loads: list[Load] = []
        self.is_sound = True
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
def serving(tmp_path_factory):
    """Gives the archive that all share, or a new one after a test failed: what that left would confuse the next."""
    with contextlib.ExitStack() as stack:
        made: list[Served] = []

        def get() -> Served:
            if not made or not made[-1].is_sound:
                stack.close()
                archive = stack.enter_context(
                    an_archive(tmp_path_factory.mktemp("crashes"), settings=SETTINGS, serve=False)
                )
                made.append(Served(archive))
                stack.callback(made[-1].ask.close)
            return made[-1]

        yield get


@pytest.mark.parametrize("point", [point for point in POINTS if not point.startswith(ELSEWHERE)])
def test_killed_at(point, serving):
    served = serving()
    served.is_sound = False
    archive, ask, daemon = served.archive, served.ask, daemon_of(point)
    load = Load(archive, point)
    load.prepare()
    until(lambda: ask.all_done() and all(archive.state(p) == "replicated" for p in load.paths()), "ready for it", 60)
    ask.evict_all(*(load.path(f"stub-{n}") for n in range(3)))
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
    ask.evict_all(*load.paths())
    load.check_all()

    after = objects(archive.folder / "one")
    assert {name: after.get(name) for name in before} == before, "what was there was put again"
    assert len(after) == packs_known(archive), "an object nobody knows"
    new_bytes = sum(size for _, _, size in after.values()) - sum(size for _, _, size in before.values())
    # and what was replaced or removed again may have been stored in between
    assert new_bytes < 1.05 * sum(map(len, {*load.expected.values()})) + 150_000, "bytes were stored twice"
    served.loads.append(load)
    nothing_left_over(archive, sum(len(each.expected) for each in served.loads) + extra_files(archive))
    served.is_sound = True


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


# -- the supervisor ------------------------------------------------------------------------------------------------


def children(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The daemons of a supervisor, without those that wait to take over: name to process id."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{pid}/comm", "rb") as file:
                if any(word.endswith(b",template") for word in words) and file.read() != b"vna-mount\n":
                    continue
            # what a daemon started is the supervisor's, too, once that daemon has died
            if int(parent) == process.pid and state != b"Z" and words[2] == b"appliance":
                found[os.fsdecode(words[3])] = pid
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_serve_starts_a_killed_daemon_again_by_itself(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as archive:
        supervisor = archive.start("serve")
        load = Load(archive, "work")
        load.prepare()
        for name in ("mount", "tierd"):
            before = children(supervisor)
            assert before.keys() == {"mount", "tierd"}
            os.kill(before[name], signal.SIGKILL)
            until(lambda: not is_alive(before[name]), "it is dead")  # noqa: B023 - waits here
            archive.ready(("mount", "tierd"), supervisor)
            after = children(supervisor)
            assert after[name] != before[name]
            assert {k: v for k, v in after.items() if k != name} == {k: v for k, v in before.items() if k != name}
            load.check_all()
            load.write(f"after-{name}", b"life goes on")
        archive.wait()
        archive.evict(load.folder)
        load.check_all()


def test_a_killed_supervisor_takes_its_daemons_along_and_the_next_one_takes_over(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as archive:
        supervisor = archive.start("serve")
        load = Load(archive, "work")
        load.prepare()
        daemons = children(supervisor)
        supervisor.kill()
        supervisor.wait()
        successor = archive.start("serve", wait=False)  # while the others are still ending
        until(lambda: not any(is_alive(pid) for pid in daemons.values()), "nobody is left behind")
        until(lambda: children(successor).keys() == {"mount", "tierd"}, "the successor's daemons run")
        archive.ready(("mount", "tierd"), successor)
        load.check_all()
        archive.wait()
        archive.evict(load.folder)
        load.check_all()
        assert successor.poll() is None
