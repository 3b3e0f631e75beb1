"""How many packs keep files from having their copies: from counts, and right where counts alone would not be."""

from __future__ import annotations

import itertools
import random

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.ids import ContentNumber, PackNumber, RepositoryId, Sha256, Span, TargetName, new_pack_id
from vnafs.index import contents, copies, counts, packs, recount, targets
from vnafs.index.engine import Reader
from vnafs.index.engines.memory import MemoryEngine
from vnafs.pipeline.held import lacking

TARGETS = (1, 2, 3)


def archive(held: dict[int, set[int]], leans: dict[int, tuple[int, ...]]) -> MemoryEngine:
    """Packs by number with the targets that hold them, and the packs each leans on."""
    engine = MemoryEngine()
    with engine.write() as tx:
        for target in TARGETS:
            targets.put(tx, targets.TargetRow(target, TargetName(f"t{target}"), f"memory://{target}"))
        for number, on in held.items():
            leaning = tuple(PackNumber(other) for other in leans.get(number, ()))
            home, content = PackNumber(number), ContentNumber(number)
            packs.put(
                tx,
                packs.Pack(
                    home,
                    new_pack_id(),
                    Sha256(bytes(32)),
                    10,
                    RepositoryId(2),
                    0,
                    Instant(1),
                    content,
                    1,
                    True,
                    leaning,
                ),
            )
            digest = Sha256(number.to_bytes(32, "little"))
            contents.add(tx, contents.Content(content, digest, 5, RepositoryId(2), home, Span(0, 1), leaning))
            for target in TARGETS:
                if target in on:
                    copies.put(tx, copies.PackCopy(home, target, CopyState.VERIFIED))
                else:
                    copies.enqueue(tx, copies.Transfer(target, Instant(number), home, 0))
    return engine


def walked(reader: Reader, wanted: int) -> set[PackNumber]:
    """The definition: every pack, with those it leans on."""
    return {
        pack.number
        for pack in packs.every(reader)
        if len(copies.verified_on(reader, (pack.number, *pack.leans_on))) < wanted
    }


def test_packs_that_each_have_a_copy_somewhere_else_are_no_copy_of_what_needs_both() -> None:
    with archive({1: {1}, 2: {2}}, {2: (1,)}).read() as reader:
        assert lacking(reader, 1).rows == 1
    with archive({1: {1}, 2: {2}}, {}).read() as reader:
        assert lacking(reader, 1) == counts.NONE


def test_more_copies_than_targets_are_lacked_by_all() -> None:
    with archive({1: {1, 2, 3}}, {}).read() as reader:
        assert lacking(reader, 3) == counts.NONE
        assert lacking(reader, 4) == counts.Count(1, 10)


@pytest.mark.parametrize("seed", range(60))
def test_none_is_lacking_exactly_when_a_walk_over_all_finds_none(seed: int) -> None:
    dice = random.Random(seed)
    often = dice.choice((0.5, 0.9, 0.98))
    held = {number: {t for t in TARGETS if dice.random() < often} for number in range(1, 12)}
    leans = {n: tuple(m for m in range(1, n) if dice.random() < 0.2) for n in held}
    with archive(held, leans).read() as reader:
        assert counts.every(reader) == recount.found(reader)
        for wanted in itertools.chain((0,), TARGETS, (4,)):
            assert bool(lacking(reader, wanted).rows) == bool(walked(reader, wanted)), (held, leans)
