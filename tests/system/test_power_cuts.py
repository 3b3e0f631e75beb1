"""A seeded sample of the power cuts that `make soak` makes in numbers (tests/bench/power_cuts.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("power-cuts"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 500  # on machines that do much else
SEED = os.environ.get("VNAFS_SEED", "1")


def test_what_was_acknowledged_survives_power_cuts_on_ext4_and_xfs() -> None:
    words = ("--cuts", "14", "--recordings", "2", "--seconds", "1", "--mounted-each", "1000", "--seed", SEED)
    command = [sys.executable, "-m", "tests.bench.power_cuts", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            said, _ = running.communicate(timeout=SECONDS_MAX)
        except BaseException:
            running.send_signal(signal.SIGINT)  # it puts its mounts and daemons away
            raise
    assert running.returncode == 0, said
    assert "all acknowledged is there: {'cuts': 14" in said
