"""Eviction: many files with one sync, each with its own answer, and no more than the disk needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.control.client import ControlClient
from appliance.control.server import ControlServer
from appliance.control.tree import TreeClient, tree_methods
from tests.semantics.trees import Tree
from vnafs.domain.clock import Instant
from vnafs.domain.copies import Copy
from vnafs.domain.errors import Damaged
from vnafs.domain.eviction import OPEN, YES
from vnafs.domain.files import FileFacts, FileState, Verdict
from vnafs.domain.ids import Inode, TargetName, Version
from vnafs.pipeline.evict import Evictor
from vnafs.pipeline.namespace import Namespace


class Reached:
    """Notes fault points."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def reach(self, point: str) -> None:
        self.points.append(point)


class Bench:
    """An evictor over a small tree, whose copies the test decides."""

    def __init__(self, tree: Tree, faults: Reached) -> None:
        self.tree = tree
        self.settled = 0
        self.unreadable: set[Inode] = set()
        self.evictor = Evictor(
            tree.fs, Namespace(tree.engine), self.copies, settle=self.settle, clock=tree.clock, faults=faults
        )

    def settle(self) -> None:
        self.settled += 1

    def copies(self, facts: FileFacts) -> Sequence[Copy]:
        if facts.inode in self.unreadable:
            raise Damaged(what="a record")
        return () if facts.sha256 is None else (Copy(TargetName("here"), verified=Instant(1)),)

    def replicated(self, *names: bytes, data: bytes = b"bytes") -> list[Inode]:
        found = [self.tree.file(name, data) for name in names]
        for inode in found:
            assert self.tree.advance(inode) is Verdict.DONE
        return found

    def stubs(self, inodes: Sequence[Inode]) -> int:
        return sum(self.tree.fs.facts(inode).state is FileState.STUB for inode in inodes)


@pytest.fixture
def faults() -> Reached:
    return Reached()


@pytest.fixture
def bench(tmp_path: Path, faults: Reached) -> Bench:
    return Bench(Tree(tmp_path, faults=faults), faults)


def test_many_files_take_one_sync_and_each_gets_its_answer(bench: Bench, faults: Reached) -> None:
    one, two, broken = bench.replicated(b"1", b"2", b"broken")
    plain = bench.tree.file(b"plain")
    late = bench.tree.file(b"late")
    bench.tree.advance(late, FileState.PACKED)
    bench.unreadable.add(broken)
    syncs = bench.tree.engine.syncs
    faults.points.clear()
    decisions = bench.evictor.evict_many([one, plain, two, broken, Inode(999_999), one, late])
    assert [decision.yes for decision in decisions] == [True, False, True, False, False, True, True]
    assert "verified copies are asked for" in decisions[1].why
    assert decisions[4].why == "there is no such file any more"
    assert bench.tree.engine.syncs == syncs + 1
    assert bench.settled == 1
    points = [point for point in faults.points if point.startswith("evict.")]
    assert points == ["evict.decided", "evict.recorded", "evict.removed"]
    assert bench.evictor.evict_many([one])[0].yes
    assert bench.settled == 1


def test_what_is_closed_a_moment_later_goes_for_who_waits(bench: Bench) -> None:
    [one, two] = bench.replicated(b"1", b"2")
    handles = {inode: bench.tree.open(inode) for inode in (one, two)}
    sleep = bench.tree.clock.sleep

    def and_close(seconds: float) -> None:
        sleep(seconds)
        if one in handles and bench.tree.clock.passed > 0.3:
            bench.tree.fs.release(handles.pop(one))

    bench.tree.clock.sleep = and_close  # type: ignore[method-assign] # somebody closes meanwhile
    assert bench.evictor.evict_many([one]) == [OPEN]
    began = bench.tree.clock.passed
    assert bench.evictor.evict_many([one, two, one], wait_seconds=1.0) == [YES, OPEN, YES]
    assert 1.0 <= bench.tree.clock.passed - began < 1.2
    began = bench.tree.clock.passed
    assert bench.evictor.evict_many([two], wait_seconds=1e9) == [OPEN]
    assert bench.tree.clock.passed - began < 11, "nobody waits for ever"


def test_more_than_a_call_takes_go_in_several(bench: Bench) -> None:
    inodes = bench.replicated(*(b"%d" % number for number in range(70)))
    syncs = bench.tree.engine.syncs
    assert all(decision.yes for decision in bench.evictor.evict_many(inodes))
    assert bench.tree.engine.syncs == syncs + 2


def test_room_is_made_with_few_syncs_and_only_as_much_as_is_needed(bench: Bench) -> None:
    inodes = bench.replicated(*(b"%02d" % number for number in range(20)), data=b"x" * 1000)
    syncs = bench.tree.engine.syncs

    def used_bytes() -> int:
        return 1000 * (len(inodes) - bench.stubs(inodes))

    assert bench.evictor.make_room(used_bytes, 7500, stop=lambda: False) == 13
    assert used_bytes() == 7000
    assert bench.tree.engine.syncs == syncs + 1


def test_room_is_made_around_what_cannot_go(bench: Bench) -> None:
    inodes = bench.replicated(*(b"%02d" % number for number in range(5)))
    bench.unreadable.add(inodes[0])
    reader = bench.tree.open(inodes[1])
    assert bench.evictor.make_room(lambda: 1 << 30, 0, stop=lambda: False) == 3
    assert bench.tree.fs.read(reader, 0, 10) == b"bytes"
    assert bench.evictor.make_room(lambda: 1 << 30, 0, stop=lambda: True) == 0


def test_the_control_socket_carries_many_evictions(bench: Bench, tmp_path: Path) -> None:
    one, two = bench.replicated(b"1", b"2")
    path = str(tmp_path / "control.sock")

    def here(work: Any) -> Any:
        return work()

    server = ControlServer(path, tree_methods(bench.tree.fs, here))
    server.start()
    try:
        client = TreeClient(ControlClient(path, "mount"))
        requests = [(one, Version(1)), (two, Version(9))]
        assert client.evict_many(requests) == [Verdict.DONE, Verdict.GONE]
        assert client.evict(two, Version(1)) is Verdict.DONE
    finally:
        server.close()
