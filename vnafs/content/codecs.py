"""How one piece's bytes are stored, and how they come back.

Tries the codecs of bytes that can win for a kind of piece, keeps the smallest, and stores bytes as they are when
nothing saves 3 %; images are tried by `vnafs.content.encoder`, which knows what they cost. What was
encoded is decoded and compared before it is trusted. Decoding distrusts its input: output is bounded by the length that
the recipe promises before any of it is made. Any thread: each has its own compressors, and zstd works outside the
interpreter lock.
"""

from __future__ import annotations

import collections
import dataclasses
import threading

import numpy as np
import zstandard

from vnafs.content import rasters
from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind

LEVEL = 1
"""zstd's level. With shuffled samples 3 saves a percent or so more and costs half the speed; see tests/bench."""
SAVING_PERCENT_MIN = 3
"""Less is not worth decoding."""
SAMPLE_BYTES = 8 * 1024
SAMPLES = 3
AFTER_MAX = 4
"""Compressors, and decompressors, that a thread keeps for what comes after other bytes: 100 to 500 KB each."""
SAMPLED_BYTES_MIN = 64 * 1024
"""From here on samples decide whether and how to compress; smaller pieces are simply tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """A piece as it is stored."""

    data: bytes
    codec: Codec


class _Compressors(threading.local):
    """One set for each thread, as zstandard asks: a cache, without influence on results."""

    def __init__(self) -> None:
        self._by_level: dict[int, zstandard.ZstdCompressor] = {}
        self._after: collections.OrderedDict[bytes, zstandard.ZstdCompressor] = collections.OrderedDict()
        self._back: collections.OrderedDict[bytes, zstandard.ZstdDecompressor] = collections.OrderedDict()
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._by_level:
            self._by_level[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return self._by_level[level]

    def compressor_after(self, before: bytes) -> zstandard.ZstdCompressor:
        found = self._after.pop(before, None) or zstandard.ZstdCompressor(
            level=LEVEL, dict_data=_prefix(before), write_content_size=True, write_dict_id=False
        )
        self._after[before] = found
        while len(self._after) > AFTER_MAX:
            self._after.popitem(last=False)
        return found

    def decompressor_after(self, before: bytes) -> zstandard.ZstdDecompressor:
        found = self._back.pop(before, None) or zstandard.ZstdDecompressor(dict_data=_prefix(before))
        self._back[before] = found
        while len(self._back) > AFTER_MAX:
            self._back.popitem(last=False)
        return found


def _prefix(before: bytes) -> zstandard.ZstdCompressionDict:
    """Raw content whatever it begins with, so that no header passes for a dictionary with tables (RFC 8878, 5)."""
    return zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


_thread = _Compressors()


def encode(raw: Buffer, kind: PieceKind, *, level: int = LEVEL, verify: bool = True) -> Encoded:
    """Store *raw* as bytes, the smallest way that decodes to the same; at most PIECE_BYTES_MAX of them.

    *verify* decodes and compares before the result is trusted. Raises Damaged when that fails: the machine's
    memory or the codec is broken, and nothing it says can be stored.
    """
    plain = bytes(raw)
    if len(plain) > PIECE_BYTES_MAX:
        raise errors.TooBig(what="a piece", limit_bytes=PIECE_BYTES_MAX)
    codec = _choose(plain, kind, level)
    if codec is Codec.NONE:
        return Encoded(plain, codec)
    data = _thread.compressor(level).compress(shuffled(plain) if codec is Codec.SHUFFLED_ZSTD else plain)
    if not saves(len(data), len(plain)):
        return Encoded(plain, Codec.NONE)
    if verify and decode(data, codec, len(plain)) != plain:
        raise errors.Damaged(what="a piece that was just compressed")
    return Encoded(data, codec)


def decode(stored: Buffer, codec: Codec, raw_bytes: int) -> bytes:
    """The raw bytes of a piece, exactly *raw_bytes* of them. Raises Damaged for anything else.

    Raises RecallFailed for an image on a machine without the library that decodes it.
    """
    if raw_bytes > PIECE_BYTES_MAX:
        raise errors.Damaged(what="a piece longer than any piece may be")
    if codec is Codec.NONE:
        plain = bytes(stored)
    elif codec in IMAGES:
        plain = rasters.decode_image(stored, codec, raw_bytes)
    elif codec is Codec.ZSTD_AFTER_BASE:
        raise errors.InvalidArgument(why="what leans on another piece is not decoded without it")
    else:
        plain = inflate(stored, raw_bytes)
        if codec is Codec.SHUFFLED_ZSTD:
            plain = unshuffled(plain)
    if len(plain) != raw_bytes:
        raise errors.Damaged(what="a stored piece")
    return plain


def inflate(stored: Buffer, raw_bytes: int) -> bytes:
    """Decompress one zstd frame (RFC 8878) that says it holds *raw_bytes*. Raises Damaged before making more."""
    return _inflate(_thread.decompressor, stored, raw_bytes)


def deflate_after(before: bytes, plain: bytes) -> bytes:
    """One zstd frame of *plain* that only `inflate_after` with the same *before* opens."""
    return _thread.compressor_after(before).compress(plain)


def inflate_after(before: bytes, stored: Buffer, raw_bytes: int) -> bytes:
    """The same as `inflate`, of a frame that was made as if *before* came before it. Wrong with another one."""
    return _inflate(_thread.decompressor_after(before), stored, raw_bytes)


def _inflate(decompressor: zstandard.ZstdDecompressor, stored: Buffer, raw_bytes: int) -> bytes:
    try:
        # The frame's own claim decides how much memory zstd takes: compare it first.
        if zstandard.frame_content_size(stored) != raw_bytes:
            raise errors.Damaged(what="a compressed piece")
        if raw_bytes == 0:
            return b""
        return decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise errors.Damaged(what="a compressed piece") from error


def shuffled(plain: Buffer) -> bytes:
    """Bytes at even offsets, then those at odd ones: the high bytes of samples resemble each other."""
    pairs = len(plain) // 2
    samples = np.frombuffer(plain, _SAMPLE, pairs)
    mixed = np.empty(len(plain), np.uint8)
    # arithmetic on whole samples, which numpy does in vectors; taking every second byte it does one by one
    mixed[:pairs] = samples.astype(np.uint8)
    mixed[len(plain) - pairs :] = (samples >> 8).astype(np.uint8)
    if len(plain) % 2:
        mixed[pairs] = plain[-1]
    return mixed.tobytes()


def unshuffled(mixed: Buffer) -> bytes:
    """The inverse of `shuffled`."""
    pairs = len(mixed) // 2
    low = np.frombuffer(mixed, np.uint8, pairs)
    samples = np.frombuffer(mixed, np.uint8, pairs, len(mixed) - pairs).astype(_SAMPLE)
    samples <<= 8
    samples |= low
    return samples.tobytes() + bytes(mixed[pairs : len(mixed) - pairs])


_SAMPLE = np.dtype("<u2")

IMAGES = frozenset({Codec.HTJ2K, Codec.JPEG_XL})

_NEVER_SAMPLES = (PieceKind.DICOM_HEADER, PieceKind.ENCAPSULATED)
"""Bytes that are no numbers of 16 bits. Encapsulated ones may still shrink: RLE and padded JPEG do, JPEG 2000 not."""


def _choose(plain: bytes, kind: PieceKind, level: int) -> Codec:
    """The codec that wins on samples; ZSTD where trying costs no more than sampling."""
    if not plain:
        return Codec.NONE
    if len(plain) < SAMPLED_BYTES_MIN and kind is not PieceKind.PIXELS:
        return Codec.ZSTD
    # Even offsets, so that samples of two bytes stay whole.
    step = max((len(plain) - SAMPLE_BYTES) // (SAMPLES - 1), 0) & ~1
    sample = b"".join(plain[at : at + SAMPLE_BYTES] for at in sorted({step * n for n in range(SAMPLES)}))
    compress = _thread.compressor(level).compress
    sizes = {Codec.ZSTD: len(compress(sample))}
    if kind not in _NEVER_SAMPLES:
        sizes[Codec.SHUFFLED_ZSTD] = len(compress(shuffled(sample)))
    best = min(sizes, key=lambda codec: (sizes[codec], codec))
    # Between the samples may lie something better; only what gains nothing at all is given up.
    return best if kind is PieceKind.PIXELS or saves(sizes[best], len(sample)) else Codec.NONE


def saves(stored_bytes: int, raw_bytes: int) -> bool:
    """Whether that much less is worth decoding."""
    return stored_bytes * 100 <= raw_bytes * (100 - SAVING_PERCENT_MIN)
