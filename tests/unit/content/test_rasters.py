"""Samples come back bit for bit from an image, whatever their geometry is said to be, and damage is only damage."""

from __future__ import annotations

import dataclasses
import random
import resource
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import studies
from vnafs.content import rasters
from vnafs.content.rasters import HEAD, INVERTED, PLANES, ImageFailedError, decode_image, encode_image
from vnafs.content.splitters import split
from vnafs.domain import errors
from vnafs.domain.recipes import Codec, Raster

WAYS = [(Codec.HTJ2K, 0), (Codec.JPEG_XL, 1), (Codec.JPEG_XL, 2), (Codec.JPEG_XL, 3)]
ways = pytest.mark.parametrize(("codec", "effort"), WAYS, ids=str)
GREY = Raster(rows=60, columns=50, samples=1, sample_bytes=2, signed=True, planes=False, bits_stored=12)


def a_picture(raster: Raster, frames: int = 1, seed: int = 1) -> bytes:
    """Smooth samples with noise, small negative ones among them."""
    noise = np.random.default_rng(seed).integers(-20, 20, (frames * raster.rows, raster.columns * raster.samples))
    return (noise + np.arange(raster.columns * raster.samples)).astype(f"<i{raster.sample_bytes}").tobytes()


def guarded(stored: bytes) -> bytes:
    """With a right guard, as whoever means harm would write it."""
    return xxhash.xxh3_64_intdigest(stored[8:]).to_bytes(8, "little") + stored[8:]


rasters_of_any_kind = st.builds(
    Raster,
    rows=st.integers(0, 70_000),
    columns=st.integers(0, 70_000) | st.integers(1, 40),
    samples=st.integers(0, 4) | st.sampled_from([1, 3]),
    sample_bytes=st.integers(0, 4) | st.sampled_from([1, 2]),
    signed=st.booleans(),
    planes=st.booleans(),
    bits_stored=st.integers(0, 65_535),
)


@settings(max_examples=150, deadline=None)
@given(raster=rasters_of_any_kind, size=st.integers(0, 30_000), way=st.sampled_from(WAYS), seed=st.integers(0, 9))
def test_any_bytes_under_any_geometry_come_back_or_are_left_to_other_codecs(raster, size, way, seed):
    raw = random.Random(seed).randbytes(size) if seed % 2 else bytes(n * seed % 251 for n in range(size))
    try:
        stored = encode_image(raw, raster, *way)
    except ImageFailedError:
        assert not rasters.fits(raster, size)
    else:
        assert decode_image(stored, way[0], size) == raw


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    samples=st.sampled_from([1, 3]),
    sample_bytes=st.sampled_from([1, 2]),
    signed=st.booleans(),
    planes=st.booleans(),
    padding=st.integers(0, 1),
    way=st.sampled_from(WAYS),
)
def test_any_usual_geometry_makes_an_image(rows, columns, samples, sample_bytes, signed, planes, padding, way):
    raster = Raster(rows, columns, samples, sample_bytes, signed, planes and samples == 3, 8 * sample_bytes)
    raw = a_picture(raster)
    if padding and raster.row_bytes > 1:
        raw += b"\x7f"
    stored = encode_image(raw, raster, *way)
    assert decode_image(stored, way[0], len(raw)) == raw


@ways
def test_extremes_of_samples_come_back(codec, effort):
    raster = dataclasses.replace(GREY, rows=32, columns=32)
    for values in ([0, 0xFFFF], [0x7FFF, 0x8000], [0x8000], [0xFFFF, 0, 0x8000, 1]):
        raw = np.resize(np.array(values, "<u2"), 32 * 32).tobytes()
        assert decode_image(encode_image(raw, raster, codec, effort), codec, len(raw)) == raw


@ways
def test_signed_samples_are_inverted_so_that_they_are_smooth(codec, effort):
    raw = a_picture(GREY)
    signed = encode_image(raw, GREY, codec, effort)
    unsigned = encode_image(raw, dataclasses.replace(GREY, signed=False), codec, effort)
    assert HEAD.unpack_from(signed)[5] == INVERTED
    assert HEAD.unpack_from(unsigned)[5] == 0
    assert len(signed) < 0.9 * len(unsigned)
    assert decode_image(unsigned, codec, len(raw)) == raw


@ways
def test_planes_are_stored_as_the_colours_of_pixels(codec, effort):
    data = studies.a_native_colour_image(planes=True)
    (cut,) = (cut for cut in split(data) if cut.raster is not None)
    raw = data[cut.offset : cut.offset + cut.length_bytes]
    assert cut.raster
    stored = encode_image(raw, cut.raster, codec, effort)
    assert HEAD.unpack_from(stored)[5] == PLANES
    assert decode_image(stored, codec, len(raw)) == raw
    as_grey = dataclasses.replace(cut.raster, samples=1, planes=False)
    assert len(stored) < len(encode_image(raw, as_grey, codec, effort))


def test_planes_of_part_of_a_frame_are_left_to_other_codecs():
    raster = Raster(rows=96, columns=160, samples=3, sample_bytes=1, signed=False, planes=True, bits_stored=8)
    assert rasters.fits(raster, 96 * 160 * 3)
    assert not rasters.fits(raster, 48 * 160 * 3)
    assert not rasters.fits(raster, 2 * 96 * 160 * 3)


def test_colours_of_pixels_are_transformed():
    data = studies.real_dicom_file("US1_UNCR.dcm")
    (cut,) = (cut for cut in split(data) if cut.raster is not None)
    raw = data[cut.offset : cut.offset + cut.length_bytes]
    for codec, ratio in ((Codec.HTJ2K, 5), (Codec.JPEG_XL, 8)):
        assert len(raw) > ratio * len(encode_image(raw, cut.raster, codec, 1))


def test_more_than_a_byte_of_padding_is_no_image():
    whole = GREY.rows * GREY.row_bytes
    assert rasters.fits(GREY, whole + 1)
    assert not rasters.fits(GREY, whole + 2)


@ways
def test_frames_in_one_piece_are_one_image_below_each_other(codec, effort):
    raw = a_picture(GREY, frames=7)
    stored = encode_image(raw, GREY, codec, effort)
    assert HEAD.unpack_from(stored)[1:3] == (7 * GREY.rows, GREY.columns)
    assert decode_image(stored, codec, len(raw)) == raw


@ways
def test_no_changed_byte_and_no_cut_reaches_a_decoder(codec, effort, monkeypatch):
    raw = a_picture(GREY)
    stored = encode_image(raw, GREY, codec, effort)

    def never(*_: object) -> None:
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr(rasters, "_decoded", never)
    for at in range(0, len(stored), 1 + len(stored) // 400):
        rotten = bytearray(stored)
        rotten[at] ^= 1 << at % 8
        with pytest.raises(errors.Damaged):
            decode_image(bytes(rotten), codec, len(raw))
        with pytest.raises(errors.Damaged):
            decode_image(stored[:at], codec, len(raw))


@ways
def test_an_image_of_another_size_than_the_recipe_promises_is_refused(codec, effort, monkeypatch):
    raw = a_picture(GREY)
    stored = encode_image(raw, GREY, codec, effort)
    monkeypatch.setattr(rasters, "_decoded", lambda *_: pytest.fail("a decoder was asked"))
    for raw_bytes in (0, 1, len(raw) - 1, len(raw) + 1, 2 * len(raw), 1 << 24):
        with pytest.raises(errors.Damaged):
            decode_image(stored, codec, raw_bytes)


@pytest.mark.parametrize(("codec", "effort"), [(Codec.HTJ2K, 0), (Codec.JPEG_XL, 1)])
def test_a_codestream_that_lies_about_its_size_is_refused_before_it_takes_memory(codec, effort, monkeypatch):
    raw, huge = a_picture(GREY), dataclasses.replace(GREY, rows=600, columns=500)
    small = encode_image(raw, GREY, codec, effort)
    large = encode_image(a_picture(huge), huge, codec, effort)
    monkeypatch.setattr(rasters, "_decoded", lambda *_: pytest.fail("a decoder was asked"))
    lying = guarded(small[: HEAD.size] + large[HEAD.size :])
    with pytest.raises(errors.Damaged):
        decode_image(lying, codec, len(raw))


def test_heads_that_nobody_writes_are_refused():
    raw = a_picture(GREY)
    stored = encode_image(raw, GREY, Codec.HTJ2K, 0)
    for field, value in ((1, 0), (2, 0), (3, 0), (3, 2), (4, 0), (4, 4), (5, 2), (5, 4), (5, 128), (6, 255)):
        head = list(HEAD.unpack_from(stored))
        head[field] = value
        with pytest.raises(errors.Damaged):
            decode_image(guarded(HEAD.pack(*head) + stored[HEAD.size :]), Codec.HTJ2K, len(raw))


@ways
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library prints what it catches
def test_a_hostile_codestream_is_damage_or_other_samples_and_takes_little(codec, effort):
    raw = a_picture(GREY)
    stored = encode_image(raw, GREY, codec, effort)
    random_ = random.Random(effort)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        hostile = bytearray(stored)
        for _ in range(random_.choice([1, 2, 20])):
            hostile[random_.randrange(HEAD.size, len(hostile))] = random_.randrange(256)
        if random_.random() < 0.3:
            del hostile[random_.randrange(HEAD.size + 1, len(hostile)) :]
        try:
            assert len(decode_image(guarded(bytes(hostile)), codec, len(raw))) == len(raw)
        except errors.Damaged:
            continue
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_every_real_object_with_told_samples_comes_back():
    seen = set()
    for path in studies.real_dicom_files():
        with open(path, "rb") as file:
            data = file.read()
        for cut in split(data):
            if cut.raster is None or not rasters.fits(cut.raster, cut.length_bytes):
                continue
            raw = data[cut.offset : cut.offset + cut.length_bytes]
            seen.add((cut.raster.samples, cut.raster.sample_bytes, cut.raster.signed))
            for codec, effort in WAYS[:2]:
                assert decode_image(encode_image(raw, cut.raster, codec, effort), codec, len(raw)) == raw, path
    assert {(1, 1, False), (1, 2, False), (1, 2, True), (3, 1, False), (3, 2, False)} <= seen


def test_without_the_library_nothing_is_encoded_and_what_is_stored_is_no_damage(monkeypatch):
    raw = a_picture(GREY)
    stored = encode_image(raw, GREY, Codec.HTJ2K, 0)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert not rasters.load()
    with pytest.raises(ImageFailedError):
        encode_image(raw, GREY, Codec.HTJ2K, 0)
    with pytest.raises(errors.RecallFailed):
        decode_image(stored, Codec.HTJ2K, len(raw))
