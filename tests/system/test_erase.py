"""Erasure on a real archive with two directories as targets: kill -9 on the way, and nothing of it is left."""

from __future__ import annotations

import os
import random
import signal

import pytest

from tests.system.archives import an_archive, until

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
after_seconds = 2
"""
MARK = random.Random(4711).randbytes(64)
"""Incompressible, so that it stands in packs as it is."""
NAME = "doe-jane-1970"


def marked(seed):
    dice = random.Random(seed)
    return b"".join(dice.randbytes(1000) + MARK for _ in range(40))


def places_with(folder, *wanted):
    """Files below a folder, outside of the mount, in which some bytes are."""
    found = []
    for top in ("archive", "one", "two"):
        for path in (folder / top).rglob("*"):
            if path.is_file() and any(one in path.read_bytes() for one in wanted):
                found.append(str(path.relative_to(folder)))
    return found


def is_gone(row):
    """Whether all that is left, if anything, is that manifests name the files."""
    return not row["packs_left"] and all(
        target["proven_ns"] or target["why"].startswith("manifests") for target in row["targets"]
    )


def test_what_is_erased_is_gone_from_every_target_and_from_this_machine_and_that_is_certified(tmp_path):
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    sudo = {"SUDO_UID": "4242", "SUDO_USER": "jane"}
    with an_archive(tmp_path, targets, environ=sudo, settings=SETTINGS, serve=False) as archive:
        archive.start("mount")
        tierd = archive.start("tierd")
        archive.vna("repository", "set", "archive", "--copies", "2")
        folder = archive.share / NAME
        folder.mkdir()
        for number in range(4):
            (folder / f"image-{number}").write_bytes(marked(number))
            (archive.share / f"other-{number}").write_bytes(random.Random(100 + number).randbytes(40_000))
        archive.wait(2)
        (folder / "image-0").write_bytes(marked(10))
        (folder / "image-1").unlink()
        archive.wait(2)
        archive.evict(folder / "image-2")
        assert places_with(tmp_path, MARK)

        archive.vna("erase", folder, "--recursive", "--reason", "request 17", check=2)
        archive.vna("hold", "add", folder, "--id", "case", "--reason", "court")
        archive.vna("erase", folder, "--recursive", "--reason", "request 17", "--yes", check=3)
        archive.vna("hold", "remove", folder, "--id", "case", "--reason", "over")
        assert len(list(folder.iterdir())) == 3

        tierd.send_signal(signal.SIGTERM)
        assert tierd.wait(30) == 0
        tierd = archive.start("tierd", "--fault", "erase.condemned=kill:1", wait=False)
        archive.ready(("tierd",), tierd)
        begun = archive.vna("erase", folder, "--recursive", "--reason", "request 17", "--yes")
        assert not folder.exists()
        assert begun["files"] == 5, "three files, one that was deleted before, and the folder"
        until(lambda: tierd.poll() is not None, lambda: f"tierd reaches its end\n{archive.tail()}", 60)
        archive.start("tierd")
        shown = archive.vna("status")["erasures"]
        assert (shown["pending"], shown["oldest"]["id"]) == (1, begun["id"])
        assert {target["name"] for target in shown["oldest"]["targets"]} == {"one", "two"}
        [noted] = [what for what in archive.vna("retention", "--audit") if what["action"] == "erasure"]
        assert noted["who"]["uid"] == os.geteuid(), "whatever the environment says"
        assert noted["who"]["on_behalf_of"] == {"uid": 4242, "claimed": True}
        assert noted["id"] == begun["id"]

        def standing():
            return archive.vna("erase", "--status", begun["id"], check=None)

        until(lambda: is_gone(standing()), lambda: f"{standing()}\n{archive.tail()}", 90)
        assert places_with(tmp_path, MARK) == []
        for number in range(4):
            data = (archive.share / f"other-{number}").read_bytes()
            assert data == random.Random(100 + number).randbytes(40_000)
        archive.vna("undelete", folder / "image-0", check=None)
        assert not folder.exists()
        [listed] = archive.vna("erase", "--list")
        assert listed["stage"] == "over"

        key = tmp_path / "public.pem"
        key.write_text(archive.vna("receipt", "--public-key")["pem"])
        answer = archive.vna("erase", "--certificate", begun["id"], "--out", tmp_path / "certificate", check=None)
        for path in answer["written"]:
            verified = archive.vna("receipt", "verify", path, "--key", key, check=0 if answer["complete"] else 1)
            assert verified["receipt"]["erasure"] == begun["id"]
            assert NAME not in str(verified)
            assert len(verified["receipt"]["contents"]) == 5
        archive.vna("verify")


def test_a_file_of_several_names_goes_with_all_of_them_and_one_that_is_open_stays(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        first, second = archive.share / "first", archive.share / "second"
        first.write_bytes(b"bytes")
        os.link(first, second)
        archive.wait()
        archive.vna("erase", first, "--reason", "why", "--yes", check=3)
        with first.open("rb"):
            archive.vna("erase", first, second, "--reason", "why", "--yes", check=3)
        until(lambda: archive.vna("erase", first, second, "--reason", "why", "--yes", check=None).get("id"), "it goes")
        assert not first.exists()
        assert not second.exists()
