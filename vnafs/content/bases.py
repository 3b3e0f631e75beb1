"""Headers that lean on another header of their pack, its base (FORMAT.md, "Bases").

The headers of a study are nearly equal, so all but a few of a pack are stored as what differs from one that is stored
whole. One base is all that it takes to read one of them: a base leans on nothing. Which header becomes a base depends
on what came before; bytes that come back never do. Knows no file and no lock of others; any thread. Memory only:
BASES_MAX and LEANED_MAX headers for each pack that is being filled.
"""

from __future__ import annotations

import collections
import dataclasses
import struct
import threading
from collections.abc import Callable

import xxhash

from vnafs.content import codecs
from vnafs.content.codecs import Encoded
from vnafs.content.crypt import TAG_BYTES
from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.recipes import Codec, PieceKind, PieceRef

RAW_BYTES_MAX = 64 * 1024
"""Of a base, and of what leans on one: what a reader may have to fetch for a header besides the header."""
BASES_MAX = 8
"""Remembered for a pack: as many series as usually arrive at once."""
LEANED_MAX = 4
"""Headers remembered that lean on a base which is not much like them."""
GOOD = 16
"""What takes so much less than its raw bytes is not tried on other bases."""
SAVING = 2
"""A header leans only where it takes so much less than alone; else it is another kind, and the base of what follows.
"""

_HEAD = struct.Struct("<QQII")


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    """Where a base is, in the pack of what leans on it, and what it is."""

    xxh3: int
    """Of the raw bytes."""
    offset: int
    stored_bytes: int
    raw_bytes: int


FetchBase = Callable[[Base], bytes]
"""The raw bytes of a base, right by its xxh3. Raises Damaged."""


def encode_leaning(base: Base, frame: bytes) -> bytes:
    """A piece as it is stored that leans on *base*."""
    return _HEAD.pack(base.xxh3, base.offset, base.stored_bytes, base.raw_bytes) + frame


def base_of(stored: Buffer, offset: int) -> Base:
    """What the piece stored at *offset* leans on, which lies before it. Raises Damaged."""
    if len(stored) > _HEAD.size:
        base = Base(*_HEAD.unpack_from(stored))
        fits = 0 < base.stored_bytes <= base.raw_bytes + TAG_BYTES and 0 < base.raw_bytes <= RAW_BYTES_MAX
        if fits and base.offset + base.stored_bytes <= offset:
            return base
    raise errors.Damaged(what="a piece that leans on another one")


def decode_base(base: Base, stored: Buffer) -> bytes:
    """The raw bytes of a base. Raises Damaged."""
    raw = codecs.decode(stored, Codec.ZSTD, base.raw_bytes)
    if xxhash.xxh3_64_intdigest(raw) != base.xxh3:
        raise errors.Damaged(what="a piece that others lean on")
    return raw


def decode_leaning(stored: Buffer, raw_bytes: int, base: bytes) -> bytes:
    """The raw bytes of a piece that leans on *base*. Raises Damaged."""
    return codecs.inflate_after(base, memoryview(stored)[_HEAD.size :], raw_bytes)


class Bases:
    """The headers that lie whole in one pack, as far as later ones may lean on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bases: collections.OrderedDict[Base, bytes] = collections.OrderedDict()
        """Raw bytes; the one that served last is last."""
        self._leaned: collections.deque[bytes] = collections.deque(maxlen=LEANED_MAX)

    def lean(self, raw: Buffer) -> Encoded | None:
        """Store a header as what differs from a base; None when it is better stored alone, and becomes one (`add`).

        It may be appended to this pack only. Raises Damaged as `codecs.encode`.
        """
        if len(raw) > RAW_BYTES_MAX:
            return None
        plain = bytes(raw)
        with self._lock:
            known, leaned = list(reversed(self._bases.items())), list(self._leaned)
        best: tuple[bytes, Base, bytes] | None = None
        for base, before in known:
            frame = codecs.deflate_after(before, plain)
            if best is None or len(frame) < len(best[0]):
                best = frame, base, before
            if len(frame) * GOOD <= len(plain):
                break
        if best is None:
            return None
        frame, base, before = best
        # alone it would take about what the base does of its raw bytes
        if (len(frame) + _HEAD.size) * SAVING * base.raw_bytes > len(plain) * base.stored_bytes:
            return None
        if len(frame) * GOOD > len(plain):
            # a series whose first header leaned on another series': a base of its own is soon worth its bytes
            if any(len(codecs.deflate_after(other, plain)) * SAVING <= len(frame) for other in leaned):
                return None
            with self._lock:
                self._leaned.append(plain)
        if codecs.inflate_after(before, frame, len(plain)) != plain:
            raise errors.Damaged(what="a header that was just compressed")
        with self._lock:
            if base in self._bases:
                self._bases.move_to_end(base)
        return Encoded(encode_leaning(base, frame), Codec.ZSTD_AFTER_BASE)

    def add(self, ref: PieceRef, raw: Buffer) -> None:
        """A piece that was stored alone: later headers may lean on it if it is one."""
        if ref.kind is not PieceKind.DICOM_HEADER or ref.codec is not Codec.ZSTD or ref.raw_bytes > RAW_BYTES_MAX:
            return
        plain = bytes(raw)
        base = Base(xxhash.xxh3_64_intdigest(plain), ref.offset, ref.stored_bytes, ref.raw_bytes)
        with self._lock:
            self._bases[base] = plain
            while len(self._bases) > BASES_MAX:
                self._bases.popitem(last=False)
