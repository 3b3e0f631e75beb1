"""Clients of SMB and local programs at work in one folder at the same time, on files that are tiered meanwhile."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.processes import free_port
from tests.servers.samba import Samba, rendered_samba
from tests.system.archives import AT_ONCE, Archive, an_archive, with_engine
from tests.system.mounts import ENGINES

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("smbtorture")]

FILES = 30
"""Of each writer, of which each third is renamed, and each third removed."""
SHARED_NAMES = 4
TURNS = 8
BYTES = 200_000
"""Of files that all of them write: one write(2), one SMB2 WRITE."""


@dataclass(frozen=True)
class Site:
    archive: Archive
    server: Samba
    home: Path


@pytest.fixture(scope="module", params=ENGINES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    port = free_port()
    settings = with_engine(AT_ONCE, str(request.param))
    settings += f'\n[sharing]\naddresses = ["127.0.0.1"]\nsmb_port = {port}\n'
    with tempfile.TemporaryDirectory(prefix="both") as text:
        home = Path(text)
        home.chmod(0o755)
        with an_archive(home / "a", settings=settings) as archive:
            archive.vna("share", "add", "images", "archive", "--protocol", "smb")
            archive.vna("share", "render")
            with rendered_samba(home / "samba", archive.archive / "shares" / "smb.conf", port) as server:
                yield Site(archive, server, home)


def data_of(what: str, size_bytes: int) -> bytes:
    """Bytes that say whose they are."""
    word = hashlib.sha256(what.encode()).digest()
    return (word * (size_bytes // len(word) + 1))[:size_bytes]


def becomes(writer: str) -> dict[str, bytes]:
    """What is left of a writer's files."""
    kept = {}
    for number in range(FILES):
        name, data = f"{writer}-{number}.DCM", data_of(f"{writer}{number}", 1000 + 977 * number)
        if number % 3 == 1:
            kept[f"moved-{name}"] = data
        elif number % 3 == 0:
            kept[name] = data
    return kept


def work_locally(folder: Path, writer: str) -> None:
    """As a program on this machine does it."""
    for number in range(FILES):
        path = folder / f"{writer}-{number}.DCM"
        path.write_bytes(data_of(f"{writer}{number}", 1000 + 977 * number))
        if number % 3 == 1:
            path.rename(folder / f"moved-{path.name}")
        elif number % 3 == 2:
            path.unlink()


def work_over_smb(site: Site, folder: str, writer: str) -> None:
    """The same from a client."""
    source = site.home / writer
    source.mkdir(exist_ok=True)
    commands = [f"cd {folder}", f"lcd {source}"]
    for number in range(FILES):
        name = f"{writer}-{number}.DCM"
        (source / name).write_bytes(data_of(f"{writer}{number}", 1000 + 977 * number))
        commands.append(f"put {name}")
        if number % 3 == 1:
            commands.append(f"rename {name} moved-{name}")
        elif number % 3 == 2:
            commands.append(f"del {name}")
    told = ask(site, writer, "; ".join(commands))
    assert "NT_STATUS" not in told, told


def ask(site: Site, writer: str, command: str) -> str:
    return site.server.ask(command, share="images", client_name=writer)


def test_writers_of_both_kinds_in_one_folder_keep_all_they_wrote(site: Site, tmp_path: Path) -> None:
    folder = site.archive.share / "folder"
    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work_locally, folder, writer) for writer in ("here1", "here2")]
        jobs += [pool.submit(work_over_smb, site, folder.name, writer) for writer in ("there1", "there2")]
        for job in jobs:
            job.result()
    expected = {
        name: data for writer in ("here1", "here2", "there1", "there2") for name, data in becomes(writer).items()
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    site.archive.wait()
    site.archive.evict(folder)
    told = ask(site, "reader", f"cd {folder.name}; lcd {tmp_path}; prompt off; mget *")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected, told


def test_files_that_both_kinds_write_are_whole_and_the_same_for_both(site: Site, tmp_path: Path) -> None:
    folder = site.archive.share / "same"
    folder.mkdir()
    names = [f"IM{number}.DCM" for number in range(SHARED_NAMES)]
    for name in names:
        (folder / name).write_bytes(data_of("before", BYTES))
    versions = {(who, turn): data_of(f"{who}{turn}", BYTES) for who in ("here", "there") for turn in range(TURNS)}

    def here() -> None:
        for turn in range(TURNS):
            for name in names:
                with open(folder / name, "wb", buffering=0) as file:
                    assert file.write(versions["here", turn]) == BYTES

    def there() -> None:
        source = site.home / "there"
        source.mkdir(exist_ok=True)
        commands = [f"cd {folder.name}", f"lcd {source}"]
        for turn in range(TURNS):
            (source / str(turn)).write_bytes(versions["there", turn])
            commands += [f"put {turn} {name.lower()}" for name in names]
        told = ask(site, "there", "; ".join(commands))
        assert "NT_STATUS" not in told, told

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(here), pool.submit(there)]
        for job in jobs:
            job.result()
    found = {path.name.upper(): path.read_bytes() for path in folder.iterdir()}
    assert sorted(found) == names, os.listdir(folder)
    assert set(found.values()) <= set(versions.values())
    told = ask(
        site, "reader", f"cd {folder.name}; lcd {tmp_path}; " + "; ".join(f"get {name} {name}" for name in names)
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == found, told
