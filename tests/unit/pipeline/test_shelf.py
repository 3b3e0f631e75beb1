"""The shelf: one fetch of a pack at a time, whoever else wants it meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.semantics.trees import HandClock
from vnafs.domain.clock import Clock, Instant, SystemClock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NoSpace, RecallBudgetSpent, RecallFailed, Rehydrating, TargetUnavailable
from vnafs.domain.ids import (
    WHOLE,
    ContentNumber,
    ObjectName,
    PackNumber,
    RepositoryId,
    Sha256,
    Span,
    TargetName,
    new_pack_id,
    pack_object_name,
)
from vnafs.domain.rehydration import Rehydration
from vnafs.domain.repositories import Repository
from vnafs.index import copies, packs, targets
from vnafs.index.engines.memory import MemoryEngine
from vnafs.pipeline.budgets import Budgets, Used
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.thawing import LOOK_SECONDS, Thaws
from vnafs.targets.body import BytesBody
from vnafs.targets.faulty import Fault, FaultyTarget
from vnafs.targets.memory import MemoryTarget

DATA = os.urandom(5_000)
LONG_SECONDS = 20.0


class Gated(MemoryTarget):
    """Each get waits for its own word: well or not."""

    def __init__(self) -> None:
        super().__init__(TargetName("t"))
        self.calls = 0
        self._words = [threading.Event(), threading.Event(), threading.Event()]
        self._well = [True, True, True]

    def say(self, call: int, *, well: bool) -> None:
        self._well[call] = well
        self._words[call].set()

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        call, self.calls = self.calls, self.calls + 1
        yield DATA[:100]
        assert self._words[call].wait(LONG_SECONDS)
        if not self._well[call]:
            raise TargetUnavailable(target=self.name, why="scripted")
        yield DATA[100:]


@pytest.fixture
def pack() -> packs.Pack:
    return packs.Pack(
        PackNumber(1), new_pack_id(), Sha256(hashlib.sha256(DATA).digest()), len(DATA), RepositoryId(2), 0, Instant(1),
        ContentNumber(1), 1, False, (),
    )  # fmt: skip


REPOSITORY = Repository(RepositoryId(2), "r")


def shelf(
    tmp_path: Path,
    pack: packs.Pack,
    *holders: MemoryTarget,
    rules: Repository = REPOSITORY,
    clock: Clock | None = None,
) -> Shelf:
    engine = MemoryEngine()
    with engine.write() as tx:
        packs.put(tx, pack)
        for number, target in enumerate(holders, 1):
            targets.put(tx, targets.TargetRow(number, target.name, f"memory://{number}"))
            copies.put(tx, copies.PackCopy(pack.number, number, CopyState.VERIFIED))
    return Shelf(
        str(tmp_path),
        str(tmp_path / "cache"),
        engine,
        sources=lambda: dict(enumerate(holders, 1)),
        has_room=lambda _: True,
        spare_room=lambda _: contextlib.nullcontext(),
        cache_bytes_max=1 << 20,
        budgets=Budgets(engine, lambda _: rules, SystemClock()),
        thaws=Thaws(engine, clock or SystemClock()),
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_whoever_comes_after_a_fetch_that_failed_waits_for_the_next_one(tmp_path: Path, pack: packs.Pack) -> None:
    target = Gated()
    subject = shelf(tmp_path, pack, target)
    found: dict[str, str] = {}

    def fetch(who: str) -> None:
        try:
            found[who] = Path(subject.fetch(pack)).read_bytes().hex()
        except RecallFailed:
            found[who] = "failed"

    def waiting(count: int) -> bool:
        turn = subject._fetching.get(pack.number)
        return turn is not None and turn.users == count

    threads = {who: threading.Thread(target=fetch, args=(who,)) for who in ("first", "second", "third")}
    threads["first"].start()
    until(lambda: target.calls == 1)
    threads["second"].start()
    until(lambda: waiting(2))
    target.say(0, well=False)
    until(lambda: target.calls == 2)
    threads["first"].join()
    threads["third"].start()
    until(lambda: waiting(2))
    assert target.calls == 2, "two write the same file at once"
    target.say(1, well=True)
    for thread in threads.values():
        thread.join()
    assert found == {"first": "failed", "second": DATA.hex(), "third": DATA.hex()}
    assert target.calls == 2
    assert subject._fetching == {}
    assert os.listdir(tmp_path / "cache") == ["1"]


def test_a_pack_is_not_fetched_where_there_is_no_room(tmp_path: Path, pack: packs.Pack) -> None:
    @contextlib.contextmanager
    def full(_: int) -> Iterator[None]:
        raise NoSpace(why="the local disk is above its mark")
        yield

    target = Gated()
    subject = shelf(tmp_path, pack, target)
    subject._spare_room = full
    with pytest.raises(NoSpace):
        subject.fetch(pack)
    assert target.calls == 0
    assert subject._fetching == {}


@pytest.mark.parametrize("spoil", [b"", DATA[:-1], DATA[:-1] + b"\0", None])
def test_a_local_file_that_is_not_what_was_recorded_is_told(
    tmp_path: Path, pack: packs.Pack, spoil: bytes | None
) -> None:
    subject = shelf(tmp_path, pack, Gated())
    path = tmp_path / f"{pack.id.hex()}.pack"
    path.write_bytes(DATA)
    assert subject.is_whole(pack)
    assert list(subject.local_packs()) == [pack.number]
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil)
    assert not subject.is_whole(pack)


# -- budgets ---------------------------------------------------------------------------------------------------


def holding(pack: packs.Pack, name: str = "t") -> MemoryTarget:
    target = MemoryTarget(TargetName(name))
    target.put(pack_object_name(pack.id), BytesBody(DATA))
    return target


def limited(**limits: int) -> Repository:
    return Repository(RepositoryId(2), "r", **limits)  # type: ignore[arg-type] # its limits alone


def test_what_is_read_from_a_target_is_charged_and_what_is_here_is_not(tmp_path: Path, pack: packs.Pack) -> None:
    subject = shelf(tmp_path, pack, holding(pack), rules=limited(recall_bytes_per_day=6_000))
    assert subject.read(pack, Span(10, 500)) == DATA[10:510]
    assert subject.budgets.used(pack.repository) == Used(500, 1)
    subject.fetch(pack)
    assert subject.budgets.used(pack.repository) == Used(5_500, 2)
    subject.fetch(pack)
    assert subject.read(pack, Span(0, 5_000)) == DATA
    assert subject.budgets.used(pack.repository) == Used(5_500, 2)


def test_past_the_budget_no_target_is_asked(tmp_path: Path, pack: packs.Pack) -> None:
    target = FaultyTarget(holding(pack), SystemClock())
    subject = shelf(tmp_path, pack, target, rules=limited(recall_bytes_per_day=4_999))  # type: ignore[arg-type] # a target
    with pytest.raises(RecallBudgetSpent, match="4999 bytes a day; 0 are used and 5000 more"):
        subject.fetch(pack)
    assert target.calls == []


def test_bytes_that_a_dead_target_did_not_send_are_given_back(tmp_path: Path, pack: packs.Pack) -> None:
    target = FaultyTarget(holding(pack), SystemClock())
    target.script(Fault(operation="get", status=503))
    subject = shelf(tmp_path, pack, target, rules=limited(recall_bytes_per_day=9_000))  # type: ignore[arg-type] # a target
    with pytest.raises(RecallFailed):
        subject.fetch(pack)
    assert subject.budgets.used(pack.repository) == Used(0, 1)
    subject.fetch(pack)


def test_what_nobody_asked_for_yet_takes_no_more_than_half_of_a_budget(tmp_path: Path, pack: packs.Pack) -> None:
    assert shelf(tmp_path, pack, holding(pack), rules=limited(recall_bytes_per_day=10_000)).may_fetch(pack)
    assert not shelf(tmp_path, pack, holding(pack), rules=limited(recall_bytes_per_day=9_999)).may_fetch(pack)
    assert not shelf(tmp_path, pack, holding(pack), rules=limited(recall_requests_per_day=1)).may_fetch(pack)


def test_our_own_ends_are_not_charged(tmp_path: Path, pack: packs.Pack) -> None:
    """A pack that goes from one target to another is not recalled by anybody."""
    subject = shelf(tmp_path, pack, holding(pack), rules=limited(recall_bytes_per_day=1))
    with subject.body(pack, besides=2) as body:
        assert body.open().read() == DATA
    assert subject.budgets.used(pack.repository) == Used()


# -- archive classes -------------------------------------------------------------------------------------------


class Glacier(MemoryTarget):
    """Counts what it is asked."""

    def __init__(self, pack: packs.Pack, name: str = "cold") -> None:
        super().__init__(TargetName(name))
        self.gets = self.asks = 0
        self.put(pack_object_name(pack.id), BytesBody(DATA))
        self.archive(pack_object_name(pack.id))

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        self.gets += 1
        return super().get(name, span)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        self.asks += 1
        return super().rehydrate(name)


def test_an_archived_pack_is_asked_back_once_and_answered_at_once(tmp_path: Path, pack: packs.Pack) -> None:
    target, clock = Glacier(pack), HandClock()
    subject = shelf(tmp_path, pack, target, clock=clock)
    for _ in range(50):
        with pytest.raises(Rehydrating, match="asked back at 2023-11-14 22:13 UTC and is expected by 2023-11-14 23:13"):
            subject.read(pack, Span(0, 100))
        with pytest.raises(Rehydrating):
            subject.fetch(pack)
    assert (target.gets, target.asks) == (1, 1)
    clock.sleep(LOOK_SECONDS)
    with pytest.raises(Rehydrating, match="asked back at 2023-11-14 22:13"):
        subject.read(pack, Span(0, 100))
    assert (target.gets, target.asks) == (2, 2)


def test_asking_back_is_within_the_budget(tmp_path: Path, pack: packs.Pack) -> None:
    """Whoever opens a million archived stubs must not bring a whole archive out of the cold."""
    target, clock = Glacier(pack), HandClock()
    poor = shelf(tmp_path, pack, target, clock=clock, rules=limited(recall_bytes_per_day=4_999))
    with pytest.raises(RecallBudgetSpent):
        poor.read(pack, Span(0, 100))
    assert target.asks == 0
    subject = shelf(tmp_path, pack, target, clock=clock, rules=limited(recall_bytes_per_day=5_100))
    for _ in range(3):
        with pytest.raises(Rehydrating):
            subject.read(pack, Span(0, 100))
        clock.sleep(LOOK_SECONDS)
    assert target.asks == 3
    assert subject.budgets.used(pack.repository).size_bytes == 5_000
    target.thaw(pack_object_name(pack.id))
    assert subject.read(pack, Span(0, 100)) == DATA[:100]


def test_many_readers_at_once_ask_back_once(tmp_path: Path, pack: packs.Pack) -> None:
    class Slow(Glacier):
        def rehydrate(self, name: ObjectName) -> Rehydration:
            time.sleep(0.2)
            return super().rehydrate(name)

    target = Slow(pack)
    subject = shelf(tmp_path, pack, target)
    refused = []

    def read() -> None:
        try:
            subject.read(pack, Span(0, 100))
        except Rehydrating as problem:
            refused.append(problem)

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 20
    assert target.asks == 1


def test_when_it_is_back_it_is_read_and_forgotten(tmp_path: Path, pack: packs.Pack) -> None:
    target, clock = Glacier(pack), HandClock()
    subject = shelf(tmp_path, pack, target, clock=clock)
    with pytest.raises(Rehydrating):
        subject.fetch(pack)
    assert subject._thaws.of(pack.number) is not None
    target.thaw(pack_object_name(pack.id))
    clock.sleep(LOOK_SECONDS)
    assert Path(subject.fetch(pack)).read_bytes() == DATA
    assert subject._thaws.of(pack.number) is None
    assert Thaws(subject._store, clock).of(pack.number) is None


def test_a_restart_remembers_since_when(tmp_path: Path, pack: packs.Pack) -> None:
    target, clock = Glacier(pack), HandClock()
    subject = shelf(tmp_path, pack, target, clock=clock)
    with pytest.raises(Rehydrating):
        subject.fetch(pack)
    before = subject._thaws.of(pack.number)
    clock.sleep(500)
    subject._thaws = Thaws(subject._store, clock)
    assert subject._thaws.of(pack.number) == before
    with pytest.raises(Rehydrating, match="asked back at 2023-11-14 22:13"):
        subject.fetch(pack)
    assert subject._thaws.of(pack.number) == before


def test_another_target_that_has_it_at_hand_serves_and_nothing_is_asked_back(tmp_path: Path, pack: packs.Pack) -> None:
    cold = Glacier(pack)
    subject = shelf(tmp_path, pack, cold, holding(pack, "warm"))
    assert subject.read(pack, Span(0, 100)) == DATA[:100]
    assert cold.asks == 0


def test_of_two_archived_copies_one_is_asked_back(tmp_path: Path, pack: packs.Pack) -> None:
    one, two = Glacier(pack, "one"), Glacier(pack, "two")
    subject = shelf(tmp_path, pack, one, two, clock=HandClock())
    for _ in range(3):
        with pytest.raises(Rehydrating):
            subject.read(pack, Span(0, 100))
    assert (one.asks, two.asks) == (1, 0)


def test_our_own_ends_ask_nothing_back(tmp_path: Path, pack: packs.Pack) -> None:
    """Filling a new target must not bring a whole archive out of the cold."""
    target = Glacier(pack)
    subject = shelf(tmp_path, pack, target)
    with pytest.raises(RecallFailed) as caught, subject.body(pack, besides=2):
        pass
    assert not isinstance(caught.value, Rehydrating)
    assert target.asks == 0
