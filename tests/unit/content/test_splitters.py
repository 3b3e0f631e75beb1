"""Where contents are cut: exactly, in bounds, and at the same places when the same pixels come again."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import time
import zlib

import pydicom
import pytest
from fastcdc import fastcdc

from tests import studies
from vnafs.content.source import MemorySource
from vnafs.content.splitters import choose, dicom, examine, examine_file, split
from vnafs.content.splitters.chunks import LARGE_FILE
from vnafs.content.splitters.runs import lay
from vnafs.domain import errors
from vnafs.domain.recipes import PIECE_BYTES_MAX, Cut, PieceKind, Raster

NAMES = [os.path.basename(path) for path in studies.real_dicom_files()]
SMALL = ["MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "nested_priv_SQ.dcm", "image_dfl.dcm", "ExplVR_BigEndNoMeta.dcm"]


def assert_exact(cuts: list[Cut], size: int) -> None:
    at = 0
    for cut in cuts:
        assert cut.offset == at
        assert 0 < cut.length_bytes <= PIECE_BYTES_MAX
        at += cut.length_bytes
    assert at == size


def pieces(data: bytes) -> list[tuple[PieceKind, bytes]]:
    cuts = examine(data).cuts
    assert_exact(cuts, len(data))
    return [(cut.kind, data[cut.offset : cut.offset + cut.length_bytes]) for cut in cuts]


def of_kind(data: bytes, kind: PieceKind) -> list[bytes]:
    return [piece for found, piece in pieces(data) if found is kind]


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"OB", b"OW", b"OF", b"OD", b"UN", b"SQ", b"UT"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def a_file(body: bytes, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    meta = element(0x00020010, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2))
    identity = element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.7\0") + element(0x0020000D, b"UI", b"1.2.3\0")
    return bytes(128) + b"DICM" + meta + identity + body


class NarrowSource(MemorySource):
    """As a file, but with the smallest window: every element head lies at some window's edge."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.window_bytes = 40


# -- any input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_cuts_cover_every_real_file_exactly_however_it_is_read(name, tmp_path):
    data = studies.real_dicom_file(name)
    found = examine(data)
    assert_exact(found.cuts, len(data))
    path = tmp_path / "file"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        from_file = examine_file(descriptor, len(data))
        assert (list(from_file.cuts), from_file.facts, from_file.why_not) == (found.cuts, found.facts, found.why_not)
    finally:
        os.close(descriptor)
    narrow = choose._look(NarrowSource(data))
    assert (list(lay(NarrowSource(data), narrow[0])), *narrow[1:]) == (found.cuts, found.facts, found.why_not)


@pytest.mark.parametrize("name", SMALL)
def test_cuts_cover_a_file_truncated_at_any_byte(name):
    data = studies.real_dicom_file(name)[:6000]
    for size in range(len(data)):
        assert_exact(split(data[:size]), size)


def test_cuts_cover_mutilated_files_and_nothing_raises():
    random_ = random.Random(7)
    originals = [bytearray(studies.real_dicom_file(name)) for name in [*SMALL, "emri_small_RLE.dcm", "liver.dcm"]]
    originals.append(bytearray(studies.an_encapsulated_multiframe(4, 3000, 2)))
    lengths = [
        b"\xff\xff\xff\xff",
        b"\xfe\xff\xff\xff",
        b"\0\0\0\0",
        b"\xff\xff\xff\x7f",
        b"\xfe\xff\x00\xe0",
        b"SQ\0\0",
    ]
    for _ in range(6000):
        data = bytearray(random_.choice(originals))
        for _ in range(random_.randrange(1, 6)):
            at = random_.randrange(min(len(data), 8000))
            if random_.random() < 0.5:
                data[at] = random_.randrange(256)
            else:
                data[at : at + 4] = random_.choice(lengths)
        found = examine(data)
        assert_exact(found.cuts, len(data))
        plan, _, _ = choose._look(NarrowSource(bytes(data)))
        assert list(lay(NarrowSource(bytes(data)), plan)) == found.cuts


def test_random_bytes_behind_the_magic_are_covered():
    random_ = random.Random(8)
    for _ in range(500):
        data = bytes(128) + b"DICM" + random_.randbytes(random_.randrange(9000, 12_000))
        assert_exact(split(data), len(data))


def test_an_empty_content_has_no_cuts():
    assert split(b"") == []


def test_a_hundred_thousand_nested_sequences_cost_nothing():
    level = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    began = time.perf_counter()
    found = examine(a_file(level * 100_000))
    assert found.facts is None
    assert found.why_not == "sequences nest too deep"
    assert time.perf_counter() - began < 1


def test_a_lying_number_of_tiny_frames_costs_nothing():
    shape = element(0x00280002, b"US", b"\1\0") + element(0x00280008, b"IS", b"999999999 ")
    shape += (
        element(0x00280010, b"US", b"\1\0")
        + element(0x00280011, b"US", b"\1\0")
        + element(0x00280100, b"US", b"\x08\0")
    )
    began = time.perf_counter()
    data = a_file(shape + element(0x7FE00010, b"OB", bytes(200_000)))
    assert len(of_kind(data, PieceKind.PIXELS)) == 1
    assert time.perf_counter() - began < 1


def test_a_file_that_shrinks_while_it_is_looked_at_is_not_ready(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(studies.real_dicom_file("CT_small.dcm")[:5000])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(errors.NotYet):
            list(examine_file(descriptor, 39_206).cuts)
    finally:
        os.close(descriptor)


# -- DICOM ---------------------------------------------------------------------------------------------------


def test_native_pixel_pieces_are_the_pixel_data_that_pydicom_finds():
    compared = 0
    for name in NAMES:
        data = studies.real_dicom_file(name)
        found = of_kind(data, PieceKind.PIXELS)
        if not found:
            continue
        read = pydicom.dcmread(io.BytesIO(data), force=True)
        if name.endswith(("_big.dcm", "_bigendian.dcm", "_BigEnd.dcm", "_big_endian.dcm")) or "_expb" in name:
            # pydicom gives the samples of big-endian objects as they are; sizes are enough to know the place
            assert len(b"".join(found)) == len(read.PixelData), name
        else:
            assert b"".join(found) == read.PixelData, name
        compared += 1
    assert compared > 60


def test_every_real_object_with_native_or_encapsulated_pixel_data_is_cut_there():
    for name in NAMES:
        data = studies.real_dicom_file(name)
        found = examine(data)
        read = pydicom.dcmread(io.BytesIO(data), force=True)
        if len(data) < choose.SPLIT_BYTES_MIN or found.facts is None or "PixelData" not in read:
            continue
        kind = PieceKind.ENCAPSULATED if read["PixelData"].is_undefined_length else PieceKind.PIXELS
        assert kind in {cut.kind for cut in found.cuts}, name


@pytest.mark.parametrize(
    "change",
    [studies.with_corrected_header, studies.with_other_file_meta, studies.as_implicit],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", ["693_UNCR.dcm", "US1_UNCR.dcm", "eCT_Supplemental.dcm", "OBXXXX1A_2frame.dcm"])
def test_an_object_sent_again_with_another_header_repeats_its_pixel_pieces(name, change):
    data = studies.real_dicom_file(name)
    again = change(data)
    assert again != data
    first = of_kind(data, PieceKind.PIXELS)
    assert first
    assert of_kind(again, PieceKind.PIXELS) == first


def test_a_corrected_header_repeats_the_pieces_of_encapsulated_frames():
    data = studies.real_dicom_file("color3d_jpeg_baseline.dcm")
    again = studies.with_corrected_header(data)
    frames = of_kind(data, PieceKind.ENCAPSULATED)
    assert len(frames) > 30
    assert of_kind(again, PieceKind.ENCAPSULATED) == frames


def test_frames_of_native_pixel_data_are_pieces():
    data = studies.a_native_multiframe(frames=6, rows=256, columns=256)
    assert [len(piece) for piece in of_kind(data, PieceKind.PIXELS)] == [256 * 256 * 2] * 6


def test_tiny_frames_share_pieces_and_borders_stay_between_frames():
    data = studies.a_native_multiframe(frames=50, rows=64, columns=75)
    sizes = [len(piece) for piece in of_kind(data, PieceKind.PIXELS)]
    assert all(size % (64 * 75 * 2) == 0 for size in sizes)
    assert all(size >= dicom.GROUP_BYTES_MIN for size in sizes[:-1])


def rasters_of(data: bytes) -> set[Raster | None]:
    return {cut.raster for cut in split(data) if cut.kind is PieceKind.PIXELS}


def test_pieces_of_pixels_say_how_their_samples_lie():
    assert rasters_of(studies.real_dicom_file("693_UNCR.dcm")) == {Raster(512, 512, 1, 2, True, False, 14)}
    assert rasters_of(studies.real_dicom_file("MR2_UNCR.dcm")) == {Raster(1024, 1024, 1, 2, False, False, 12)}
    assert rasters_of(studies.real_dicom_file("US1_UNCR.dcm")) == {Raster(480, 640, 3, 1, False, False, 8)}
    assert rasters_of(studies.real_dicom_file("color-pl.dcm")) == {Raster(120, 256, 3, 1, False, True, 8)}
    assert rasters_of(studies.a_native_multiframe()) == {Raster(256, 256, 1, 2, False, False, 16)}


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_bigendian.dcm",  # the higher byte first
        "MR_small_padded.dcm",  # more bytes than the header accounts for
        "SC_ybr_full_422_uncompressed.dcm",  # fewer: colour is shared by two pixels
        "SC_rgb_32bit.dcm",
        "liver.dcm",  # one bit a sample
        "RG1_J2KR.dcm",  # encapsulated
    ],
)
def test_unusual_samples_are_only_bytes(name):
    assert rasters_of(studies.real_dicom_file(name)) <= {None}


def test_floats_are_only_bytes_whatever_the_header_says_of_pixels():
    numbers = ((0x00280002, 1), (0x00280010, 64), (0x00280011, 64), (0x00280100, 16))
    head = b"".join(element(tag, b"US", struct.pack("<H", value)) for tag, value in numbers)
    integers = a_file(head + element(0x7FE00010, b"OW", bytes(8192)))
    floats = a_file(head + element(0x7FE00008, b"OF", bytes(8192)))
    assert None not in rasters_of(integers)
    assert rasters_of(floats) == {None}


def test_only_pixels_have_samples():
    for name in NAMES:
        for cut in split(studies.real_dicom_file(name)):
            assert cut.raster is None or cut.kind is PieceKind.PIXELS


@pytest.mark.parametrize("frames", [1, 3])
def test_a_frame_larger_than_a_piece_is_cut_into_even_strips_of_whole_rows(frames):
    rows, columns = 4099, 4000
    frame_bytes, row_bytes = rows * columns * 2, columns * 2
    pixels = element(0x7FE00010, b"OW", b"")[:-4] + struct.pack("<I", frames * frame_bytes)
    head = b"".join(
        element(tag, b"US", struct.pack("<H", value))
        for tag, value in (
            (0x00280002, 1),
            (0x00280010, rows),
            (0x00280011, columns),
            (0x00280100, 16),
            (0x00280101, 12),
            (0x00280103, 0),
        )
    )
    data = a_file(element(0x00280008, b"IS", b"%d " % frames) + head + pixels + bytes(frames * frame_bytes))
    cuts = examine(data).cuts
    assert_exact(cuts, len(data))
    strips = [cut for cut in cuts if cut.kind is PieceKind.PIXELS]
    assert len(strips) == 2 * frames
    start = strips[0].offset
    for cut in strips:
        assert (cut.offset - start) % frame_bytes in (0, 2050 * row_bytes)
        assert cut.length_bytes in (2050 * row_bytes, 2049 * row_bytes)
        assert cut.raster == Raster(rows, columns, 1, 2, False, False, 12)


def test_pixel_data_that_its_header_does_not_account_for_is_one_run():
    data = studies.a_native_multiframe(frames=6)
    lying = data.replace(b"\x28\x00\x08\x00IS\x02\x006 ", b"\x28\x00\x08\x00IS\x02\x007 ")
    assert lying != data
    assert len(of_kind(lying, PieceKind.PIXELS)) == 1


@pytest.mark.parametrize(
    "how",
    [
        {"fragments_per_frame": 1, "table": True},
        {"fragments_per_frame": 1, "table": False},
        {"fragments_per_frame": 3, "table": True},
        {"fragments_per_frame": 1, "table": False, "extended": True},
    ],
    ids=str,
)
def test_encapsulated_frames_are_pieces_wherever_they_can_be_told(how):
    data = studies.an_encapsulated_multiframe(8, 90_000, **how)
    frames = of_kind(data, PieceKind.ENCAPSULATED)
    assert len(frames) == 8
    assert all(piece[:4] == b"\xfe\xff\x00\xe0" for piece in frames)
    assert frames[-1].endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")


def test_frames_that_cannot_be_told_are_cut_at_fragments():
    data = studies.an_encapsulated_multiframe(2, 300_000, 3, table=False)
    assert len(of_kind(data, PieceKind.ENCAPSULATED)) == 6


def test_encapsulated_pixel_data_without_an_end_is_cut_as_far_as_it_goes():
    data = studies.an_encapsulated_multiframe(8, 90_000)
    found = examine(data[:-50_000])
    assert found.why_not == "encapsulated pixel data ends early"
    assert found.facts is not None
    assert len([cut for cut in found.cuts if cut.kind is PieceKind.ENCAPSULATED]) == 8


def test_what_follows_the_pixel_data_is_a_piece_of_its_own():
    data = a_file(element(0x7FE00010, b"OW", bytes(10_000)) + element(0xFFFCFFFC, b"OB", bytes(126)))
    assert [kind for kind, _ in pieces(data)] == [PieceKind.DICOM_HEADER, PieceKind.PIXELS, PieceKind.DICOM_TRAILER]


@pytest.mark.parametrize(("tag", "vr"), [(0x7FE00008, b"OF"), (0x7FE00009, b"OD"), (0x7FE00010, b"OB")])
def test_every_flavour_of_pixel_data_is_found(tag, vr):
    assert of_kind(a_file(element(tag, vr, bytes(20_000))), PieceKind.PIXELS) == [bytes(20_000)]


def test_a_large_private_value_is_a_piece_of_its_own():
    value = random.Random(1).randbytes(100_000)
    data = a_file(element(0x00291010, b"OB", value) + element(0x7FE00010, b"OW", bytes(10_000)))
    assert value in of_kind(data, PieceKind.BYTES)


def test_private_values_of_odd_length_do_not_lose_the_walk():
    odd = element(0x00290010, b"LO", b"ODD") + element(0x00291001, b"UN", b"x" * 77)
    assert of_kind(a_file(odd + element(0x7FE00010, b"OW", bytes(10_000))), PieceKind.PIXELS) == [bytes(10_000)]


def test_pixel_data_inside_a_sequence_is_part_of_the_header():
    item = element(0x7FE00010, b"OW", bytes(300))
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequence = (
        struct.pack("<HH2sHI", 0x0088, 0x0200, b"SQ", 0, 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    data = a_file(sequence + element(0x7FE00010, b"OW", bytes(10_000)))
    assert of_kind(data, PieceKind.PIXELS) == [bytes(10_000)]


def test_an_unknown_sequence_of_undefined_length_is_walked_as_implicit():
    inner = struct.pack("<HHI", 0x0010, 0x0010, 4) + b"A^B "
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0029, 0x1001, b"UN", 0, 0xFFFFFFFF) + items
    data = a_file(unknown + element(0x7FE00010, b"OW", bytes(10_000)))
    assert of_kind(data, PieceKind.PIXELS) == [bytes(10_000)]


def test_a_deflated_object_stays_whole_and_is_still_described():
    body = studies.a_native_multiframe()
    inner = body[body.index(b"\x08\x00\x16\x00UI") :]
    press = zlib.compressobj(wbits=-15)
    head = a_file(b"", "1.2.840.10008.1.2.1.99")
    data = head[: head.index(b"\x08\x00\x16\x00UI")] + press.compress(inner) + press.flush()
    found = examine(data)
    assert found.facts is not None
    assert found.facts.attributes["Rows"] == "256"
    assert {cut.kind for cut in found.cuts} <= {PieceKind.BYTES, PieceKind.CHUNK}


def test_an_object_without_preamble_is_cut_like_one_with_it():
    data = studies.real_dicom_file("693_UNCR.dcm")
    assert of_kind(data[132:], PieceKind.PIXELS) == of_kind(data, PieceKind.PIXELS)


@pytest.mark.parametrize("item", studies.other_files(), ids=lambda item: item.name)
def test_other_files_are_not_taken_for_dicom(item):
    found = examine(item.data)
    assert_exact(found.cuts, len(item.data))
    assert found.facts is None
    assert found.why_not == "not DICOM"


# -- content-defined chunks ----------------------------------------------------------------------------------


def test_an_insertion_into_a_large_file_changes_few_chunks():
    data = random.Random(3).randbytes(40 * 1024 * 1024)
    changed = data[:15_000_000] + b"inserted" + data[15_000_000:]

    def digests(content: bytes) -> dict[bytes, int]:
        cuts = split(content)
        assert_exact(cuts, len(content))
        assert max(cut.length_bytes for cut in cuts) <= LARGE_FILE.bytes_max
        view = memoryview(content)
        return {hashlib.sha256(view[c.offset : c.offset + c.length_bytes]).digest(): c.length_bytes for c in cuts}

    first, second = digests(data), digests(changed)
    new = sum(length for digest, length in second.items() if digest not in first)
    assert new <= 2 * LARGE_FILE.bytes_max


def test_a_file_larger_than_the_window_is_cut_as_in_one_pass(tmp_path):
    data = random.Random(4).randbytes(70 * 1024 * 1024)
    path = tmp_path / "slide"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        in_windows = list(examine_file(descriptor, len(data)).cuts)
    finally:
        os.close(descriptor)
    sizes = LARGE_FILE
    one_pass = [(c.offset, c.length) for c in fastcdc(data, sizes.bytes_min, sizes.bytes_average, sizes.bytes_max)]
    assert [(cut.offset, cut.length_bytes) for cut in in_windows] == one_pass
