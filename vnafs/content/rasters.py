"""Pieces of native pixels as standard images: HTJ2K (ISO/IEC 15444-15) and JPEG XL (ISO/IEC 18181-1), both lossless.

What is stored is a head of ours, a codestream that any decoder of the standard reads, and the bytes behind the last
whole row as they are (FORMAT.md, "Images"). It refuses to know DICOM and which codec is worth its time. Decoding
distrusts its input: the guard is compared first, so that rot never reaches a decoder written in C; then head and
codestream must agree on a size that the recipe promised. Any thread: the libraries work outside the interpreter lock,
each call in the caller's thread alone. The library is loaded at the first use, so that who never meets an image never
pays for it.
"""

from __future__ import annotations

import dataclasses
import struct
from types import ModuleType
from typing import Any

import numpy as np
import xxhash

from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.recipes import Codec, Raster

HEAD = struct.Struct("<QIIBBBB")
INVERTED = 1
"""Flag: the top bit of every sample is inverted, which makes signed samples unsigned in their order."""
PLANES = 2
"""Flag: the raw samples lie plane by plane, the image's pixel by pixel."""
SIDE_MAX = 1 << 20
"""Of rows and columns: more is no image."""

_GUARDED_FROM = 8
_WHAT = "a stored image"


class ImageFailedError(Exception):
    """Inside `content` only: this piece cannot be stored as such an image; another codec can store it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Head:
    """What the head says, which is also what an image must be."""

    rows: int
    columns: int
    samples: int
    sample_bytes: int
    flags: int
    tail_bytes: int

    @property
    def image_bytes(self) -> int:
        return self.rows * self.columns * self.samples * self.sample_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def is_sane(self) -> bool:
        usual = self.samples in (1, 3) and self.sample_bytes in (1, 2) and not self.flags & ~(INVERTED | PLANES)
        small = 0 < self.rows <= SIDE_MAX and 0 < self.columns <= SIDE_MAX
        return usual and small and (self.samples == 3 or not self.flags & PLANES)


def load() -> bool:
    """Load the library, for whoever measures what an image costs; whether there is one."""
    try:
        _library()
    except ImageFailedError:
        return False
    return True


def fits(raster: Raster, raw_bytes: int) -> bool:
    """Whether a piece of so many bytes can be an image: whole rows of it, and at most a row's rest behind them."""
    return _head_of(raster, raw_bytes) is not None


def encode_image(raw: bytes, raster: Raster, codec: Codec, effort: int) -> bytes:
    """Store *raw* as an image; *effort* is JPEG XL's (1 to 3). Raises ImageFailedError: try something else."""
    head = _head_of(raster, len(raw))
    if head is None:
        raise ImageFailedError("the piece is not what its header says")
    library = _library()
    samples = _samples_of(raw, head)
    try:
        if codec is Codec.HTJ2K:
            stream = library.htj2k_encode(samples, reversible=True, rgb=head.samples == 3, planar=False)
        else:
            stream = library.jpegxl_encode(
                samples, lossless=True, effort=effort, planar=False, usecontainer=False, numthreads=1
            )
    except (RuntimeError, ValueError, TypeError, MemoryError, ImportError) as error:
        raise ImageFailedError(type(error).__name__) from error
    numbers = (head.rows, head.columns, head.samples, head.sample_bytes, head.flags, head.tail_bytes)
    guarded = HEAD.pack(0, *numbers)[_GUARDED_FROM:] + bytes(stream) + raw[len(raw) - head.tail_bytes :]
    return xxhash.xxh3_64_intdigest(guarded).to_bytes(_GUARDED_FROM, "little") + guarded


def decode_image(stored: Buffer, codec: Codec, raw_bytes: int) -> bytes:
    """The raw bytes. Raises Damaged before a decoder takes memory for more; RecallFailed without imagecodecs."""
    view = memoryview(stored)
    if len(view) <= HEAD.size:
        raise errors.Damaged(what=_WHAT)
    guard, *numbers = HEAD.unpack_from(view)
    head = _Head(*numbers)
    if guard != xxhash.xxh3_64_intdigest(view[_GUARDED_FROM:]) or not head.is_sane:
        raise errors.Damaged(what=_WHAT)
    stream = view[HEAD.size : len(view) - head.tail_bytes]
    size = _htj2k_size(stream, head) if codec is Codec.HTJ2K else _jpeg_xl_size(stream)
    if head.image_bytes + head.tail_bytes != raw_bytes or size != (head.rows, head.columns):
        raise errors.Damaged(what=_WHAT)
    return _raw_of(_decoded(stream, codec, head), head) + bytes(view[len(view) - head.tail_bytes :])


def _library() -> ModuleType:
    try:
        import imagecodecs  # noqa: PLC0415 - 15 ms and 2 MB that only whoever meets an image should pay
    except ImportError as error:
        raise ImageFailedError("the package imagecodecs is not installed") from error
    return imagecodecs


def _head_of(raster: Raster, raw_bytes: int) -> _Head | None:
    if not raster.row_bytes:
        return None
    rows, tail_bytes = divmod(raw_bytes, raster.row_bytes)
    flags = INVERTED * raster.signed | PLANES * raster.planes
    head = _Head(rows, raster.columns, raster.samples, raster.sample_bytes, flags, tail_bytes)
    # the one byte of padding to an even length (PS3.5 8.1.1), and planes only where they are those of one frame
    return head if head.is_sane and tail_bytes <= 1 and (not raster.planes or rows == raster.rows) else None


def _samples_of(raw: bytes, head: _Head) -> np.ndarray[Any, Any]:
    samples = np.frombuffer(raw, _kind(head), head.image_bytes // head.sample_bytes)
    if head.flags & INVERTED:
        samples = samples ^ _kind(head).type(1 << (8 * head.sample_bytes - 1))
    if head.flags & PLANES:
        return np.ascontiguousarray(np.moveaxis(samples.reshape(head.samples, head.rows, head.columns), 0, -1))
    return samples.reshape(head.shape)


def _raw_of(samples: np.ndarray[Any, Any], head: _Head) -> bytes:
    if head.flags & PLANES:
        samples = np.moveaxis(samples, -1, 0)
    if head.flags & INVERTED:
        samples ^= _kind(head).type(1 << (8 * head.sample_bytes - 1))
    return samples.tobytes()


def _decoded(stream: memoryview, codec: Codec, head: _Head) -> np.ndarray[Any, Any]:
    try:
        library = _library()
        if codec is Codec.HTJ2K:
            found = library.htj2k_decode(stream, planar=False)
        else:
            found = library.jpegxl_decode(stream, numthreads=1)
    except (RuntimeError, ValueError, TypeError) as error:
        raise errors.Damaged(what=_WHAT) from error
    except (ImageFailedError, ImportError) as error:
        # it is whole: nothing is damaged
        raise errors.RecallFailed(what="an image", why="the package imagecodecs is not installed") from error
    if found.shape != head.shape or found.dtype != _kind(head):
        raise errors.Damaged(what=_WHAT)
    return found  # type: ignore[no-any-return]  # the library's stubs know no types of arrays


def _kind(head: _Head) -> np.dtype[Any]:
    return np.dtype("u1") if head.sample_bytes == 1 else np.dtype("<u2")


_SIZ = struct.Struct(">HHHHIIIIIIIIH")
"""SOC and SIZ: markers, length, capabilities, image and tile size and their offsets, components (15444-1 A.5.1)."""


def _htj2k_size(stream: memoryview, head: _Head) -> tuple[int, int]:
    """Rows and columns, where the codestream is one tile of components as *head* has them; else zeros."""
    needed = _SIZ.size + 3 * head.samples
    if len(stream) < needed:
        return 0, 0
    soc, siz, length, _, columns, rows, left, top, tile_columns, tile_rows, tile_left, tile_top, samples = (
        _SIZ.unpack_from(stream)
    )
    # each component: depth minus one in an unsigned byte, no subsampling
    components = bytes([8 * head.sample_bytes - 1, 1, 1]) * head.samples
    whole = (left, top, tile_left, tile_top) == (0, 0, 0, 0) and tile_columns >= columns and tile_rows >= rows
    right = (soc, siz, length, samples) == (0xFF4F, 0xFF51, 38 + 3 * head.samples, head.samples)
    return (rows, columns) if whole and right and stream[_SIZ.size : needed] == components else (0, 0)


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Columns to rows, from 1 on (18181-1, SizeHeader)."""


def _jpeg_xl_size(stream: memoryview) -> tuple[int, int]:
    """Rows and columns (18181-1, SizeHeader), or zeros."""
    start = _codestream_at(stream)
    if bytes(stream[start : start + 2]) != b"\xff\x0a":
        return 0, 0
    bits = int.from_bytes(stream[start + 2 : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    in_eights = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if in_eights else take((9, 13, 18, 30)[take(2)]) + 1

    rows = side()
    ratio = take(3)
    columns = rows * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else side()
    return rows, columns


_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_BOX = struct.Struct(">I4s")
_BOXES_MAX = 8


def _codestream_at(stream: memoryview) -> int:
    """Where the codestream begins, bare or in the container of 18181-2, which libjxl takes for 16 bits."""
    at = 0
    if bytes(stream[: len(_SIGNATURE)]) == _SIGNATURE:
        for _ in range(_BOXES_MAX):
            if len(stream) < at + _BOX.size:
                break
            length, name = _BOX.unpack_from(stream, at)
            if name == b"jxlc":
                return at + (_BOX.size if length != 1 else 16)
            if length < _BOX.size:
                break
            at += length
    return at
