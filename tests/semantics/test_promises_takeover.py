"""P-86 to P-89: what a process died over is done once by the next one, and what was open stays open."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import AlreadyExists, BadHandle, Busy, Refused, TooManyOpen, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode
from vnafs.fs import takeover
from vnafs.fs.core import Watcher
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.estate import Estate, KeptBacking, KeptHandle, KeptMount
from vnafs.fuse.kernel.files import FileRequests
from vnafs.fuse.kernel.keeper import Inheritance
from vnafs.fuse.kernel.names import NameRequests
from vnafs.fuse.kernel.once import Once
from vnafs.fuse.kernel.replies import Answer, Handler, Replies
from vnafs.fuse.kernel.xattrs import XattrRequests
from vnafs.fuse.recaller import NoRecaller
from vnafs.fuse.recalls import Recalls
from vnafs.fuse.serving import MountOptions
from vnafs.fuse.syncing import Syncing

RESENT = wire.RESENT


class Death(BaseException):
    """kill -9."""


class Deadly(Faults):
    """Dies at the named point when told to."""

    def __init__(self) -> None:
        self.point = ""

    def reach(self, point: str) -> None:
        if point == self.point:
            self.point = ""
            raise Death


class World:
    """A tree behind the handlers of the kernel engine, in one process after another."""

    def __init__(self, directory: Path) -> None:
        self.faults = Deadly()
        self.tree = Tree(directory, faults=self.faults)
        self.estate = Estate.new(handles_max=16, backings_max=8, requests_max=4)
        self.unique = 0
        self.serve()

    def serve(self, *, adopts: bool = False) -> None:
        fs = self.tree.fs
        replies = Replies(fs, Syncing(fs), 1.0)
        recalls = Recalls(fs, NoRecaller(), MountOptions())
        files = FileRequests(fs, recalls, replies)
        self.once = files.once = Once(fs, self.estate, replies)
        self.handlers: dict[int, Handler] = {
            **NameRequests(fs, recalls, replies, self.tree.clock).handlers(),
            **XattrRequests(fs, replies).handlers(),
            **files.handlers(),
        }
        if adopts:
            files.adopt()
            self.once.adopt()

    def die(self) -> None:
        """The next process takes over; it maps the estate anew."""
        for file in self.tree.fs._core.handles.files.values():
            file.close_descriptors()
        self.faults.point = ""
        self.estate = Estate(os.dup(self.estate.descriptor))
        before = Inheritance(-1, self.estate).open_before()
        self.tree.fs = Filesystem(
            self.tree.engine,
            self.tree.spool,
            self.tree.clock,
            self.faults,
            settings=self.tree.settings,
            open_before=before,
        )
        self.serve(adopts=True)

    def ask(self, opcode: int, node: int, body: bytes, *, again: bool = False) -> bytes:
        """Serve a request; *again*: the one before, sent again."""
        if not again:
            self.unique += 2
        unique = self.unique | (RESENT if again else 0)
        request = wire.Request(opcode, unique, node, ALICE.uid, ALICE.gid, 1, memoryview(body))
        answer: Answer = self.once.serve(request, self.handlers[opcode])
        assert isinstance(answer, bytes)
        return answer

    def answered(self, opcode: int) -> None:
        self.once.answered(opcode, self.unique)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.estate.close()


def setxattr(name: bytes, value: bytes, flags: int) -> bytes:
    return wire.SETXATTR_IN.pack(len(value), flags, 0, 0) + name + b"\0" + value


def chmod(mode: int) -> bytes:
    return wire.SETATTR_IN.pack(wire.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0)


def f_of(world: World) -> Inode:
    return world.tree.fs.lookup(world.tree.r, b"f").inode


EXCLUSIVE = wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, 0, 0)
REQUESTS: dict[str, Callable[[World], tuple[int, int, bytes]]] = {
    "mkdir": lambda world: (wire.MKDIR, world.tree.r, wire.MKDIR_IN.pack(0o755, 0) + b"new\0"),
    "mknod": lambda world: (wire.MKNOD, world.tree.r, wire.MKNOD_IN.pack(stat.S_IFREG | 0o600, 0, 0, 0) + b"new\0"),
    "symlink": lambda world: (wire.SYMLINK, world.tree.r, b"new\0target\0"),
    "link": lambda world: (wire.LINK, world.tree.r, wire.LINK_IN.pack(f_of(world)) + b"new\0"),
    "unlink": lambda world: (wire.UNLINK, world.tree.r, b"f\0"),
    "rmdir": lambda world: (wire.RMDIR, world.tree.r, b"d\0"),
    "rename": lambda world: (wire.RENAME, world.tree.r, wire.RENAME_IN.pack(world.tree.r) + b"f\0new\0"),
    "exchange": lambda world: (wire.RENAME2, world.tree.r, wire.RENAME2_IN.pack(world.tree.r, 2, 0) + b"f\0d\0"),
    "setxattr": lambda world: (wire.SETXATTR, f_of(world), setxattr(b"user.x", b"v", 1)),
    "removexattr": lambda world: (wire.REMOVEXATTR, f_of(world), b"user.y\0"),
    "chmod": lambda world: (wire.SETATTR, f_of(world), chmod(0o400)),
    "create": lambda world: (wire.CREATE, world.tree.r, EXCLUSIVE + b"new\0"),
}
DEATHS = ("before anything", "after the change", "before the answer")


def shown(world: World) -> dict[bytes, tuple[object, ...]]:
    """Every name of the repository: what it is, how many names and bytes it has, and its attributes."""
    found: dict[bytes, tuple[object, ...]] = {}
    for _, name, what in world.tree.fs.listing(world.tree.r):
        if name not in (b".", b".."):
            found[name] = (what.mode, what.nlink, what.size_bytes, tuple(world.tree.fs.listxattr(what.inode)))
    return found


def prepared(world: World) -> None:
    inode = world.tree.file(b"f", b"bytes")
    world.tree.fs.setxattr(inode, b"user.y", b"1", 0)
    world.tree.fs.mkdir(world.tree.r, b"d", 0o755, ALICE)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("what", REQUESTS)
def test_p86_a_request_is_done_once_wherever_its_process_died(tmp_path: Path, what: str, death: str) -> None:
    alive, dying = World(tmp_path / "alive"), World(tmp_path / "dying")
    for world in (alive, dying):
        prepared(world)
    expected = alive.ask(*REQUESTS[what](alive))

    request = REQUESTS[what](dying)
    if death == "before anything":
        dying.unique += 2
    elif death == "after the change":
        dying.faults.point = "tree.logged"
        with pytest.raises(Death):
            dying.ask(*request)
    else:
        dying.ask(*request)
    for _ in range(2):  # the second one dies before it is asked anything
        dying.die()

    answer = dying.ask(*request, again=True)
    assert len(answer) == len(expected)
    assert shown(dying) == shown(alive)
    assert dying.tree.fs.handles_open == alive.tree.fs.handles_open
    for world in (alive, dying):
        world.estate.close()


def test_p86_the_same_request_of_somebody_else_is_refused_as_ever(world: World) -> None:
    prepared(world)
    body = wire.MKDIR_IN.pack(0o755, 0) + b"new\0"
    world.ask(wire.MKDIR, world.tree.r, body)
    world.die()
    with pytest.raises(AlreadyExists):
        world.ask(wire.MKDIR, world.tree.r, body)
    world.unique += 2  # one that no process read: what another request made is not taken for its own
    with pytest.raises(AlreadyExists):
        world.ask(wire.MKDIR, world.tree.r, body, again=True)


def test_a_mount_from_before_says_nothing_about_requests_of_this_one(world: World) -> None:
    body = wire.MKDIR_IN.pack(0o755, 0) + b"new\0"
    world.ask(wire.MKDIR, world.tree.r, body)
    world.answered(wire.MKDIR)
    world.estate = Estate.new(handles_max=16, backings_max=8, requests_max=4)  # mounted anew: numbers begin again
    world.die()
    with pytest.raises(AlreadyExists):
        world.ask(wire.MKDIR, world.tree.r, body, again=True)


def test_answers_wait_in_a_bounded_place_that_becomes_free(world: World) -> None:
    for number in range(40):
        world.ask(wire.MKDIR, world.tree.r, wire.MKDIR_IN.pack(0o755, 0) + b"%d\0" % number)
        if number % 5 == 4:
            world.die()  # before it answered
            world.ask(wire.GETATTR, world.tree.r, bytes(16))
        else:
            world.answered(wire.MKDIR)
    assert len(world.estate.answers()) <= 1


def test_p89_a_request_over_which_processes_die_is_answered_with_an_error(world: World) -> None:
    body = wire.MKDIR_IN.pack(0o755, 0) + b"new\0"

    def deadly(request: wire.Request) -> Answer:
        raise Death

    world.unique += 2
    for _ in range(3):
        request = wire.Request(wire.MKDIR, world.unique | RESENT, world.tree.r, 0, 0, 1, memoryview(body))
        world.once.estate.serve(world.unique)  # a process that is killed sets nothing back
        world.die()
    with pytest.raises(OSError, match="die over") as refused:
        world.once.serve(request, deadly)
    assert refused.value.errno == errno.EIO


# -- open files ----------------------------------------------------------------------------------------------


def opened(world: World, name: bytes, flags: int) -> int:
    node = world.tree.fs.lookup(world.tree.r, name).inode
    return int(wire.OPEN_OUT.unpack(world.ask(wire.OPEN, node, wire.OPEN_IN.pack(flags, 0)))[0])


def test_p87_handles_keep_their_number_and_what_they_may_do(world: World) -> None:
    prepared(world)
    reading, writing = opened(world, b"f", os.O_RDONLY), opened(world, b"f", os.O_WRONLY)
    world.die()
    fs = world.tree.fs
    assert fs.read(fs.handle(reading), 0, 10) == b"bytes"
    with pytest.raises(BadHandle):
        fs.write(fs.handle(reading), 0, b"x")
    assert fs.write(fs.handle(writing), 5, b" more") == 5
    with pytest.raises(BadHandle):
        fs.read(fs.handle(writing), 0, 1)
    assert opened(world, b"f", os.O_RDONLY) > max(reading, writing)


def test_a_number_that_was_closed_is_not_given_again(world: World) -> None:
    prepared(world)
    number = opened(world, b"f", os.O_RDONLY)
    node = f_of(world)
    body = wire.RELEASE_IN.pack(number, 0, 0, 0)
    world.ask(wire.RELEASE, node, body)
    world.die()
    assert world.ask(wire.RELEASE, node, body, again=True) == b""
    assert opened(world, b"f", os.O_RDONLY) != number


def test_p87_a_file_that_is_open_for_write_stays_so_and_is_not_sealed(world: World) -> None:
    prepared(world)
    opened(world, b"f", os.O_RDWR)
    inode = f_of(world)
    world.die()
    world.tree.clock.sleep(3600)
    assert world.tree.fs.facts(inode).handles_open == 1
    assert world.tree.advance(inode) is Verdict.BUSY
    assert world.tree.fs.facts(inode).state is FileState.OPEN


def test_p87_a_file_without_a_name_lives_until_its_last_close(world: World) -> None:
    prepared(world)
    number = opened(world, b"f", os.O_RDWR)
    inode = f_of(world)
    world.tree.fs.unlink(world.tree.r, b"f")
    for _ in range(2):
        world.die()
        assert world.tree.fs.read(world.tree.fs.handle(number), 0, 10) == b"bytes"
    world.ask(wire.RELEASE, inode, wire.RELEASE_IN.pack(number, 0, 0, 0))
    assert world.tree.fs._core.find(inode) is None


def test_a_handle_that_was_being_closed_when_the_process_died_is_closed(world: World) -> None:
    prepared(world)
    number = opened(world, b"f", os.O_RDWR)
    inode = f_of(world)
    world.tree.fs.unlink(world.tree.r, b"f")
    body = wire.RELEASE_IN.pack(number, 0, 0, 0)
    world.faults.point = "tree.logged"
    with pytest.raises(Death):
        world.ask(wire.RELEASE, inode, body)
    world.die()
    assert world.ask(wire.RELEASE, inode, body, again=True) == b""
    assert (world.tree.fs.handles_open, world.estate.handles()) == (0, [])


def test_what_was_written_before_is_synced_by_the_flush_after(world: World) -> None:
    prepared(world)
    number = opened(world, b"f", os.O_WRONLY)
    world.tree.fs.write(world.tree.fs.handle(number), 0, b"new")
    world.die()
    world.tree.engine.sync(world.tree.engine.position)
    commitment = world.tree.fs.fsync(world.tree.fs.handle(number))
    assert commitment is not None
    assert commitment.descriptor >= 0
    os.close(commitment.descriptor)


def test_p89_what_the_kernel_has_open_and_is_not_there_is_not_taken_over(world: World) -> None:
    prepared(world)
    opened(world, b"f", os.O_RDONLY)
    inode = f_of(world)
    os.unlink(world.tree.fs.local_path(inode, world.tree.fs.facts(inode).version))
    with pytest.raises(VnaError):
        world.die()
    world.tree.fs = world.tree.start()  # as on a new mount
    assert world.tree.fs.handles_open == 0


def test_p89_a_backing_id_that_nobody_knows_is_not_taken_over(world: World) -> None:
    prepared(world)
    inode = f_of(world)
    kept = KeptHandle(1, 2, inode, wire.FOPEN_PASSTHROUGH, readable=True, writable=False, privileged=False, unseen=True)
    world.estate.opened(kept)
    with pytest.raises(Busy):
        world.die()


# -- the estate ----------------------------------------------------------------------------------------------


def test_another_versions_estate_is_refused(tmp_path: Path) -> None:
    estate = Estate.new(handles_max=4, backings_max=4, requests_max=4)
    os.pwrite(estate.descriptor, b"vnafs/0\n", 0)
    with pytest.raises(Refused):
        Estate(os.dup(estate.descriptor))
    estate.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    with pytest.raises(Refused):
        Estate(other)
    os.close(other)


def test_an_estate_says_of_which_mount_it_is(world: World) -> None:
    prepared(world)
    opened(world, b"f", os.O_RDONLY)
    mount = KeptMount(bytes(range(16)), "/" + "ä\udcff" * 1364, (1 << 20) - 1)
    handles = world.estate.handles()
    world.estate.mounted(mount)
    found = Estate(os.dup(world.estate.descriptor))
    assert found.mount == mount
    assert found.handles() == handles
    with pytest.raises(Refused, match="too long"):
        world.estate.mounted(dataclasses.replace(mount, place="/" * 4096))


def test_an_estate_that_is_full_refuses_to_open_more(world: World) -> None:
    prepared(world)
    for _ in range(16):
        opened(world, b"f", os.O_RDONLY)
    with pytest.raises(TooManyOpen):
        opened(world, b"f", os.O_RDONLY)
    assert world.tree.fs.handles_open == 16


def test_an_id_that_was_asked_for_when_the_process_died_is_given_back(world: World) -> None:
    estate = world.estate
    assert estate.backing_wanted()
    estate.backing_given(KeptBacking(7, Inode(5), (1, 2), closing=False))
    assert estate.backing_wanted()
    found = Estate(os.dup(estate.descriptor)).backings()
    assert found == [KeptBacking(7, 5, (1, 2), closing=False), KeptBacking(8, 0, (0, 0), closing=True)]
    estate.backing_closed(8)
    estate.backing_closing(7)
    assert estate.backings() == [KeptBacking(7, 5, (1, 2), closing=True)]
    estate.backing_closed(7)
    assert estate.backings() == []


# -- what the kernel cached ------------------------------------------------------------------------------------


class Told(Watcher):
    """What the kernel would be told."""

    def __init__(self) -> None:
        self.inodes: set[int] = set()
        self.entries: set[tuple[int, bytes]] = set()

    def attributes_changed(self, inode: Inode) -> None:
        self.inodes.add(inode)

    def bytes_changed(self, inode: Inode) -> None:
        self.inodes.add(inode)

    def entry_doubted(self, parent: Inode, name: bytes) -> None:
        self.entries.add((parent, name))


def test_p88_the_kernel_looks_again_at_what_it_was_not_told_of(world: World) -> None:
    prepared(world)
    heard = world.tree.fs.succession.events_end()
    inode = f_of(world)
    world.tree.advance(inode, FileState.SEALED)
    world.tree.fs.rename(world.tree.r, b"d", world.tree.r, b"e")
    world.die()
    told = Told()
    world.tree.fs.watch(told)
    assert world.tree.fs.succession.tell_since(heard) > 0
    assert told.inodes >= {inode, world.tree.r}
    assert told.entries >= {(world.tree.r, b"d"), (world.tree.r, b"e")}
    assert world.tree.fs.succession.tell_since(world.tree.fs.succession.events_end()) == 0


def test_p89_more_than_the_kernel_can_be_told_of_is_not_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = world.tree.fs.succession.events_end()
    prepared(world)
    count = world.tree.fs.succession.events_end() - heard
    monkeypatch.setattr(takeover, "EVENTS_TOLD_MAX", count)
    assert world.tree.fs.succession.tell_since(heard) == count
    monkeypatch.setattr(takeover, "EVENTS_TOLD_MAX", count - 1)
    with pytest.raises(Busy, match="too many"):
        world.tree.fs.succession.tell_since(heard)


def test_p89_what_this_index_never_came_to_is_not_gone_on_with(world: World) -> None:
    prepared(world)
    with pytest.raises(Busy, match="not of this index"):
        world.tree.fs.succession.tell_since(world.tree.fs.succession.events_end() + 1)
