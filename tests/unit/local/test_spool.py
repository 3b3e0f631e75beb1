"""Local files: exclusive, in sequence, never reused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vnafs.domain.errors import Damaged, FileTooBig, NoSpace, StorageFailed, TooManyOpen
from vnafs.domain.ids import Inode, Version
from vnafs.local.spool import Spool, fingerprint_of, local_error

ONE, TWO = Version(1), Version(2)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(str(tmp_path / "spool"))


def write(spool: Spool, inode: int, data: bytes = b"bytes", version: Version = ONE) -> Path:
    descriptor = spool.create(Inode(inode), version)
    os.write(descriptor, data)
    os.close(descriptor)
    return Path(spool.local_path(Inode(inode), version))


def quarantined(spool: Spool) -> list[bytes]:
    return sorted(path.read_bytes() for path in (Path(spool.directory) / "quarantine").iterdir())


def test_neighbours_share_a_directory_and_versions_do_too(spool: Spool) -> None:
    first = write(spool, 0x5001)
    assert first == Path(spool.directory) / "05" / "5" / "5001.1"
    assert write(spool, 0x5FFF).parent == write(spool, 0x5001, version=TWO).parent == first.parent
    assert write(spool, 0x6000).parent != first.parent
    assert write(spool, (3 << 40) + 7).name == "30000000007.1"


def test_only_we_can_read_local_files(spool: Spool) -> None:
    path = write(spool, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_file_in_the_way_goes_to_quarantine_each_time(spool: Spool) -> None:
    write(spool, 1, b"first")
    write(spool, 1, b"second")
    assert write(spool, 1, b"third").read_bytes() == b"third"
    assert quarantined(spool) == [b"first", b"second"]


def test_a_symbolic_link_in_the_way_is_never_followed(spool: Spool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    place = write(spool, 1)
    place.unlink()
    place.symlink_to(victim)
    assert write(spool, 1, b"ours").read_bytes() == b"ours"
    assert victim.read_bytes() == b"precious"


def test_missing_bytes_are_damage(spool: Spool) -> None:
    with pytest.raises(Damaged):
        spool.open(Inode(9), ONE, write=False)
    with pytest.raises(Damaged):
        spool.move(Inode(9), ONE, TWO)
    assert spool.stat(Inode(9), ONE) is None
    assert spool.fingerprint(Inode(9), ONE) is None
    assert not spool.remove(Inode(9), ONE)


def test_a_version_moves_and_puts_away_what_was_in_its_place(spool: Spool) -> None:
    write(spool, 1, b"bytes")
    write(spool, 1, b"stranger", TWO)
    spool.move(Inode(1), ONE, TWO)
    assert Path(spool.local_path(Inode(1), TWO)).read_bytes() == b"bytes"
    assert quarantined(spool) == [b"stranger"]


def test_adoption_takes_the_file_and_tells_its_fingerprint(spool: Spool, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.write_bytes(b"recalled")
    mark = spool.adopt(Inode(0x777000), ONE, str(staged), sync=True)
    path = Path(spool.local_path(Inode(0x777000), ONE))
    assert (path.read_bytes(), mark) == (b"recalled", fingerprint_of(path.stat()))
    assert not staged.exists()


def test_strangers_near_an_inode_are_told_apart(spool: Spool) -> None:
    path = write(spool, 0x5001)
    write(spool, 0x5002, version=TWO)
    (path.parent / "notes.txt").write_bytes(b"")
    assert sorted(spool.versions_near(Inode(0x5000))) == [(0x5001, 1), (0x5002, 2)]
    assert list(spool.versions_near(Inode(0x9000))) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, FileTooBig),
        (errno.EMFILE, TooManyOpen),
        (errno.EIO, StorageFailed),
        (errno.EROFS, StorageFailed),
    ],
)
def test_what_the_disk_says_in_our_words(number: int, kind: type[Exception]) -> None:
    assert type(local_error(OSError(number, "x"), "testing")) is kind
