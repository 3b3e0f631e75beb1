"""A disk that is really full: a small tmpfs, mounted where only the test's child process sees it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import contextlib, os, subprocess, sys
from vnafs.domain.errors import NoSpace
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings

base = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", base], check=True)
log = LogSettings(segment_bytes=1 << 19, fold_age_seconds=0.01, retry_seconds=0.02) if sys.argv[2] == "log" else None
reserve = int(sys.argv[3])

def fill():
    with open(base + "/ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))

def put(number):
    with engine.write() as tx:
        tx.put(b"%06d" % number, b"x" * 200)
        tx.put(b"last", b"%06d" % number)
    engine.sync(engine.position)

def check(at_least):
    with engine.read() as reader:
        last = int(reader.get(b"last"))
        assert last == engine.position == at_least, (last, engine.position, at_least)
        assert sum(1 for _ in reader.scan(b"0", b"1")) == last

engine = LmdbEngine(base + "/index", log=log, reserve_bytes=reserve)
put(1)
engine.fold()
fill()
number = 1
try:
    while number < 100_000:
        put(number + 1)
        number += 1
except NoSpace:
    pass
else:
    raise SystemExit("the disk was never full")
check(number)
with contextlib.suppress(NoSpace):  # it may fit into pages that were freed
    put(number + 1)
    number += 1
check(number)
full_at = number
os.unlink(base + "/ballast")
engine.fold()
put(number + 1)
check(number + 1)
fill()
try:
    while number < 100_000:
        put(number + 2)
        number += 1
except NoSpace:
    pass
engine.close()
os.unlink(base + "/ballast")
engine = LmdbEngine(base + "/index", log=log, reserve_bytes=reserve)
check(number + 1)
engine.close()
print(full_at)
"""


@pytest.mark.system
@pytest.mark.parametrize("log", ["log", "none"])
def test_a_full_disk_refuses_loses_nothing_and_recovers_by_itself(tmp_path: Path, log: str) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root, unshare)")
    written = []
    for reserve in (0, 1 << 20):
        child = subprocess.run(
            [unshare, "-m", sys.executable, "-c", CHILD, str(tmp_path), log, str(reserve)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert child.returncode == 0, child.stderr
        written.append(int(child.stdout))
    assert written[1] > written[0] + 100
