from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.clocks import ManualClock
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import ObjectMissing, TargetRefused, TargetUnavailable
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets import place
from vnafs.targets.body import BytesBody
from vnafs.targets.directory import INCOMING, LEFTOVER_SECONDS_MIN, MARKER, DirectoryTarget

A = ObjectName("packs/aa/a.pack")
BODY = BytesBody(b"the bytes of a pack")


def opened(root: Path, known: Capabilities | None = None) -> DirectoryTarget:
    return DirectoryTarget(TargetName("t"), str(root), ManualClock(), known)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "target"


def every_call_is_unavailable(target: DirectoryTarget) -> None:
    for call in (
        lambda: target.put(A, BODY),
        lambda: list(target.get(A)),
        lambda: list(target.read_back(A)),
        lambda: target.evidence(A),
        lambda: list(target.list()),
        lambda: target.delete(A),
        target.probe,
    ):
        with pytest.raises(TargetUnavailable):
            call()


def test_the_first_probe_makes_and_marks_the_directory_and_later_ones_find_it(root: Path) -> None:
    known = opened(root).probe()
    assert len(known.identity) == 32
    assert opened(root, known).probe() == known
    assert opened(root).probe() == known
    assert (root.stat().st_mode & 0o777) == 0o700


def test_without_its_parent_a_directory_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="mounted"):
        opened(tmp_path / "no" / "target").probe()


def test_a_directory_that_vanished_is_unavailable_not_empty(root: Path) -> None:
    target = opened(root)
    target.probe()
    target.put(A, BODY)
    shutil.rmtree(root)
    every_call_is_unavailable(target)
    assert not root.exists()


def test_an_unmounted_disk_leaves_an_empty_directory_that_is_never_used(root: Path) -> None:
    known = opened(root).probe()
    shutil.rmtree(root)
    root.mkdir()
    every_call_is_unavailable(opened(root, known))
    assert list(root.iterdir()) == []


def test_another_disk_in_its_place_is_never_used(root: Path, tmp_path: Path) -> None:
    known = opened(root).probe()
    opened(tmp_path / "other").probe()
    shutil.copy(tmp_path / "other" / MARKER, root / MARKER)
    every_call_is_unavailable(opened(root, known))


def test_a_target_notices_another_disk_without_being_told(root: Path, tmp_path: Path) -> None:
    target = opened(root)
    target.probe()
    target.put(A, BODY)
    root.rename(tmp_path / "moved")
    opened(root).probe()
    every_call_is_unavailable(target)


@pytest.mark.parametrize("marker", ["", "not json", "[]", '{"identity": 5}', '{"identity": ""}'])
def test_a_marker_that_cannot_be_read_is_not_believed(root: Path, marker: str) -> None:
    known = opened(root).probe()
    (root / MARKER).write_text(marker)
    every_call_is_unavailable(opened(root, known))


def test_leftovers_go_after_a_day_and_nothing_else_does(root: Path) -> None:
    opened(root).probe()
    now = ManualClock().now() // NANOSECONDS
    for name, age in (("old.part", LEFTOVER_SECONDS_MIN + 60), ("young.part", 60), ("foreign", 10 * 86400)):
        (root / INCOMING / name).write_bytes(b"x")
        os.utime(root / INCOMING / name, (now - age, now - age))
    opened(root).probe()
    assert sorted(path.name for path in (root / INCOMING).iterdir()) == ["foreign", "young.part"]


def test_foreign_files_and_our_own_are_no_objects(root: Path) -> None:
    target = opened(root)
    target.probe()
    (root / "lost+found").mkdir()
    (root / ".Trash").mkdir()
    (root / ".Trash" / "x").write_bytes(b"")
    (root / "with space").write_bytes(b"")
    assert list(target.list()) == []


def test_a_symbolic_link_is_no_object(root: Path) -> None:
    target = opened(root)
    target.probe()
    (root / "link").symlink_to("/etc/hostname")
    with pytest.raises((ObjectMissing, TargetRefused)):
        list(target.get(ObjectName("link")))


def test_without_hard_links_an_exclusive_rename_does_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "no links on vfat")

    monkeypatch.setattr(os, "link", no_links)
    target = opened(root)
    target.probe()
    target.put(A, BODY)
    assert target.put(A, BytesBody(BODY.data[::-1])).size_bytes == BODY.size_bytes
    assert b"".join(target.get(A)) == BODY.data
    assert list((root / INCOMING).iterdir()) == []


def test_without_either_it_refuses_instead_of_risking_half_an_object(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(place, "_renameat2", lambda: None)
    with pytest.raises(TargetRefused, match="neither hard links nor exclusive renames"):
        opened(root).probe()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.fail(f"needs the right to mount a tmpfs: {done.stderr.decode()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_behind(small_disk: Path) -> None:
    target = opened(small_disk / "target")
    target.probe()
    with pytest.raises(TargetRefused, match=r"No space left on device; free space"):
        target.put(A, BytesBody(bytes(4 << 20)))
    assert list(target.list()) == []
    assert target.put(A, BODY).size_bytes == BODY.size_bytes


def test_reading_back_works_where_direct_reads_do_not(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = opened(small_disk / "target")
    target.probe()
    target.put(A, BODY)
    monkeypatch.setattr("vnafs.targets.directory._reopened_direct", lambda _file: None)
    assert b"".join(target.read_back(A)) == BODY.data


def test_reading_back_reads_the_disk_and_not_the_cache(root: Path) -> None:
    """O_DIRECT was used: the pages that get() brought into the cache are not what read_back gives."""
    target = opened(root)
    target.probe()
    body = BytesBody(os.urandom((3 << 20) + 5))
    target.put(A, body)
    seen: list[int] = []
    real = os.open

    def watching(path: object, flags: int, *rest: object, **more: object) -> int:
        seen.append(flags)
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]  # passed through

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vnafs.targets.directory.os.open", watching)
        assert b"".join(target.read_back(A)) == body.data
    assert any(flags & os.O_DIRECT for flags in seen)
