"""Collection on a real archive: kill -9 at each of its steps, and a restore of what is left."""

from __future__ import annotations

import hashlib
import random
import signal

import pytest

from tests.system.archives import Archive, an_archive, until
from tests.system.load import Daemons
from vnafs.domain.errors import VnaError
from vnafs.domain.faults import RARE_POINTS

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

[manifests]
seconds_max = 0.3

[collection]
after_seconds = 1
live_percent_min = 70
"""
POINTS = [point for point in RARE_POINTS if point.startswith("collect.")]


def packs_on(folder):
    return {path.name for path in (folder / "packs").rglob("*.pack")}


def fill(archive, round_number):
    """Thirty files, of which two thirds are removed again; the digests of those that stay."""
    dice = random.Random(round_number)
    folder = archive.share / f"round-{round_number}"
    folder.mkdir()
    kept = {}
    for number in range(30):
        data = dice.randbytes(40_000)
        (folder / f"{number}").write_bytes(data)
        if number % 3 == 0:
            kept[folder / f"{number}"] = hashlib.sha256(data).hexdigest()
    archive.wait(2)
    for path in sorted(folder.iterdir()):
        if path not in kept:
            path.unlink()
    archive.evict(folder)
    return kept


def look(tierd):
    """Have tierd look, whether it is there or not; how much is still to do."""
    try:
        tierd.call("collect.hurry")
        return tierd.call("collect.plan")
    except VnaError:
        return None


def nothing_to_do(tierd):
    plan = look(tierd)
    return (
        plan is not None
        and plan["dead"] == plan["thin"] == plan["condemned"] == 0
        and not any(row["removals_waiting"] for row in plan["targets"])
    )


def test_kill_9_at_every_step_of_collection_loses_nothing_and_leaves_nothing(tmp_path):
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    with an_archive(tmp_path, targets, settings=SETTINGS, serve=False) as archive:
        archive.start("mount")
        tierd = archive.start("tierd")
        archive.vna("repository", "set", "archive", "--keep-versions", "0", "--copies", "2")
        ask = Daemons(archive).tierd
        expected = {}
        for number, point in enumerate(POINTS):
            expected |= fill(archive, number)
            tierd.send_signal(signal.SIGTERM)
            assert tierd.wait(30) == 0
            tierd = archive.start("tierd", "--fault", f"{point}=kill:1", wait=False)

            def dead(process=tierd) -> bool:
                if process.poll() is None:
                    look(ask)
                return process.poll() is not None

            until(dead, lambda point=point: f"tierd reaches {point}\n{archive.tail()}", 90)
            assert tierd.returncode == -signal.SIGKILL
            tierd = archive.start("tierd")
        until(lambda: nothing_to_do(ask), lambda: f"all is collected\n{archive.tail()}", 120)
        archive.wait(2)
        for path, digest in expected.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path
        assert packs_on(tmp_path / "one") == packs_on(tmp_path / "two")
        stored = sum(path.stat().st_size for path in (tmp_path / "one" / "packs").rglob("*.pack"))
        assert stored < 1.6 * 40_000 * len(expected), "what nobody needs is gone"
        plan = archive.vna("collect", "--dry-run", "--strays")
        assert [row["strays"] for row in plan["targets"]] == [0, 0]
        archive.vna("verify")
        archive.evict(archive.share)
    again = Archive(tmp_path / "again", {}, {}, SETTINGS)
    again.folder.mkdir()
    again.vna("restore", "--from", targets["two"], "--into", again.archive, "--mount", again.mount, "--no-serve")
    try:
        again.start("serve")
        for path, digest in expected.items():
            found = again.mount / path.relative_to(archive.mount)
            assert hashlib.sha256(found.read_bytes()).hexdigest() == digest, found
    finally:
        again.stop()
