"""What statfs hears of targets."""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.daemons.room import TargetRoom
from vnafs.domain.errors import ConfigurationInvalid


def test_directories_say_their_room_and_object_stores_have_no_end(tmp_path: Path) -> None:
    disk = shutil.disk_usage(tmp_path)
    found = TargetRoom(lambda: [f"file://{tmp_path}", "s3://bucket/prefix"]).look()
    assert found is not None
    directory, store = found
    assert directory is not None
    assert directory.total_bytes == disk.total
    assert 0 < directory.free_bytes <= disk.free + (1 << 30)
    assert store is None


def test_a_directory_that_is_away_counts_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "one"
    urls = [f"file://{place}"]
    room = TargetRoom(lambda: urls)
    assert room.look() == [None]
    place.mkdir()
    [seen] = room.look() or []
    assert seen is not None
    place.rmdir()
    assert room.look() == [seen]
    urls.clear()
    assert room.look() == []
    urls.append(f"file://{place}")
    assert room.look() == [None]  # forgotten when it was no target any more


def test_while_the_configuration_is_written_nothing_is_said(tmp_path: Path) -> None:
    def broken() -> list[str]:
        raise ConfigurationInvalid(file="f", key="k", value="v", why="w", fix="x")

    assert TargetRoom(broken).look() is None
