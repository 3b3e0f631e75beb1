"""The plain mirrors of an archive together: what is wrong with one is nobody else's business."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mirrormemory import MemoryMirror
from vnafs.domain.clock import SystemClock
from vnafs.domain.errors import ConfigurationInvalid, NotFound, Refused
from vnafs.domain.faults import NoFaults
from vnafs.domain.ids import Inode, RepositoryId, TargetName
from vnafs.domain.repositories import Repository
from vnafs.fs.caller import Caller
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.settings import Settings
from vnafs.index.engine import Engine
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.repositories import every
from vnafs.local.spool import Spool
from vnafs.targets.mirror import Mirror
from vnafs.targets.port import Body
from vnafs.upkeep.mirroring import MirrorRules
from vnafs.upkeep.mirrors import Mirrors, WantedMirror
from vnafs.upkeep.stage import MEMORY_BYTES_MAX, ROOM_BYTES, Stage

A, B = TargetName("a"), TargetName("b")


class HangingMirror(MemoryMirror):
    """One whose server takes a connection and says nothing."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.asked = threading.Event()
        self.answer = threading.Event()

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        self.asked.set()
        self.answer.wait(60)


class Archive:
    """A tree with some folders, and mirrors of it."""

    def __init__(self, home: Path) -> None:
        self.namespace = MemoryEngine()
        self.fs = Filesystem(
            self.namespace, Spool(str(home / "spool")), SystemClock(), NoFaults(), Settings(reserve_bytes=0)
        )
        self.share = self.fs.repositories.add("share").id
        self.rows: dict[str, Engine] = {}
        self.failures: list[BaseException] = []
        self.mirrors = Mirrors(
            str(home / "mirrors"),
            self.namespace,
            open_rows=lambda path: self.rows.setdefault(path, MemoryEngine()),
            every=self.every,
            local_path=self.fs.local_path,
            bytes_of=lambda *_: iter(()),
            taking_room=lambda _: contextlib.nullcontext(),
            clock=SystemClock(),
            faults=NoFaults(),
            fatal=self.failures.append,
        )

    def every(self) -> list[Repository]:
        with self.namespace.read() as reader:
            return list(every(reader))

    def folder(self, name: bytes) -> None:
        self.fs.mkdir(Inode(self.share), name, 0o755, Caller(0, 0, 1))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path)
    yield made
    made.mirrors.stop()
    assert made.failures == []


def wanted(mirror: Mirror, url: str = "memory:", **words: object) -> WantedMirror:
    return WantedMirror(MirrorRules(url, **words), lambda: mirror)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_mirrors_come_go_and_follow_each_for_itself(archive: Archive) -> None:
    one, two = MemoryMirror("a"), MemoryMirror("b")
    archive.folder(b"first")
    archive.mirrors.follow({A: wanted(one), B: wanted(two)})
    described = "share/first/.vna-metadata.jsonl"
    until(lambda: described in one.objects and described in two.objects)
    archive.mirrors.follow({A: wanted(one)})
    archive.folder(b"second")
    until(lambda: "share/second/.vna-metadata.jsonl" in one.objects)
    assert "share/second/.vna-metadata.jsonl" not in two.objects
    with pytest.raises(Refused):
        archive.mirrors.forget(A)
    archive.mirrors.forget(B)
    archive.mirrors.test(A)
    with pytest.raises(NotFound):
        archive.mirrors.test(B)


def test_one_that_cannot_be_opened_is_shown_and_holds_up_no_other(archive: Archive) -> None:
    def fail() -> Mirror:
        raise ConfigurationInvalid(file="f", key="k", value="v", why="there are no credentials", fix="Give some")

    good = MemoryMirror("b")
    archive.mirrors.follow({A: WantedMirror(MirrorRules("s3://x"), fail), B: wanted(good)})
    until(lambda: good.objects)
    broken, fine = archive.mirrors.status()
    assert (broken["name"], broken["reachable"]) == ("a", False)
    assert "no credentials" in broken["why"]
    assert fine["reachable"]
    with pytest.raises(Refused, match="no credentials"):
        archive.mirrors.test(A)


def test_a_name_that_means_another_place_than_its_rows_do_is_refused(archive: Archive) -> None:
    first, second = MemoryMirror("a"), MemoryMirror("a")
    archive.mirrors.follow({A: wanted(first, "file:///one")})
    until(lambda: first.objects)
    archive.mirrors.follow({A: wanted(second, "file:///two")})
    [row] = archive.mirrors.status()
    assert not row["reachable"]
    assert "file:///one" in row["why"]
    assert second.objects == {}


def test_one_that_hangs_is_given_up_in_time_and_holds_up_no_other(archive: Archive) -> None:
    hanging, good = HangingMirror(), MemoryMirror("b")
    archive.mirrors.follow({A: wanted(hanging), B: wanted(good)})
    assert hanging.asked.wait(20)
    until(lambda: good.objects)
    archive.folder(b"meanwhile")
    until(lambda: "share/meanwhile/.vna-metadata.jsonl" in good.objects)
    began = time.monotonic()
    assert not archive.mirrors.stop()
    assert time.monotonic() - began < 5
    hanging.answer.set()
    until(archive.mirrors.stop)


def test_one_that_has_much_to_do_ends_at_once_and_can_be_forgotten(archive: Archive) -> None:
    class SlowMirror(MemoryMirror):
        def replace(self, name: str, body: Body, mtime_ns: int) -> None:
            time.sleep(0.2)
            super().replace(name, body, mtime_ns)

    for number in range(100):
        archive.folder(b"%d" % number)
    slow = SlowMirror("a")
    archive.mirrors.follow({A: wanted(slow, transfers_max=1)})
    until(lambda: len(slow.objects) > 2)
    archive.mirrors.follow({})
    archive.mirrors.forget(A)
    done = len(slow.objects)
    time.sleep(0.5)
    assert len(slow.objects) == done < 50


def test_nothing_is_mirrored_of_an_archive_that_went_on_elsewhere(archive: Archive) -> None:
    mirror = MemoryMirror("a")
    archive.mirrors.follow({A: wanted(mirror)})
    until(lambda: mirror.objects)
    archive.mirrors.suspend("it went on elsewhere")
    time.sleep(1.0)
    archive.folder(b"stale")
    archive.mirrors.follow({A: wanted(mirror), B: wanted(MemoryMirror("b"))})
    time.sleep(1.0)
    assert "share/stale/.vna-metadata.jsonl" not in mirror.objects
    [row] = archive.mirrors.status()
    assert row["why"] == "it went on elsewhere"


def test_repositories_are_chosen_by_name_and_by_encryption() -> None:
    plain, secret = Repository(RepositoryId(2), "plain"), Repository(RepositoryId(3), "secret", encrypted=True)
    every_one, named = MirrorRules("m"), MirrorRules("m", ("secret",))
    assert every_one.chosen(plain)
    assert not every_one.chosen(secret)
    assert not named.chosen(plain)
    assert not named.chosen(secret)
    assert MirrorRules("m", ("secret",), plain=True).chosen(secret)


# -- stages --------------------------------------------------------------------------------------------------------


def test_a_stage_is_in_memory_while_it_is_small_and_a_file_with_room_when_it_grows(tmp_path: Path) -> None:
    taken: list[int] = []

    @contextlib.contextmanager
    def taking(size: int) -> Iterator[None]:
        taken.append(size)
        yield
        taken.remove(size)

    path = tmp_path / "stage"
    with Stage(str(path), taking) as stage:
        stage.add(b"x" * MEMORY_BYTES_MAX)
        assert not path.exists()
        assert taken == []
        stage.add(b"y" * 10)
        assert taken == [ROOM_BYTES]
        stage.add(b"z" * (ROOM_BYTES - MEMORY_BYTES_MAX))
        assert taken == [ROOM_BYTES, ROOM_BYTES]
        body = stage.body()
        with body.open() as file:
            data = b"".join(iter(lambda: file.read(1 << 20), b""))
        assert data == b"x" * MEMORY_BYTES_MAX + b"y" * 10 + b"z" * (ROOM_BYTES - MEMORY_BYTES_MAX)
        assert body.size_bytes == len(data)
        assert body.sha256 == stage.sha256
    assert not path.exists()
    assert taken == []
