"""Whose a kept mount is: nobody goes on with another archive's, nor with one that is mounted no more or elsewhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnafs.fuse.kernel.channel import Channel, open_channel
from vnafs.fuse.kernel.estate import Estate, KeptMount
from vnafs.fuse.kernel.keeper import Inheritance, inherited
from vnafs.fuse.stale import connection_at, is_connected, is_ours, place_of, take_away

pytestmark = pytest.mark.system

OURS, ANOTHER = b"a" * 16, b"b" * 16


class Kept:
    """A mount that nobody serves, with its estate; what would have to be answered hangs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        self.channel = open_channel()
        self.channel.mount(str(place), allow_other=False)
        self.connection = self.channel.mounted[1]
        self.estate = Estate.new(handles_max=4, backings_max=4, requests_max=4)
        self.estate.mounted(KeptMount(OURS, *self.channel.mounted))

    def given(self, archive: bytes = OURS, place: Path | None = None) -> Inheritance | None:
        """What the next process goes on with; it is given copies."""
        control, estate = os.dup(self.channel.descriptor), os.dup(self.estate.descriptor)
        found = inherited(control, estate, archive=archive, mountpoint=str(place or self.place))
        if found is None:
            for descriptor in (control, estate):
                with pytest.raises(OSError, match="Bad file"):
                    os.fstat(descriptor)
        else:
            os.close(control)
            found.estate.close()
        return found

    @property
    def lives(self) -> bool:
        return is_connected(self.channel.descriptor, self.connection)

    def close(self) -> None:
        self.channel.unmount()
        if self.estate.descriptor >= 0:
            self.estate.close()
        take_away(str(self.place))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mnt"


@pytest.fixture
def kept(place: Path) -> Iterator[Kept]:
    with contextlib.closing(Kept(place)) as made:
        yield made


@contextlib.contextmanager
def tmpfs_over(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_archive_goes_on_with_its_own_mount(kept: Kept) -> None:
    assert kept.given() is not None
    assert kept.lives
    assert kept.estate.mount == KeptMount(OURS, str(kept.place), kept.connection)


def test_links_on_the_way_to_a_mount_make_it_no_other(kept: Kept, tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.symlink_to(tmp_path)
    link.symlink_to("folder/mnt")
    for path in (folder / "mnt", link):
        assert place_of(str(path)) == str(kept.place)
        assert kept.given(place=path) is not None
    (tmp_path / "loop").symlink_to("loop")
    assert not is_ours(str(tmp_path / "loop"))


def test_another_archives_mount_is_taken_away(kept: Kept) -> None:
    assert kept.given(ANOTHER) is None
    assert not kept.lives
    assert not is_ours(str(kept.place))


def test_a_mount_that_should_be_elsewhere_now_is_taken_away_where_it_is(
    kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Kept(tmp_path / "other")) as other:
        assert kept.given(place=other.place) is None
        [record] = caplog.records
        assert "mounted somewhere else" in vars(record)["why"]
        assert not kept.lives
        assert not is_ours(str(kept.place))
        assert other.lives
        assert connection_at(str(other.place)) == other.connection


def test_a_mount_that_was_detached_is_not_gone_on_with(kept: Kept) -> None:
    inside = os.open(kept.place, os.O_PATH)
    try:
        subprocess.run(["umount", "--lazy", "--internal-only", str(kept.place)], check=True)
        assert kept.lives
        assert kept.given() is None
        with contextlib.closing(Kept(kept.place)) as next_one:
            assert kept.given() is None
            assert next_one.lives
            assert is_ours(str(kept.place))
    finally:
        os.close(inside)


def test_another_file_system_that_was_mounted_over_it_stays(kept: Kept) -> None:
    with tmpfs_over(kept.place):
        assert not is_ours(str(kept.place))
        assert kept.given() is None
        (kept.place / "f").write_bytes(b"of another file system")
        kept.channel.unmount()
        assert os.path.exists(kept.place / "f")


def test_a_connection_that_ended_is_not_mistaken_for_the_one_that_got_its_number(place: Path) -> None:
    before = Kept(place)
    left = os.dup(before.channel.descriptor)
    before.channel.unmount()
    before.channel = Channel(left)
    with contextlib.closing(Kept(place)) as after:
        before.estate.mounted(KeptMount(OURS, str(place), after.connection))  # the kernel gives the lowest that is free
        assert before.given() is None
        before.channel.adopt(str(place), 0)
        before.channel.unmount()
        assert after.lives
        assert connection_at(str(place)) == after.connection
    before.estate.close()


def test_of_an_estate_that_cannot_be_read_only_what_is_ours_is_taken_away(kept: Kept) -> None:
    os.pwrite(kept.estate.descriptor, b"vnafs/1\n", 0)
    with tmpfs_over(kept.place):
        assert kept.given() is None
        assert kept.lives
    assert kept.given() is None
    assert not kept.lives
    assert not is_ours(str(kept.place))
