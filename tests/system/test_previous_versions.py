"""Windows' Previous Versions through a real Samba, with the lines for `smb.conf` that README gives."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.servers.samba import samba
from tests.system.archives import ROOT, an_archive

pytestmark = pytest.mark.system


def readme_lines(share: Path) -> str:
    """What README tells an administrator to write."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"For Windows' Previous Versions.*?\n\n((?:    .*\n)+)", text, re.DOTALL)
    assert block is not None
    assert "/srv/share/archive" in block[1]
    return block[1].replace("/srv/share/archive", str(share))


def now() -> str:
    time.sleep(1.1)  # a moment of the past has whole seconds
    found = time.strftime("@GMT-%Y.%m.%d-%H.%M.%S", time.gmtime())
    time.sleep(1.1)
    return found


def test_samba_shows_what_was_overwritten_and_deleted_and_gives_it_back(tmp_path):
    with an_archive(tmp_path) as archive:
        folder = archive.share / "study"
        folder.mkdir()
        (folder / "report.txt").write_bytes(b"first" * 100)
        (folder / "image.dcm").write_bytes(b"image" * 1000)
        archive.wait()
        before = now()
        (folder / "report.txt").write_bytes(b"second" * 100)
        (folder / "image.dcm").unlink()
        archive.wait()
        archive.evict(folder)
        with samba(tmp_path / "samba", archive.share, readme_lines(archive.share)) as server:
            assert "image.dcm" not in server.ask("ls study/*")
            assert ".as-of" not in server.ask("ls *")
            listing = server.ask(f"ls study/{before}/*")
            assert "image.dcm" in listing, listing
            assert "500" in server.ask(f"allinfo {before}/study/report.txt")
            for name, data in (("report.txt", b"first" * 100), ("image.dcm", b"image" * 1000)):
                told = server.ask(f"get {before}/study/{name} {tmp_path}/{name}")
                assert (tmp_path / name).read_bytes() == data, told
            (tmp_path / "other").write_bytes(b"x")
            server.ask(f"put {tmp_path}/other {before}/study/report.txt")
            server.ask(f"del {before}/study/report.txt")
            server.ask(f"get {before}/study/report.txt {tmp_path}/again")
            assert (tmp_path / "again").read_bytes() == b"first" * 100, "the past does not change"
            assert (folder / "report.txt").read_bytes() == b"second" * 100
