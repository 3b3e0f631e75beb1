"""The mount process dies or is replaced, and clients do not notice; and what they notice when its keeper dies too."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import takeover
from tests.bench.takeover import SETTINGS, Served
from tests.system.archives import ROOT, Archive, an_archive, until
from vnafs.fuse.kernel.estate import Estate

pytestmark = pytest.mark.system

GONE = os.strerror(errno.ENOTCONN)
SPARE_BYTES_MAX, TEMPLATE_BYTES_MAX = 16 << 20, 48 << 20


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as made:
        yield made


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    yield descriptor
    os.close(descriptor)


@contextlib.contextmanager
def lost(path: Path, flags: int) -> Iterator[int]:
    """A file that is open on a mount that ends."""
    descriptor = os.open(path, flags, 0o644)
    yield descriptor
    with pytest.raises(OSError, match=GONE):
        os.fstat(descriptor)
    with pytest.raises(OSError, match=GONE):
        os.close(descriptor)


def warm(served: Served) -> None:
    """A spare is there, which has its modules loaded."""
    until(lambda: bool(takeover.spares(served.process.pid)), "a spare")


@pytest.mark.parametrize(("level", "seed"), [("written", 1), ("durable", 2)])
def test_clients_notice_nothing_of_kills(tmp_path: Path, level: str, seed: int) -> None:
    with an_archive(tmp_path, None, "--ack", level, settings=SETTINGS, serve=False) as archive:
        clients = takeover.run(archive, kills=4, seed=seed, seconds=2.0, twice_chance=0.3)
        assert clients.wrong == []
        assert clients.longest[0] < 30  # 5 s where nothing else runs: `python -m tests.bench.takeover`


def test_whoever_waits_for_an_answer_gets_it_from_the_next_process(archive: Archive) -> None:
    served = Served(archive)
    with opened(archive.share / "f", os.O_RDWR | os.O_CREAT) as handle:
        os.write(handle, b"before")
        inode = os.fstat(handle).st_ino
        served.kill()
        os.mkdir(archive.share / "made meanwhile")
        assert os.write(handle, b" after") == 6
        os.fsync(handle)
        assert os.stat(archive.share / "f").st_ino == inode
    assert (archive.share / "f").read_bytes() == b"before after"


def test_sighup_replaces_the_processes_by_the_program_that_is_there_now_and_keeps_the_mount(tmp_path: Path) -> None:
    program = tmp_path / "program"
    for package in ("appliance", "vnafs"):
        shutil.copytree(ROOT / package, program / package, ignore=shutil.ignore_patterns("__pycache__"))
    source = program / "appliance" / "daemons" / "mount.py"
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as archive:
        archive.program = program
        served = Served(archive)
        connection = os.stat(archive.mount).st_dev
        with opened(archive.share / "f", os.O_RDWR | os.O_CREAT) as handle:
            os.write(handle, b"bytes")
            warm(served)
            old = {served.pid, *takeover.spares(served.process.pid), *takeover.templates(served.process.pid)}
            before = served.times_ready()
            source.write_text(source.read_text().replace('"mount.ready"', '"mount.ready_anew"'))
            served.process.send_signal(signal.SIGHUP)
            until(lambda: b"mount.ready_anew" in archive.log.read_bytes(), archive.tail)
            assert served.times_ready() == before + 1
            assert os.pread(handle, 10, 0) == b"bytes"
            warm(served)
            assert old.isdisjoint(takeover.children(served.process.pid))
            assert served.pid not in old
        assert os.stat(archive.mount).st_dev == connection


def test_sighup_goes_on_with_the_processes_until_the_next_one_has_loaded(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    before = served.pid
    served.process.send_signal(signal.SIGHUP)
    until(lambda: b"supervisor.replaces" in archive.log.read_bytes(), archive.tail)
    (archive.share / "f").write_bytes(b"bytes")
    until(lambda: served.pid != before, archive.tail)
    said = archive.log.read_text()
    assert said.rindex("supervisor.replaces") < said.rindex("supervisor.ended") < said.rindex("supervisor.promoted")
    assert (archive.share / "f").read_bytes() == b"bytes"


def test_a_process_that_dies_while_its_spare_is_loaded_anew_waits_for_that_one(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    before, ready = served.pid, served.times_ready()
    served.process.send_signal(signal.SIGHUP)
    until(lambda: b"supervisor.replaces" in archive.log.read_bytes(), archive.tail)
    os.kill(before, signal.SIGKILL)
    served.wait_ready(ready + 1)
    assert archive.log.read_bytes().count(b'supervisor.started daemon="mount"') == 1
    (archive.share / "f").write_bytes(b"bytes")


def test_a_spare_that_dies_is_no_loss(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    served.kill_spare()
    (archive.share / "f").write_bytes(b"bytes")
    served.kill()
    assert (archive.share / "f").read_bytes() == b"bytes"


def test_a_spare_that_dies_together_with_the_mount_is_made_again(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    for number in range(2):
        ready = served.times_ready()
        served.kill_spare()
        served.kill()
        (archive.share / f"f{number}").write_bytes(b"bytes")
        served.wait_ready(ready + 1)
        warm(served)
    # a spare that is just dying may be given the mount too
    assert archive.log.read_bytes().count(b'supervisor.started daemon="mount"') == 1, "nothing was loaded anew"


def test_a_template_that_dies_is_no_loss(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    [first] = takeover.templates(served.process.pid)
    served.kill_template()
    served.kill()  # the spare is still there
    (archive.share / "f").write_bytes(b"bytes")
    assert b"supervisor.promoted" in archive.log.read_bytes()
    until(lambda: takeover.templates(served.process.pid) not in ([], [first]), "another template")
    warm(served)


def test_a_template_that_dies_together_with_its_spare_and_the_mount_is_no_loss(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    ready = served.times_ready()
    with served.standing_still():
        served.kill_template()
        served.kill_spare()
        served.kill()
    (archive.share / "f").write_bytes(b"bytes")
    served.wait_ready(ready + 1)
    assert b"supervisor.promoted" not in archive.log.read_bytes()
    until(lambda: bool(takeover.templates(served.process.pid)), "another template")
    warm(served)


def test_a_template_that_hangs_is_not_waited_for_for_long(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    [template] = takeover.templates(served.process.pid)
    os.kill(template, signal.SIGSTOP)
    ready = served.times_ready()
    served.kill()
    served.wait_ready(ready + 1)
    served.kill()  # and this time there is no spare
    (archive.share / "f").write_bytes(b"bytes")
    assert b"supervisor.no_spare" in archive.log.read_bytes()
    assert template not in takeover.children(served.process.pid)


def test_a_process_that_is_killed_again_and_again_is_back_without_loading_anew(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    [template] = takeover.templates(served.process.pid)
    for number in range(6):
        ready = served.times_ready()
        served.kill()
        served.wait_ready(ready + 1)
        (archive.share / f"f{number}").write_bytes(b"bytes")
    assert archive.log.read_bytes().count(b'supervisor.started daemon="mount"') == 1, "nothing was loaded anew"
    assert takeover.templates(served.process.pid) == [template]


def test_a_spare_and_its_template_hold_nothing_and_cost_little(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    for pid in (*takeover.templates(served.process.pid), *takeover.spares(served.process.pid)):
        held = [os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")]
        assert sum(one.startswith("socket:") for one in held) == 1, held
        assert len(held) == 4, held  # what every process has, and the way to the supervisor
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
    [spare] = takeover.spares(served.process.pid)
    assert proportional_bytes(spare) < SPARE_BYTES_MAX
    [template] = takeover.templates(served.process.pid)
    assert proportional_bytes(template) < TEMPLATE_BYTES_MAX


def proportional_bytes(pid: int) -> int:
    """A process's share of what it and others have in memory (PSS)."""
    [line] = [one for one in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if one.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def test_a_copy_of_the_template_is_a_child_of_the_supervisor_that_ends_with_it(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    ready = served.times_ready()
    served.kill()
    served.wait_ready(ready + 1)
    warm(served)
    family = takeover.children(served.process.pid)
    assert {served.pid, *takeover.spares(served.process.pid)} <= family
    served.process.kill()
    served.process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family), "nobody is left behind")
    assert not os.path.ismount(archive.mount)


def test_who_is_asked_to_end_while_it_takes_over_takes_the_mount_away(archive: Archive) -> None:
    served = Served(archive)
    warm(served)
    family = takeover.children(served.process.pid)
    served.kill()
    until(lambda: b"supervisor.promoted" in archive.log.read_bytes(), "a spare takes over")
    family |= takeover.children(served.process.pid)
    served.process.kill()  # which asks all the others
    served.process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family), "nobody is left behind")
    assert not os.path.ismount(archive.mount)


def test_no_process_that_ended_is_left_unburied(archive: Archive) -> None:
    served = Served(archive)
    for _ in range(3):
        warm(served)
        ready = served.times_ready()
        served.kill()  # what it started is the supervisor's to bury
        served.wait_ready(ready + 1)
    warm(served)
    until(lambda: "Z" not in takeover.states(served.process.pid), "nobody who ended is left")


def test_a_stop_takes_the_mount_away(archive: Archive) -> None:
    served = Served(archive)
    (archive.share / "f").write_bytes(b"bytes")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    assert not os.path.ismount(archive.mount)


def test_when_the_keeper_dies_the_mount_ends_and_the_next_one_has_everything(archive: Archive) -> None:
    served = Served(archive)
    with lost(archive.share / "f", os.O_RDWR | os.O_CREAT) as handle:
        os.write(handle, b"written")
        served.process.kill()
        served.process.wait()
        until(lambda: not os.path.ismount(archive.mount), "the mount is taken away")
    archive.start("serve")
    assert (archive.share / "f").read_bytes() == b"written"


def test_processes_that_die_before_they_answer_lose_the_mount_and_not_a_byte(archive: Archive) -> None:
    served = Served(archive)
    with lost(archive.share / "f", os.O_RDWR | os.O_CREAT) as handle:
        os.write(handle, b"written")
        config = archive.archive / "vnafs.toml"
        sound = config.read_text()
        warm(served)
        served.kill_spare()
        config.write_text("[file_system]\nengine = 3\n" + sound.replace("[file_system]\n", ""))
        served.kill()
        # a wrong configuration is final: the supervisor ends, and with it the mount
        assert served.process.wait(60) == 2
    config.write_text(sound)
    archive.start("serve")
    assert (archive.share / "f").read_bytes() == b"written"


def test_p89_a_mount_that_cannot_be_gone_on_with_is_taken_away_and_mounted_anew(archive: Archive) -> None:
    served = Served(archive)
    path = archive.share / "f"
    with lost(path, os.O_RDWR | os.O_CREAT) as handle:
        os.write(handle, b"written")
        estate = estate_of(served.process.pid)
        [backing] = estate.backings()
        estate.backing_given(dataclasses.replace(backing, local=(0, 0)))  # another file than the kernel has
        estate.close()
        served.kill()
        until(lambda: b"mount.not_taken_over" in archive.log.read_bytes(), archive.tail)
    until(lambda: os.path.ismount(archive.mount) and path.exists(), "it is mounted again")
    assert served.process.poll() is None
    assert b"code=3" not in archive.log.read_bytes(), "which would end `vna serve`, too, once it has run for a while"
    assert path.read_bytes() == b"written"


def estate_of(pid: int) -> Estate:
    """What a supervisor keeps."""
    folder = f"/proc/{pid}/fd"
    [number] = [one for one in os.listdir(folder) if "vnafs-estate" in os.readlink(f"{folder}/{one}")]
    return Estate(os.open(f"{folder}/{number}", os.O_RDWR))


def test_what_changed_behind_the_kernel_while_nobody_told_it_is_seen(archive: Archive) -> None:
    served = Served(archive)
    path = archive.share / "f"
    path.write_bytes(bytes(100_000))
    archive.wait()
    assert path.stat().st_blocks > 0
    archive.evict(str(path))
    served.kill()
    until(lambda: path.stat().st_blocks == 0, "the kernel is told that the file is a stub")
    assert path.read_bytes() == bytes(100_000)


def test_names_and_places_of_a_listing_stay(archive: Archive) -> None:
    served = Served(archive)
    names = {f"n{number:04}" for number in range(2500)}
    for name in names:
        os.close(os.open(archive.share / name, os.O_WRONLY | os.O_CREAT))
    with os.scandir(archive.share) as found:
        seen = [next(found).name for _ in range(10)]
        served.kill()
        time.sleep(0.2)
        seen += [entry.name for entry in found]
    assert len(seen) == len(names)
    assert set(seen) == names
