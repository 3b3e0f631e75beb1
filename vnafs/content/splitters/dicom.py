"""Cuts a DICOM object where re-exports repeat it: header | pixel data, frame by frame | what follows.

Cuts depend on what the walk found, never on a guess: where frames cannot be told, fragments are cut; where
those cannot be told either, the pixel data is one run. So a corrected header changes the header's piece and no
other, in whatever transfer syntax of the same pixels it is written. Pure; any thread.

Frames smaller than GROUP_BYTES_MIN share a piece, in order from the first, so that a thousand tiny frames are
not a thousand rows. A frame over PIECE_BYTES_MAX is cut into even strips of whole rows; other runs over it are cut at
multiples of it from their own start.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable

from vnafs.content import elements
from vnafs.content.elements import PIXEL_DATA, Fragments, Pixels, Walked
from vnafs.content.source import Source
from vnafs.content.splitters.chunks import METADATA, METADATA_BYTES_MIN
from vnafs.content.splitters.runs import Run
from vnafs.domain.recipes import PIECE_BYTES_MAX, PieceKind, Raster

GROUP_BYTES_MIN = 64 * 1024
"""A piece's row and recipe entry cost about 150 bytes: 0.25 % of this."""
TABLE_BYTES_MIN = 4096
"""A smaller Basic Offset Table stays with the header."""
FRAMES_MAX = 1_000_000

NUMBER_OF_FRAMES = 0x00280008
ROWS = 0x00280010
COLUMNS = 0x00280011
SAMPLES_PER_PIXEL = 0x00280002
BITS_ALLOCATED = 0x00280100
BITS_STORED = 0x00280101
PIXEL_REPRESENTATION = 0x00280103
PLANAR_CONFIGURATION = 0x00280006
NEEDED = frozenset(
    {
        NUMBER_OF_FRAMES,
        ROWS,
        COLUMNS,
        SAMPLES_PER_PIXEL,
        BITS_ALLOCATED,
        BITS_STORED,
        PIXEL_REPRESENTATION,
        PLANAR_CONFIGURATION,
    }
)
"""Tags the walk must collect for frames and their samples to be told."""


def plan(source: Source, walked: Walked) -> tuple[list[Run], str]:
    """Runs that cover *source*, and why some of it is not cut as its header says (empty when all is)."""
    runs: list[Run] = []
    at = 0

    def metadata(stop: int, kind: PieceKind) -> None:
        nonlocal at
        if stop > at:
            runs.append(Run(stop, kind, METADATA if stop - at > METADATA_BYTES_MIN else None))
            at = stop

    for offset, length_bytes in walked.large:
        metadata(offset, PieceKind.DICOM_HEADER)
        metadata(offset + length_bytes, PieceKind.BYTES)
    pixels, why = walked.pixels, walked.short
    if pixels is not None and pixels.encapsulated:
        found = elements.fragments(source, pixels, FRAMES_MAX)
        why = found.short or why
        first = found.starts[0] if found.starts else pixels.offset
        if first - pixels.offset >= TABLE_BYTES_MIN:
            metadata(pixels.offset, PieceKind.DICOM_HEADER)
            metadata(first, PieceKind.BYTES)
        metadata(first, PieceKind.DICOM_HEADER)
        starts = _frame_starts(source, walked, found)
        runs.append(Run(found.stop, PieceKind.ENCAPSULATED, None, starts, GROUP_BYTES_MIN))
        at = found.stop
    elif pixels is not None:
        metadata(pixels.offset, PieceKind.DICOM_HEADER)
        at = pixels.offset + pixels.length_bytes
        frame_bytes = native_frame_bytes(walked.values, pixels.length_bytes, little=walked.little)
        raster = raster_of(walked, pixels) if frame_bytes else None
        groups = _native_starts(pixels, frame_bytes, raster) if frame_bytes else ()
        runs.append(Run(at, PieceKind.PIXELS, None, groups, GROUP_BYTES_MIN, raster))
    metadata(source.size_bytes, PieceKind.DICOM_HEADER if pixels is None else PieceKind.DICOM_TRAILER)
    return runs, why


def _native_starts(pixels: Pixels, frame_bytes: int, raster: Raster | None) -> Iterable[int]:
    """Where groups of whole frames or strips of a large one begin, by arithmetic: a lying count costs nothing."""
    stop = pixels.offset + pixels.length_bytes - 1
    if frame_bytes > PIECE_BYTES_MAX and raster is not None and not raster.planes:
        strips = -(-raster.rows // (PIECE_BYTES_MAX // raster.row_bytes))
        strip_bytes = -(-raster.rows // strips) * raster.row_bytes
        frames = range(pixels.offset, stop, frame_bytes)
        return (at for frame in frames for at in range(frame, frame + frame_bytes, strip_bytes))
    group_bytes = -(-GROUP_BYTES_MIN // frame_bytes) * frame_bytes
    return range(pixels.offset + group_bytes, stop, group_bytes)


def raster_of(walked: Walked, pixels: Pixels) -> Raster | None:
    """How samples lie, where the header tells and it is a usual way: 8 or 16 bits, little-endian, 1 or 3 a pixel."""
    little = walked.little

    def number(tag: int) -> int:
        return _short(walked.values.get(tag, b""), little=little)

    samples, bits, stored = number(SAMPLES_PER_PIXEL), number(BITS_ALLOCATED), number(BITS_STORED)
    is_usual = samples in (1, 3) and (bits == 8 or (bits == 16 and little))
    if pixels.tag != PIXEL_DATA or not is_usual:
        return None
    signed, planes = number(PIXEL_REPRESENTATION) == 1, samples == 3 and number(PLANAR_CONFIGURATION) == 1
    return Raster(number(ROWS), number(COLUMNS), samples, bits // 8, signed, planes, stored)


def native_frame_bytes(values: dict[int, bytes], length_bytes: int, *, little: bool) -> int:
    """Bytes of one frame of native pixel data, or 0 when the header does not account for every byte of it.

    PS3.3 C.7.6.3: rows by columns by samples by bits allocated, frame after frame, and one byte of padding to an
    even length (PS3.5 8.1.1).
    """
    frames = _integer(values.get(NUMBER_OF_FRAMES, b"1"))
    shape = [_short(values.get(tag, b""), little=little) for tag in (ROWS, COLUMNS, SAMPLES_PER_PIXEL, BITS_ALLOCATED)]
    bits = shape[0] * shape[1] * shape[2] * shape[3]
    if bits == 0 or bits % 8 or frames < 1:
        return 0
    frame_bytes = bits // 8
    total_bytes = frames * frame_bytes
    return frame_bytes if total_bytes == length_bytes or total_bytes + total_bytes % 2 == length_bytes else 0


def _frame_starts(source: Source, walked: Walked, found: Fragments) -> list[int]:
    """Where frames begin, when a table or the count tells; else where fragments do."""
    frames = _integer(walked.values.get(NUMBER_OF_FRAMES, b"1"))
    starts = found.starts
    if frames == 1 and not found.short:
        return []
    if len(starts) == frames or found.short:
        return starts
    for span, form in ((walked.offsets, "Q"), (found.table, "I")):
        if span is None or span[1] != frames * struct.calcsize("<" + form) or frames > FRAMES_MAX:
            continue
        offsets = struct.unpack(f"<{frames}{form}", source.read(*span))
        # Both tables count from the first fragment's item head (PS3.5 A.4, PS3.3 C.7.6.3.1.8).
        begins = [starts[0] + offset for offset in offsets]
        known = frozenset(starts)
        ascending = all(one < two for one, two in itertools.pairwise(begins))
        if begins[0] == starts[0] and ascending and known.issuperset(begins):
            return begins
    return starts


def _integer(text: bytes) -> int:
    """An IS value; 0 when it is none."""
    stripped = text.strip(b" \0")
    return int(stripped) if stripped.isdigit() and len(stripped) <= 12 else 0


def _short(value: bytes, *, little: bool) -> int:
    """An US value; 0 when it is none."""
    return int.from_bytes(value, "little" if little else "big") if len(value) == 2 else 0
