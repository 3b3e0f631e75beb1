"""dbench's load ends without an error on the mount itself and over SMB; `tests.bench.dbench` has it beside the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.bench.dbench import OLD_SERVER, WAYS
from tests.servers.smbtorture import pairs

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("smbtorture")]

CLIENTS, SECONDS = 3, 2


def test_dbench_finds_nothing_wrong() -> None:
    with tempfile.TemporaryDirectory(prefix="dbench") as folder:
        Path(folder).chmod(0o755)  # pytest's own folders keep everybody else out
        with pairs(Path(folder), "kernel", settings=OLD_SERVER) as (_, [pair]):
            for run in WAYS.values():
                pair.ours.empty()
                assert run(pair.ours, CLIENTS, SECONDS) > 0
