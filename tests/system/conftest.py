"""Fixtures that every system test may use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.archives import AT_ONCE, Archive, an_archive, with_engine
from tests.system.mounts import ENGINES, Mount

StartMount = Callable[..., Mount]


@pytest.fixture(params=ENGINES)
def fuse(request: pytest.FixtureRequest) -> str:
    """The engine of a mount; a test that asks for one runs with each."""
    return str(request.param)


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Archive]]:
    """An archive that seals and packs at once for each engine, started when it is asked for first."""
    started: dict[str, Archive] = {}
    with contextlib.ExitStack() as stack:

        def site(fuse: str) -> Archive:
            if fuse not in started:
                folder, settings = tmp_path_factory.mktemp(f"site-{fuse}"), with_engine(AT_ONCE, fuse)
                started[fuse] = stack.enter_context(an_archive(folder, settings=settings))
            return started[fuse]

        yield site


@pytest.fixture
def site(fuse: str, sites: Callable[[str], Archive]) -> Archive:
    """One of them; each test has a folder of its own there."""
    return sites(fuse)


@pytest.fixture
def start_mount(tmp_path: Path, fuse: str) -> Iterator[StartMount]:
    """Starts a mount with the driver's arguments; ended after the test."""
    mounts: list[Mount] = []

    def start(*arguments: str) -> Mount:
        mount = Mount(tmp_path / str(len(mounts)), "--fuse", fuse, *arguments)
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
