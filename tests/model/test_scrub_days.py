"""Bits that rot where nobody looks, found and mended by scrubbing: see `pipelineworld`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.model.test_manifest_model import Recorded
from vnafs.domain.files import FileState, Seal
from vnafs.domain.ids import TargetName
from vnafs.index import inodes
from vnafs.local.spool import fingerprint_of
from vnafs.pipeline.namespace import Namespace
from vnafs.targets.faulty import Fault
from vnafs.upkeep.scrub import Scrub, ScrubSettings

A, B = TargetName("a"), TargetName("b")
PERIOD_SECONDS = 10_000.0


class Scrubbed(Recorded):
    """An archive that looks at its copies again."""

    def begin(self) -> None:
        super().begin()
        self.scrub = Scrub(
            self._store,
            Namespace(self._namespace),
            self.fs.local_path,
            ScrubSettings(PERIOD_SECONDS, 0),
            copyists=self.tiering.replicators,
            evict=lambda inodes: [decision.yes for decision in self.tiering.evictor.evict_many(inodes)],
            manifests=self.manifests.look_again,
            quarantine=self.tiering.quarantine,
            clock=self.clock,
            fatal=_raise,
        )

    def scrub_all(self) -> int:
        """Until nothing is due; bytes read."""
        read_bytes, idle = 0, 0
        while idle < 40:
            found = self.scrub.step() or 0
            idle = 0 if found else idle + 1
            read_bytes += found
        return read_bytes

    def rot_local(self, name: bytes) -> None:
        """Local bytes change under their fingerprint, as no write through a file system can do it."""
        inode = self.inode(name)
        path = self.fs.local_path(inode, self.fs.facts(inode).version)
        with open(path, "r+b") as file:
            file.seek(1_000)
            file.write(b"rot")
        with self._namespace.write() as tx:
            row = inodes.find(tx, inode)
            assert row is not None
            assert row.seal is not None
            inodes.put(tx, inode, row._replace(seal=Seal(row.seal.sha256, fingerprint_of(os.stat(path)))))
        self.stop()
        self.begin()


def _raise(problem: BaseException) -> None:
    raise problem


@pytest.fixture
def world(home: Path) -> Scrubbed:
    made = Scrubbed(home, pack_target_bytes=64 * 1024)
    for number in range(12):
        made.write(b"%d" % number, random.Random(number).randbytes(20_000))
    made.clock.advance(20)
    made.settle()
    return made


def test_nothing_is_read_before_it_is_due_and_everything_within_the_period(world: Scrubbed) -> None:
    world.scrub_all()
    before = world.scrub.findings.copies
    assert before == 0
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.scrub.findings.copies == 2 * len(world.packs_known())
    assert world.scrub.findings.copies_damaged == 0
    world.scrub_all()
    assert world.scrub.findings.copies == 2 * len(world.packs_known()), "once a period is enough"


@pytest.mark.parametrize("how", ["a bit", "cut short", "gone", "other bytes"])
def test_a_copy_that_is_wrong_is_found_and_made_again_from_the_other(world: Scrubbed, how: str) -> None:
    for number in range(12):
        assert world.evict(b"%d" % number)
    name = sorted(world.stored(A))[0]
    match how:
        case "a bit":
            world.rot(A, name, 77)
        case "cut short":
            world.stores[A].replace(name, b"".join(world.stores[A].get(name))[:-9])
        case "gone":
            world.stores[A].delete(name)
        case _:
            world.stores[A].replace(name, b"not a pack")
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.scrub.findings.copies_damaged == 1
    world.clock.advance(120)
    world.settle()
    assert world.stored(A) == world.stored(B)
    assert world.counts() == world.recounted()


def test_the_only_copy_left_is_reported_and_not_removed(world: Scrubbed) -> None:
    name = sorted(world.stored(A))[0]
    for number in range(12):
        assert world.evict(b"%d" % number)
    world.rot(A, name, 5)
    world.rot(B, name, 7)
    kept = world.stored(A)[name]
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.scrub.findings.copies_damaged == 2
    for _ in range(20):
        world.tiering.step()
        world.clock.advance(60)
    assert world.stored(A)[name] == kept, "most of it may still be good"


def test_a_target_that_does_not_answer_says_nothing_of_what_it_has(world: Scrubbed) -> None:
    world.clock.advance(PERIOD_SECONDS + 1)
    world.targets[A].script(Fault(status=503, times=100_000))
    world.scrub_all()
    assert world.scrub.findings.copies_damaged == 0
    assert all(world.standing(b"%d" % number)[2] == 2 for number in range(12))


def test_rotten_local_bytes_are_let_go_and_the_next_reader_gets_the_right_ones(world: Scrubbed) -> None:
    world.rot_local(b"3")
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.scrub.findings.files_damaged == world.scrub.findings.files_let_go == 1
    assert world.state(b"3") is FileState.STUB
    assert world.read(b"3") == random.Random(3).randbytes(20_000)


def test_rotten_local_bytes_wait_for_their_copies_and_go_then_whatever_restarts(world: Scrubbed) -> None:
    world.rot_local(b"3")
    for name in world.stored(A):
        world.stores[A].delete(name)
        world.rot(B, name, 300)
    world.clock.advance(PERIOD_SECONDS + 1)
    for target in (A, B):
        world.targets[target].script(Fault(operation="put", status=503, times=100_000))
    world.scrub_all()
    assert world.scrub.findings.files_damaged == 1
    assert world.scrub.findings.files_let_go == 0
    assert world.state(b"3") is not FileState.STUB
    for target in (A, B):
        world.targets[target].forgive()
    for name in world.stored(B):
        world.rot(B, name, 300)  # the same bit once more: right again
    world.stop()
    world.begin()
    world.clock.advance(PERIOD_SECONDS + 1)
    world.settle()
    world.scrub_all()
    world.clock.advance(120)
    world.settle()
    world.scrub_all()
    assert world.state(b"3") is FileState.STUB
    assert world.read(b"3") == random.Random(3).randbytes(20_000)


def test_a_file_that_somebody_changed_is_not_taken_for_rotten(world: Scrubbed) -> None:
    world.patch(b"4", 0, b"new")
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.scrub.findings.files_damaged == 0
    assert world.read(b"4")[:3] == b"new"


def test_it_goes_on_where_it_was_after_a_restart(world: Scrubbed) -> None:
    world.clock.advance(PERIOD_SECONDS + 1)
    for _ in range(2):
        world.scrub.step()
    done = world.scrub.findings.copies
    assert done
    world.stop()
    world.begin()
    world.scrub_all()
    assert world.scrub.findings.copies == 2 * len(world.packs_known()) - done


def test_packs_are_not_walked_again_for_each_local_file(world: Scrubbed) -> None:
    walks = 0
    world.scrub_all()
    looked_at = world.scrub.findings.files
    next_pack = world.scrub._next_pack

    def counted() -> int | None:
        nonlocal walks
        walks += 1
        return next_pack()

    world.scrub._next_pack = counted
    world.clock.advance(PERIOD_SECONDS / 2)
    world.scrub._files_not_before = 0.0
    world.scrub_all()
    assert world.scrub.findings.files == looked_at + 12
    assert walks <= 3


def test_the_rate_is_kept(world: Scrubbed) -> None:
    settings = ScrubSettings(PERIOD_SECONDS, 1_000_000)
    scrub = Scrub(
        world._store, Namespace(world._namespace), world.fs.local_path, settings,
        copyists=world.tiering.replicators, evict=lambda _: [], manifests=lambda: iter(()),
        quarantine=world.tiering.quarantine, clock=world.clock, fatal=_raise,
    )  # fmt: skip
    assert scrub._pause_seconds(2_000_000, 0.5) == 1.5
    assert scrub._pause_seconds(100, 9.0) == 0.0
    assert scrub._pause_seconds(None, 0.0) == 60.0
