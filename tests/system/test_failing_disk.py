"""A real disk that does not keep what was written: a loop device over an image that found no room.

The image lies in a small file system in memory, which is filled up once ext4 has taken the bytes: writing them back
fails then, long after write(2) and close(2) went well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.loopdisks import MIB
from vnafs.domain.errors import Suspect
from vnafs.local.syncing import check_kept, sync_bytes

IMAGE_BYTES = 64 * MIB
DATA = os.urandom(4 * MIB)


@contextlib.contextmanager
def a_disk_without_room(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Where a file system is mounted, and a file below it: whoever fills that one takes the disk's last room."""
    under, place = folder / "under", folder / "disk"
    for one in (under, place):
        one.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={IMAGE_BYTES}", "tmpfs", under], check=True)
    try:
        image = under / "image"
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        made = [
            "mkfs.ext4",
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-O",
            "^has_journal",
            image,
        ]
        subprocess.run(made, check=True)
        subprocess.run(["mount", "-o", "loop,errors=continue", image, place], check=True)
        try:
            yield place, under / "others"
        finally:
            subprocess.run(["umount", place], check=False)
    finally:
        subprocess.run(["umount", "-l", under], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass


def test_what_a_disk_did_not_keep_is_said_once_and_never_again(tmp_path: Path) -> None:
    """Why a file whose sync failed is not asked again: the second answer is a good one, and nothing was mended."""
    with a_disk_without_room(tmp_path) as (place, others):
        path = place / "file"
        path.write_bytes(DATA)
        fill(others)
        for attempt in range(2):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if attempt == 0:
                    with pytest.raises(Suspect):
                        sync_bytes(descriptor, "it")
                else:
                    sync_bytes(descriptor, "it")
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        assert path.read_bytes() != DATA


def test_whoever_had_a_file_open_hears_it_although_somebody_else_heard_it_before(tmp_path: Path) -> None:
    with a_disk_without_room(tmp_path) as (place, others):
        path = place / "file"
        writing = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            os.write(writing, DATA)
            check_kept(writing, "it")
            fill(others)
            other = os.open(path, os.O_RDWR)
            try:
                with pytest.raises(OSError, match=r"error|No space"):
                    os.fsync(other)  # what Linux does for a client's msync(2)
            finally:
                os.close(other)
            with pytest.raises(Suspect):
                check_kept(writing, "it")
        finally:
            os.close(writing)
