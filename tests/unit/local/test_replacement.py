"""A file that is replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vnafs.local.replacement import replace


def test_it_has_the_new_bytes_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first and longer", b"second"):
        replace(str(path), data, mode=0o600)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_what_somebody_left_beside_it_is_neither_kept_nor_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"of another")
    os.symlink("other", tmp_path / "file.new")
    replace(str(tmp_path / "file"), b"new", mode=0o644)
    assert (tmp_path / "other").read_bytes() == b"of another"
    assert not (tmp_path / "file").is_symlink()


def test_where_it_fails_it_has_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(str(path), b"new", mode=0o600)
    assert path.read_bytes() == b"old"
