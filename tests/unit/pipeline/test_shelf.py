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

from vnafs.domain.clock import Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NoSpace, RecallFailed, TargetUnavailable
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
)
from vnafs.index import copies, packs, targets
from vnafs.index.engines.memory import MemoryEngine
from vnafs.pipeline.shelf import Shelf
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


def shelf(tmp_path: Path, pack: packs.Pack, target: Gated) -> Shelf:
    engine = MemoryEngine()
    with engine.write() as tx:
        targets.put(tx, targets.TargetRow(1, target.name, "memory://t"))
        packs.put(tx, pack)
        copies.put(tx, copies.PackCopy(pack.number, 1, CopyState.VERIFIED))
    return Shelf(
        str(tmp_path),
        str(tmp_path / "cache"),
        engine,
        sources=lambda: {1: target},
        has_room=lambda _: True,
        spare_room=lambda _: contextlib.nullcontext(),
        cache_bytes_max=1 << 20,
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
