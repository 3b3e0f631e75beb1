"""The past on a real mount: undelete, rollback and what a day with ransomware leaves."""

from __future__ import annotations

import os

from tests.system.archives import an_archive


def test_a_deleted_and_an_overwritten_file_come_back_through_the_command_line(tmp_path):
    with an_archive(tmp_path) as archive:
        folder = archive.share / "study"
        folder.mkdir()
        path = folder / "image"
        path.write_bytes(b"first" * 1000)
        os.setxattr(path, "user.note", b"kept")
        archive.wait()
        path.write_bytes(b"second" * 1000)
        archive.wait()
        path.unlink()
        folder.rmdir()
        assert [row["name"] for row in archive.vna("versions", archive.share)] == ["study"]
        rows = archive.vna("versions", path)
        assert [row["size_bytes"] for row in rows] == [5000, 6000]
        assert all(row["kept"] for row in rows)
        archive.vna("undelete", path, check=3)
        assert not folder.exists()
        archive.vna("undelete", folder)
        archive.vna("undelete", path)
        assert path.read_bytes() == b"second" * 1000
        assert os.getxattr(path, "user.note") == b"kept"
        archive.vna("undelete", path, check=3)
        archive.vna("undelete", path, "--version", rows[0]["version"], "--to", folder / "old")
        assert (folder / "old").read_bytes() == b"first" * 1000
        archive.wait()
