"""Children that others started: adopted, waited for, put away; and nobody outlives the parent it ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PREAMBLE = """
import os, signal, subprocess, sys, time
from appliance.daemons import kinship

def grandchild(work):
    near, far = os.pipe()
    waits, holds = os.pipe()
    if not (between := os.fork()):
        os.close(holds)
        if not (pid := os.fork()):
            os.read(waits, 1)
            os._exit(work() or 0)
        os.write(far, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    os.close(holds)
    return int(os.read(near, 20))

kinship.adopt_orphans()
"""


def run(script: str) -> str:
    """In a process of its own, whose children are not ours."""
    done = subprocess.run([sys.executable, "-c", PREAMBLE + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_orphan_is_waited_for_like_a_child_of_ones_own() -> None:
    said = run("""
ended = kinship.Adopted(grandchild(lambda: 7))
print(ended.wait(), ended.poll())
lives = kinship.Adopted(grandchild(lambda: time.sleep(60)))
print(lives.poll())
try:
    lives.wait(0.05)
except TimeoutError:
    print("lives")
lives.terminate()
print(lives.wait() == -signal.SIGTERM)
lives.kill()
print(kinship.Adopted(os.getpid()).poll() == -signal.SIGKILL)
""")
    assert said.split() == ["7", "7", "None", "lives", "True", "True"]


def test_what_nobody_waits_for_is_put_away_and_nothing_else() -> None:
    said = run("""
ours = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])
os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)
other = grandchild(lambda: 0)
os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
kinship.reap_others({ours.pid})
print(ours.wait())
kinship.reap_others({ours.pid})
print(os.path.exists(f"/proc/{other}"))
kinship.reap_others(set())
""")
    assert said.split() == ["5", "False"]


def test_a_process_ends_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"""
supervisor = os.getpid()
ends = kinship.ends_with(supervisor, signal.SIGTERM)
def work():
    ends()
    assert kinship.at_parents_end() == signal.SIGTERM
    open({str(told)!r}, "w").write(str(os.getpid()))
    time.sleep(60)
grandchild(work)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", PREAMBLE + script])
    try:
        wait_for(lambda: told.exists() and bool(told.read_text()))
        pid = int(told.read_text())
        assert os.path.exists(f"/proc/{pid}")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not lives(pid))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)
