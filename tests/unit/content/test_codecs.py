"""A piece comes back bit for bit or not at all, however it was stored and whatever was done to it."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest
import zstandard

from tests import studies
from vnafs.content import codecs
from vnafs.content.splitters import split
from vnafs.domain import errors
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind

CT = studies.ct_pixels(1, 1)
KINDS = list(PieceKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 100, 4095, 8192, 8193, 65_535, 65_537, 300_001])
def test_any_piece_comes_back_bit_for_bit(kind, size):
    random_ = random.Random(size)
    for raw in (random_.randbytes(size), bytes(size), CT[:size], (b"abc" * size)[:size]):
        encoded = codecs.encode(raw, kind)
        assert len(encoded.data) <= len(raw)
        assert codecs.decode(encoded.data, encoded.codec, len(raw)) == raw


def test_samples_of_sixteen_bits_are_shuffled_and_get_smaller_for_it():
    encoded = codecs.encode(CT, PieceKind.PIXELS)
    assert encoded.codec is Codec.SHUFFLED_ZSTD
    assert len(encoded.data) < 0.9 * len(zstandard.ZstdCompressor(level=codecs.LEVEL).compress(CT))


def test_text_is_compressed_plainly():
    assert codecs.encode(studies.a_pdf(pages=60), PieceKind.BYTES).codec is Codec.ZSTD


def test_what_is_compressed_already_is_stored_as_it_is():
    assert codecs.encode(studies.a_jpeg(), PieceKind.BYTES).codec is Codec.NONE
    assert codecs.encode(studies.an_mp4(), PieceKind.CHUNK).codec is Codec.NONE
    assert codecs_of_frames("RG1_J2KR.dcm") == {Codec.NONE}


def test_run_length_encoded_frames_still_shrink():
    assert codecs_of_frames("OBXXXX1A_rle_2frame.dcm") == {Codec.ZSTD}


def codecs_of_frames(name: str) -> set[Codec]:
    data = studies.real_dicom_file(name)
    frames = [cut for cut in split(data) if cut.kind is PieceKind.ENCAPSULATED]
    return {codecs.encode(data[f.offset : f.offset + f.length_bytes], f.kind).codec for f in frames}


def test_a_saving_below_three_percent_is_not_taken():
    raw = os.urandom(40_000) + bytes(800)
    assert codecs.encode(raw, PieceKind.BYTES).codec is Codec.NONE


@pytest.mark.parametrize("claim", [1 << 20, 1 << 40, (1 << 62) + 5])
def test_a_bomb_is_refused_before_it_grows(claim):
    honest = zstandard.ZstdCompressor().compress(bytes(70_000))
    # RFC 8878 3.1.1: single-segment frame with an eight-byte content size
    lying = honest[:4] + b"\xe0" + claim.to_bytes(8, "little") + honest[9:]
    with pytest.raises(errors.Damaged):
        codecs.decode(lying, Codec.ZSTD, 70_000)
    with pytest.raises(errors.Damaged):
        codecs.decode(lying, Codec.ZSTD, claim)


def test_a_frame_without_its_size_or_with_bytes_behind_it_is_refused():
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    honest = zstandard.ZstdCompressor().compress(bytes(1000))
    for stored in (nameless, honest + b"\0", honest + honest, honest[:-1], b"", b"\x28\xb5\x2f\xfd"):
        with pytest.raises(errors.Damaged):
            codecs.decode(stored, Codec.ZSTD, 1000)


def test_a_stored_piece_of_another_length_is_refused():
    for codec, stored in ((Codec.NONE, b"12345"), (Codec.ZSTD, zstandard.ZstdCompressor().compress(b"12345"))):
        for length in (0, 4, 6, PIECE_BYTES_MAX + 1):
            with pytest.raises(errors.Damaged):
                codecs.decode(stored, codec, length)


def test_a_piece_longer_than_any_may_be_is_refused():
    with pytest.raises(errors.TooBig):
        codecs.encode(bytes(PIECE_BYTES_MAX + 1), PieceKind.BYTES)


def test_a_codec_that_lies_is_not_trusted(monkeypatch):
    monkeypatch.setattr(codecs, "unshuffled", lambda mixed: bytes(len(mixed)))
    with pytest.raises(errors.Damaged):
        codecs.encode(CT, PieceKind.PIXELS)


def test_threads_encode_side_by_side():
    wanted = codecs.encode(CT, PieceKind.PIXELS)
    wrong: list[int] = []
    until = time.monotonic() + 0.5

    def work(number: int) -> None:
        while time.monotonic() < until:
            if codecs.encode(CT, PieceKind.PIXELS) != wanted:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
