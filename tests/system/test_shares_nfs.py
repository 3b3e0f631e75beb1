"""Shares as `vna share render` writes them, served by a real nfs-ganesha and used by libnfs (NFSv3)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.servers.ganesha import HERE, Ganesha, rendered_ganesha
from tests.system.archives import QUICK, Archive, an_archive, until, with_engine
from tests.system.mounts import ENGINES

pytestmark = pytest.mark.system

EXPORTS = {
    "root": ("--host", HERE, "--squash", "none"),
    "nobody": ("--host", HERE),
    "owned": ("--host", HERE, "--squash", "all", "--owner", "1234:1235"),
    "reading": ("--host", f"{HERE} ro", "--squash", "none"),
    "elsewhere": ("--host", "10.1.0.0/16"),
    "modern": ("--host", HERE, "--nfs-version", "4.2"),
}


@dataclasses.dataclass(frozen=True)
class Shared:
    """An archive and the server that exports folders of it."""

    archive: Archive
    server: Ganesha

    def folder(self, name: str) -> Path:
        return self.archive.share / name

    def put(self, source: Path, export: str, name: str) -> str:
        """What nfs-cp says."""
        done = self.server.run("nfs-cp", source, self.server.url(self.folder(export) / name))
        return done.stdout + done.stderr

    def get(self, export: str, name: str) -> bytes:
        """What nfs-cp brings, which writes no file that is there."""
        place = self.server.home / "got"
        place.unlink(missing_ok=True)
        done = self.server.run("nfs-cp", self.server.url(self.folder(export) / name), place)
        assert done.returncode == 0, done.stderr
        return place.read_bytes()


@pytest.fixture(scope="module", params=ENGINES)
def shared(request, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp(request.param)
    settings = with_engine(QUICK, request.param)
    with an_archive(tmp_path, settings=settings) as archive:
        for name, words in EXPORTS.items():
            (archive.share / name).mkdir()
            archive.vna("share", "add", name, f"archive/{name}", "--protocol", "nfs", *words)
        (archive.share / "owned").chmod(0o777)
        archive.vna("share", "render")
        with rendered_ganesha(tmp_path / "ganesha", archive.archive / "shares" / "ganesha.conf") as server:
            yield Shared(archive, server)


def test_what_is_put_comes_back_byte_for_byte(shared, tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    told = shared.put(tmp_path / "a", "root", "image.dcm")
    assert (shared.folder("root") / "image.dcm").read_bytes() == data, told
    assert shared.get("root", "image.dcm") == data
    assert "image.dcm" in shared.server.run("nfs-ls", shared.server.url(shared.folder("root"))).stdout


def test_a_stub_comes_back_when_it_is_read(shared):
    data = os.urandom(600_000)
    path = shared.folder("root") / "stub.dcm"
    path.write_bytes(data)
    # what was put over NFS stays open for as long as the server likes, so not all of the archive is waited for
    until(lambda: shared.archive.state(path) == "replicated", "it has a copy", 60)
    shared.archive.evict(path)
    assert shared.archive.state(path) == "stub"
    assert shared.get("root", "stub.dcm") == data


def test_root_is_nobody_unless_told(shared, tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    assert "NFS3ERR_ACCES" in shared.put(tmp_path / "a", "nobody", "a")
    assert list(shared.folder("nobody").iterdir()) == []


def test_whoever_writes_is_the_forced_owner(shared, tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    told = shared.put(tmp_path / "a", "owned", "a")
    found = (shared.folder("owned") / "a").stat()
    assert (found.st_uid, found.st_gid) == (1234, 1235), told


def test_a_host_that_may_read_changes_nothing(shared, tmp_path):
    (shared.folder("reading") / "a").write_bytes(b"a")
    (tmp_path / "new").write_bytes(b"new")
    assert "NFS3ERR_ROFS" in shared.put(tmp_path / "new", "reading", "a")
    assert "NFS3ERR_ROFS" in shared.put(tmp_path / "new", "reading", "b")
    assert shared.get("reading", "a") == b"a"
    assert [path.name for path in shared.folder("reading").iterdir()] == ["a"]


@pytest.mark.parametrize("export", ["elsewhere", "modern"])
def test_a_host_or_version_that_is_not_named_is_refused(shared, export):
    done = shared.server.run("nfs-ls", shared.server.url(shared.folder(export)))
    assert done.returncode != 0
    assert "MNT3ERR_ACCES" in done.stderr or "MNT3ERR_NOENT" in done.stderr, done.stderr
