"""`vna drill`: the worst day rehearsed beside a running archive; it passes when all is well, and only then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from appliance.daemons.supervisor import Drills
from tests.system.archives import Archive, an_archive, until
from tests.system.test_encryption import fill, sent
from tests.system.test_restore import SETTINGS


def the_drill(archive: Archive, *words: object, check: int = 0) -> dict:
    (held,) = archive.vna("drill", *words, check=check)
    return held


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_whole_archive_passes_and_its_status_says_when(tmp_path: Path, encrypted: bool) -> None:
    paper = tmp_path / "paper.txt"
    words = ("--encryption", "on", "--recovery-key", str(paper)) if encrypted else ()
    with an_archive(tmp_path, None, *words, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        os.setxattr(archive.share / "note.txt", "user.note", b"seen")
        sent(archive)
        if encrypted:
            master = archive.archive / "keys" / "master.key"
            archive.vna("drill", "--key", master, check=3)
            archive.vna("drill", check=3)
        held = the_drill(archive, "--files", 5, *(("--key", paper) if encrypted else ()))
        assert held["passed"] is True
        assert (held["differences"], held["unreadable"], held["problems"]) == (0, 0, [])
        assert held["files"] == len(expected)
        assert held["files_read"] == 5
        assert held["rows_equal"] >= len(expected)
        assert 0 < held["index_seconds"] <= held["first_file_seconds"] <= held["seconds"]
        assert archive.vna("status")["drills"] == [held]
        (archive.share / "note.txt").write_bytes(b"changed since")
        (archive.share / "new").write_bytes(b"new since")
        held = the_drill(archive, *(("--key", paper) if encrypted else ()))
        assert held["passed"] is True
        assert held["files"] <= len(expected) + 1
        sent(archive)
        held = the_drill(archive, *(("--key", paper) if encrypted else ()))
        assert (held["passed"], held["on_their_way"], held["files"]) == (True, 0, len(expected) + 1)
        assert not list((archive.archive / "drill").iterdir()), "nothing is left of it"
        assert the_due(archive) == []


def the_due(archive: Archive) -> list:
    found = archive.vna("drill", "--due")
    assert isinstance(found, list)
    return found


def test_a_drill_is_due_until_one_was_held(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
        assert len(the_due(archive)) == 1
        assert the_due(archive) == []
        assert len(archive.vna("status")["drills"]) == 1


def test_the_supervisor_holds_one_when_it_is_due_and_no_other_before(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
        drills = Drills(str(archive.archive), os.environ, look_seconds=0.2)

        def held() -> int:
            drills.look()
            return len(archive.vna("status")["drills"])

        try:
            until(lambda: held() == 1, "a drill", 60)
            for _ in range(10):
                assert held() == 1
        finally:
            drills.stop()


def test_damage_on_a_target_fails_it(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=SETTINGS + "\n[scrub]\nperiod_seconds = 2592000\n") as archive:
        fill(archive.share)
        sent(archive)
        pack = largest(tmp_path / "one", "*.pack")
        data = bytearray(pack.read_bytes())
        for at in range(256, len(data) - 1000, 5000):
            data[at] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
        held = the_drill(archive, check=4)
        assert held["passed"] is False
        assert held["unreadable"] > 0
        assert all("inode" in example for example in held["examples"])
        pack.unlink()
        held = the_drill(archive, check=4)
        assert held["unreadable"] > 0


def test_a_target_that_was_put_back_to_an_earlier_state_fails_it(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
        shutil.copytree(tmp_path / "one", tmp_path / "before")
        (archive.share / "newer").write_bytes(b"newer " * 9000)
        sent(archive)
        archive.evict(archive.share / "newer")
        sent(archive)
        assert the_drill(archive)["passed"] is True
        shutil.rmtree(tmp_path / "one")
        (tmp_path / "before").rename(tmp_path / "one")
        held = the_drill(archive, check=4)
        assert held["problems"]
        assert archive.vna("status")["drills"][-1]["passed"] is False


def test_a_target_without_its_keyring_fails_it(tmp_path: Path) -> None:
    paper = tmp_path / "paper.txt"
    words = ("--encryption", "on", "--recovery-key", str(paper))
    with an_archive(tmp_path, None, *words, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
        shutil.rmtree(tmp_path / "one" / "keys")
        held = the_drill(archive, "--key", paper, check=4)
        assert "keyring" in held["problems"][0]


def test_an_index_that_differs_from_what_the_target_tells_fails_it(tmp_path: Path) -> None:
    """Manifests that miss a change are as bad as packs that miss bytes: here they are those of an earlier moment."""
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
        segments = sorted((tmp_path / "one" / "manifests" / "segments").iterdir())
        damaged = segments[-1]
        damaged.chmod(0o644)
        damaged.write_bytes(damaged.read_bytes()[:-1])
        held = the_drill(archive, check=4)
        assert held["problems"] or held["differences"]
