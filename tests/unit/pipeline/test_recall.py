"""Recall's decisions: which stored bytes to ask for together, and which pieces a range needs."""

from __future__ import annotations

import pytest

from vnafs.domain.ids import PackId, Sha256
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind, PieceRef, Recipe
from vnafs.pipeline.recall import _overlapping, _runs

MIB = 1024 * 1024
ONE, TWO = PackId(b"1" * 16), PackId(b"2" * 16)


def ref(offset: int, stored_bytes: int, raw_bytes: int | None = None, pack: PackId = ONE) -> PieceRef:
    size = stored_bytes if raw_bytes is None else raw_bytes
    return PieceRef(pack, offset, stored_bytes, size, Codec.NONE, PieceKind.BYTES, Sha256(bytes(32)))


def runs(*pieces: PieceRef) -> list[int]:
    return [len(run) for run in _runs(pieces)]


def test_neighbours_in_one_pack_are_asked_for_together() -> None:
    assert runs() == []
    assert runs(ref(0, 10), ref(10, 5), ref(15, 1)) == [3]


def test_a_gap_another_pack_or_the_wrong_order_ends_a_run() -> None:
    assert runs(ref(0, 10), ref(11, 5)) == [1, 1]
    assert runs(ref(0, 10), ref(10, 5, pack=TWO), ref(15, 5)) == [1, 1, 1]
    assert runs(ref(10, 5), ref(0, 10)) == [1, 1]


def test_no_run_is_larger_than_a_piece_may_be() -> None:
    size = PIECE_BYTES_MAX // 4
    assert runs(*(ref(n * size, size) for n in range(9))) == [4, 4, 1]


@pytest.mark.parametrize(
    ("start", "stop", "pieces"),
    [
        (0, 1, [0]),
        (9, 10, [0]),
        (9, 11, [0, 1]),
        (10, 30, [1, 2]),
        (0, 30, [0, 1, 2]),
        (29, 30, [2]),
        (30, 30, []),
    ],
)
def test_a_range_needs_the_pieces_that_it_touches(start: int, stop: int, pieces: list[int]) -> None:
    recipe = Recipe(Sha256(bytes(32)), 30, (ref(0, 3, 10), ref(3, 3, 10), ref(6, 3, 10)))
    assert list(_overlapping([0, 10, 20], recipe, start, stop)) == pieces
