"""Small real disks in files: a file system of its own for a test, always unmounted and detached again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024
KINDS = ("ext4", "xfs")
SIZE_BYTES = 400 * MIB
"""XFS refuses to be smaller than 300 MiB."""


@contextlib.contextmanager
def a_disk(folder: Path, kind: str, size_bytes: int = SIZE_BYTES) -> Iterator[Path]:
    """A fresh file system of *kind*, mounted below *folder*."""
    program = shutil.which(f"mkfs.{kind}")
    if program is None or os.geteuid() != 0:
        raise AssertionError(f"needs root, loop devices and mkfs.{kind} (apt-get install e2fsprogs xfsprogs)")
    image, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    subprocess.run([program, "-q", image], check=True, capture_output=True)
    # the loop device goes by itself when the last user of the mount does
    subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    try:
        yield place
    finally:
        _unmount(place)
        image.unlink()


def _unmount(place: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", place], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)  # a process that was just ended may still hold a file
    subprocess.run(["umount", "-l", place], check=True)


def free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
