"""Fixtures that every system test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.mounts import Mount

StartMount = Callable[..., Mount]


@pytest.fixture
def start_mount(tmp_path: Path) -> Iterator[StartMount]:
    """Starts a mount with the driver's arguments; ended after the test."""
    mounts: list[Mount] = []

    def start(*arguments: str) -> Mount:
        mount = Mount(tmp_path / str(len(mounts)), *arguments)
        mounts.append(mount)
        mount.start()
        return mount

    yield start
    for mount in mounts:
        mount.close()


@pytest.fixture
def mount(start_mount: StartMount) -> Mount:
    """A mount of an LMDB tree at acknowledgement level `written`."""
    return start_mount()
