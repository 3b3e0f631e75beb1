"""What was being tried when the process died is known to the next one, and nothing else is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from vnafs.domain.errors import StorageFailed
from vnafs.local.attempts import FILE_BYTES, RING, SLOTS, AttemptsFile

ONE, TWO = b"1" * 16, b"2" * 16

DYING = """
import os, signal, sys
from vnafs.local.attempts import AttemptsFile
attempts = AttemptsFile(sys.argv[1])
with attempts.under_way(b"2" * 16):
    pass
with attempts.under_way(sys.argv[2].encode()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(path, digest: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(path), digest.decode()], check=False)
    assert done.returncode == -signal.SIGKILL


def test_only_what_was_under_way_at_a_death_is_deadly(tmp_path):
    path = tmp_path / "attempts"
    die(path, ONE)
    for _ in range(2):
        attempts = AttemptsFile(str(path))
        assert attempts.is_deadly(ONE)
        assert not attempts.is_deadly(TWO)


def test_what_ends_or_fails_is_not_deadly(tmp_path):
    attempts = AttemptsFile(str(tmp_path / "attempts"))
    with attempts.under_way(ONE):
        pass
    with pytest.raises(ValueError, match="no"), attempts.under_way(TWO):
        raise ValueError("no")
    again = AttemptsFile(str(tmp_path / "attempts"))
    assert not again.is_deadly(ONE)
    assert not again.is_deadly(TWO)


def test_the_newest_deaths_are_remembered(tmp_path):
    path = tmp_path / "attempts"
    AttemptsFile(str(path))
    with open(path, "r+b") as file:
        file.write(b"".join(number.to_bytes(16, "little") for number in range(1, RING + 1)))
    die(path, ONE)
    attempts = AttemptsFile(str(path))
    assert attempts.is_deadly(ONE)
    assert attempts.is_deadly((1).to_bytes(16, "little"))
    assert not attempts.is_deadly(RING.to_bytes(16, "little"))
    assert os.path.getsize(path) == FILE_BYTES


def test_more_at_once_than_there_are_places_is_only_not_noted(tmp_path):
    attempts = AttemptsFile(str(tmp_path / "attempts"))
    contexts = [attempts.under_way(number.to_bytes(16, "little")) for number in range(1, SLOTS + 10)]
    for context in contexts:
        context.__enter__()
    for context in contexts:
        context.__exit__(None, None, None)
    with attempts.under_way(ONE):
        noted = AttemptsFile(str(tmp_path / "attempts"))
    assert noted.is_deadly(ONE)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"y" * (FILE_BYTES + 5000)])
def test_a_file_of_any_size_is_taken(content, tmp_path):
    (tmp_path / "attempts").write_bytes(content)
    attempts = AttemptsFile(str(tmp_path / "attempts"))
    assert not attempts.is_deadly(ONE)
    assert os.path.getsize(tmp_path / "attempts") == FILE_BYTES


FULL = """
import contextlib, os, subprocess, sys
from vnafs.content.encoder import NoAttempts
from vnafs.domain.errors import NoSpace
from vnafs.local.attempts import FILE_BYTES, AttemptsFile
from vnafs.pipeline.runner import _attempts

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", sys.argv[1]], check=True)
path, ballast = (os.path.join(sys.argv[1], name) for name in ("attempts", "ballast"))
with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
    while True:
        file.write(bytes(4096))
try:
    AttemptsFile(path)
except NoSpace:
    assert isinstance(_attempts(path), NoAttempts)  # tierd starts, to make room
    os.unlink(ballast)
    with _attempts(path).under_way(b"1" * 16):
        pass
    assert os.path.getsize(path) == FILE_BYTES
else:
    sys.exit("the disk was not full")
"""


@pytest.mark.system
def test_a_full_disk_is_an_error_and_not_a_signal_later(tmp_path):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root, unshare)")
    words = [unshare, "-m", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(StorageFailed):
        AttemptsFile(str(tmp_path / "nowhere" / "attempts"))
