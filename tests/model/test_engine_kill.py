"""kill -9 for real: a child commits and tells each commit over a pipe; what it told must be there afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vnafs.domain.faults import POINTS
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings

LOG = LogSettings(segment_bytes=1 << 15, fold_age_seconds=0.002, fold_bytes=1 << 13)
WINDOW = 50

# argv: path, fault point or "", at which time it is reached to die there
CHILD = f"""
import itertools, os, signal, sys
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings

class DieAt:
    def __init__(self, point, count):
        self.point, self.left = point, count

    def reach(self, point):
        if point == self.point:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

path, point, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = LmdbEngine(path, log={LOG!r}, reserve_bytes=0, faults=DieAt(point, count))
with engine.read() as reader:
    start = int(reader.get(b"n") or b"0")
for number in itertools.count(start + 1):
    with engine.write() as tx:
        tx.put(b"n", b"%d" % number)
        tx.put(b"row%08d" % number, b"%d" % number * (1 + number % 40))
        tx.delete(b"row%08d" % (number - {WINDOW}))
    if number % 7 == 0:
        engine.sync(engine.position)
    os.write(1, b"%08d" % number)
"""


def start(path: Path, point: str = "", count: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), point, str(count)], stdout=subprocess.PIPE)


def told(child: subprocess.Popen[bytes]) -> int:
    """The last commit that the child told, after its end."""
    output, _ = child.communicate()
    return int(output[-8:]) if output else 0


def check(path: Path, at_least: int) -> int:
    with contextlib.closing(LmdbEngine(str(path), log=LOG, reserve_bytes=0)) as engine, engine.read() as reader:
        number = int(reader.get(b"n") or b"0")
        assert number >= at_least
        assert engine.position == number
        rows = dict(reader.scan(b"row", b"rox"))
        assert rows == {
            b"row%08d" % n: b"%d" % n * (1 + n % 40) for n in range(max(1, number - WINDOW + 1), number + 1)
        }
        return number


def test_after_kill_nine_everything_that_was_told_is_there(tmp_path: Path) -> None:
    path = tmp_path / "index"
    chance = random.Random(7)
    number = 0
    for _ in range(20):
        child = start(path)
        assert child.stdout is not None
        os.read(child.stdout.fileno(), 8)  # it has begun
        time.sleep(chance.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        before, number = number, check(path, max(number, told(child)))
        assert number > before


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("log.") and point != "log.replayed"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_dying_at_any_step_of_the_log_loses_nothing(tmp_path: Path, point: str, count: int) -> None:
    path = tmp_path / "index"
    child = start(path, point, count)
    last = told(child)
    assert child.returncode == -signal.SIGKILL
    number = check(path, last)
    child = start(path, point, count + 1)
    assert check(path, max(number, told(child))) >= number


def test_dying_during_recovery_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "index"
    last = told(start(path, "log.folding", 1))
    assert last > 0
    child = start(path, "log.replayed", 1)
    assert told(child) == 0
    assert child.returncode == -signal.SIGKILL
    assert check(path, last) >= last
