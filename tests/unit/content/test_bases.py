"""Bases: which headers lean on which, and that what leans comes back."""

from __future__ import annotations

import contextlib
import random

import pytest

from tests import studies
from vnafs.content import bases, codecs
from vnafs.content.bases import BASES_MAX, LEANED_MAX, RAW_BYTES_MAX, Base, Bases
from vnafs.content.splitters import examine
from vnafs.domain import errors
from vnafs.domain.ids import PackId, Sha256
from vnafs.domain.recipes import Codec, PieceKind, PieceRef

PACK, NOBODY = PackId(bytes(16)), Sha256(bytes(32))


class Pack:
    """Headers one after the other, as a pack has them; nothing else."""

    def __init__(self) -> None:
        self.bases = Bases()
        self.data = bytes(256)
        self.refs: list[PieceRef] = []

    def append(self, raw: bytes) -> PieceRef:
        encoded = self.bases.lean(raw) or codecs.encode(raw, PieceKind.DICOM_HEADER)
        ref = PieceRef(PACK, len(self.data), len(encoded.data), len(raw), encoded.codec, PieceKind.DICOM_HEADER, NOBODY)
        self.data += encoded.data
        self.bases.add(ref, raw)
        self.refs.append(ref)
        return ref

    def stored(self, ref: PieceRef | Base) -> bytes:
        return self.data[ref.offset : ref.offset + ref.stored_bytes]

    def base(self, ref: PieceRef) -> Base:
        return bases.base_of(self.stored(ref), ref.offset)

    def read(self, ref: PieceRef) -> bytes:
        if ref.codec is not Codec.ZSTD_AFTER_BASE:
            return codecs.decode(self.stored(ref), ref.codec, ref.raw_bytes)
        base = self.base(ref)
        return bases.decode_leaning(self.stored(ref), ref.raw_bytes, bases.decode_base(base, self.stored(base)))


def headers(files: list[bytes]) -> list[bytes]:
    found = []
    for data in files:
        cut = next(cut for cut in examine(data).cuts if cut.kind is PieceKind.DICOM_HEADER)
        found.append(data[cut.offset : cut.offset + cut.length_bytes])
    return found


def a_series(seed: int, count: int, size: int = 3000, same: float = 1.0) -> list[bytes]:
    """Texts that differ in a number each; *same* is how much of them other series have too."""
    common, own = random.Random(0).randbytes(size), random.Random(seed).randbytes(size)
    start = int(size * same)
    return [common[:start] + own[start:] + b"%04d" % number for number in range(count)]


def leaning(pack: Pack) -> list[bool]:
    return [ref.codec is Codec.ZSTD_AFTER_BASE for ref in pack.refs]


def test_the_headers_of_a_real_study_take_a_fifth_and_come_back() -> None:
    raws = headers([studies.with_corrected_header(item.data) for item in studies.real_ct_study()[:40]])
    pack = Pack()
    refs = [pack.append(raw) for raw in raws]
    alone = sum(len(codecs.encode(raw, PieceKind.DICOM_HEADER).data) for raw in raws)
    assert sum(ref.stored_bytes for ref in refs) < alone / 5
    assert sum(ref.codec is Codec.ZSTD for ref in refs) < 5
    assert [pack.read(ref) for ref in refs] == raws


def test_a_base_leans_on_nothing() -> None:
    pack = Pack()
    for raw in headers([item.data for item in studies.real_ct_study()[:20]]) + a_series(1, 5) + a_series(2, 5):
        pack.append(raw)
    alone = {ref.offset for ref in pack.refs if ref.codec is Codec.ZSTD}
    bases_used = {pack.base(ref).offset for ref in pack.refs if ref.codec is Codec.ZSTD_AFTER_BASE}
    assert bases_used
    assert bases_used <= alone


def text(raw: bytes) -> bytes:
    """Compressible, so that it may be a base."""
    return raw.hex().encode()


def test_series_that_arrive_together_lean_each_on_its_own() -> None:
    pack = Pack()
    series = [[text(raw) for raw in a_series(seed, 6, same=0.0)] for seed in range(BASES_MAX)]
    for together in zip(*series, strict=True):
        for raw in together:
            pack.append(raw)
    assert leaning(pack) == [False] * BASES_MAX + [True] * (5 * BASES_MAX)
    assert len({pack.base(ref) for ref in pack.refs[BASES_MAX:]}) == BASES_MAX


def test_a_series_that_is_half_like_another_soon_has_a_base_of_its_own() -> None:
    pack = Pack()
    for raw in [text(raw) for raw in a_series(1, 3, same=0.7) + a_series(2, 6, same=0.7)]:
        pack.append(raw)
    assert leaning(pack) == [False, True, True, True, False, True, True, True, True]
    assert pack.base(pack.refs[-1]).offset == pack.refs[4].offset


def test_headers_that_differ_in_much_each_lean_all_the_same() -> None:
    random_ = random.Random(3)
    common = random_.randbytes(3000)
    pack = Pack()
    for _ in range(3 * LEANED_MAX):
        pack.append(text(common + random_.randbytes(700)))
    assert leaning(pack) == [False] + [True] * (3 * LEANED_MAX - 1)


def test_what_is_remembered_is_bounded() -> None:
    pack = Pack()
    for seed in range(3 * BASES_MAX):
        for raw in a_series(seed, 2, same=0.0):
            pack.append(text(raw))
    assert len(pack.bases._bases) == BASES_MAX
    assert pack.append(text(a_series(0, 1, same=0.0)[0])).codec is Codec.ZSTD, "its base was forgotten"
    large = b"header " * (RAW_BYTES_MAX // 7 + 1)
    assert [pack.append(large).codec, pack.append(large).codec] == [Codec.ZSTD, Codec.ZSTD]
    assert max(len(raw) for raw in pack.bases._bases.values()) <= RAW_BYTES_MAX


def test_pieces_that_are_no_headers_or_not_compressed_are_no_bases() -> None:
    some = Bases()
    raw = text(bytes(3000))
    alone = codecs.encode(raw, PieceKind.DICOM_HEADER)
    for codec, kind in ((Codec.NONE, PieceKind.DICOM_HEADER), (Codec.ZSTD, PieceKind.BYTES)):
        some.add(PieceRef(PACK, 256, len(alone.data), len(raw), codec, kind, NOBODY), raw)
    assert some.lean(raw + b"1") is None


def test_another_base_is_damage_or_other_bytes_but_never_a_crash() -> None:
    pack = Pack()
    first, second = (text(raw) for raw in a_series(1, 2))
    pack.append(first)
    ref = pack.append(second)
    for wrong in (b"", first[:-1], first[1:], bytes(len(first))):
        with contextlib.suppress(errors.Damaged):
            assert bases.decode_leaning(pack.stored(ref), len(second), wrong) != second
    with pytest.raises(errors.Damaged):
        bases.decode_leaning(pack.stored(ref), len(second) - 1, first)
