"""Which codec a piece gets: the smallest result that its budget of processor time allows.

Pieces whose samples are told may become images, which are a fifth to a half smaller than shuffled bytes and cost
five times their time. Trying every way on every piece would cost as much again, so it is done on some rows of a piece,
and what won is remembered for pictures of its kind, with what it took; all ways are tried again now and then, and at
once when a piece turns out much larger than expected. What a way costs is measured here, encoding and comparing
together, so that on a slow machine the choice gets cheaper and not the pipeline slower. Results depend on what came
before; bytes that come back never do.

Every image is decoded and compared before it is trusted. A way that fails or lies is left for another one, and a piece
under which the process died is never tried as an image again (`Attempts`). Any thread.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import xxhash

from vnafs.content import codecs, rasters
from vnafs.content.codecs import Encoded
from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.recipes import Codec, PieceKind, Raster

log = logging.getLogger(__name__)

RETRY_PIECES = 64
"""One in so many of a kind is tried every way, which costs a few percent of what encoding costs."""
RETRY_SOON_PIECES = 4
"""After a way made another picture of a piece: another way has that one, but not all its like."""
TRIAL_BYTES = 256 * 1024
"""Of whole rows from the middle of a larger piece decide which way it goes."""
KINDS_MAX = 256
"""Remembered; a hospital has some dozens."""
IMAGE_BYTES_MIN = 4096
"""A smaller piece is not worth an image's head, nor a trial."""
WORSE = 1.25
"""A piece that is larger than expected by this factor is another kind of picture: every way is tried."""
GIGABYTE = 1_000_000_000


class Attempts(Protocol):
    """Remembers across the death of the process what was being tried, by a digest of the bytes."""

    def is_deadly(self, digest: bytes) -> bool:
        """Whether the process died while it tried this before."""
        ...

    def under_way(self, digest: bytes) -> contextlib.AbstractContextManager[None]:
        """It is tried from now on to the end of the context."""
        ...


class NoAttempts:
    """For tests and programs that may die."""

    def is_deadly(self, digest: bytes) -> bool:  # noqa: ARG002 - the protocol's name
        """Nothing is."""
        return False

    def under_way(self, digest: bytes) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 - the protocol's name
        """Remember nothing."""
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """One way to store samples as an image."""

    codec: Codec
    effort: int
    seconds_per_gigabyte: float
    """To encode and compare CT, MR and ultrasound, about, on a core of 2022 (tests/bench/codecs.py)."""


WAYS = (
    Way(Codec.HTJ2K, 0, 10.0),
    Way(Codec.JPEG_XL, 1, 11.0),
    Way(Codec.JPEG_XL, 2, 32.0),
    Way(Codec.JPEG_XL, 3, 62.0),
)
HOPEFUL = 1.5
"""A way whose usual cost exceeds the budget by no more than this factor is measured: this machine may be faster."""
SURPRISE_MAX = 4.0
"""One measurement counts for at most so many times the usual cost: the thread may have been unlucky."""


class _Kind(NamedTuple):
    """What pictures have in common that compress alike, as far as their geometry tells. A crop is no other kind."""

    samples: int
    sample_bytes: int
    signed: bool
    planes: bool
    bits_stored: int
    magnitude: int
    """Of the piece: the power of two above its length."""


@dataclasses.dataclass(slots=True)
class _Known:
    """What is known of the pieces of one kind."""

    winner: Way | None
    """None: bytes, by zstd."""
    fraction: float
    """Stored by raw bytes, on average of late."""
    retry_in: int
    costs: dict[Way, float] = dataclasses.field(default_factory=dict)
    """Seconds per gigabyte, on average of late."""


class _AnotherPictureError(Exception):
    """Inside this module only: an encoder is wrong about this piece. JPEG XL's fastest one is, now and then."""


class Encoder:
    """Encodes pieces for one archive."""

    def __init__(
        self,
        *,
        level: int,
        seconds_per_gigabyte_max: float,
        attempts: Attempts,
        processor_seconds: Callable[[], float],
    ) -> None:
        """*processor_seconds* counts those of the calling thread; with a budget of 0 there are no images."""
        self._level = level
        self._budget = seconds_per_gigabyte_max
        self._attempts = attempts
        self._processor_seconds = processor_seconds
        self._ways = tuple(way for way in WAYS if way.seconds_per_gigabyte <= HOPEFUL * seconds_per_gigabyte_max)
        self._known: collections.OrderedDict[_Kind, _Known] = collections.OrderedDict()
        self._said_missing = False
        self._lock = threading.Lock()

    def encode(self, raw: Buffer, kind: PieceKind, raster: Raster | None = None) -> Encoded:
        """Store *raw*, at most PIECE_BYTES_MAX, the smallest way within the budget. Raises as `codecs.encode`."""
        if raster is None or not self._ways or len(raw) < IMAGE_BYTES_MIN or not rasters.fits(raster, len(raw)):
            return codecs.encode(raw, kind, level=self._level)
        plain = bytes(raw)
        digest = xxhash.xxh3_128_digest(plain)
        if self._attempts.is_deadly(digest) or not self._has_library():
            return codecs.encode(plain, kind, level=self._level)
        with self._attempts.under_way(digest):
            found = self._as_before(plain, kind, raster)
            return self._best(plain, kind, raster) if found is None else found

    def _has_library(self) -> bool:
        if not self._said_missing and not rasters.load():
            self._said_missing = True
            log.warning("encode.no_images", extra={"why": "the package imagecodecs is not installed"})
        return not self._said_missing

    def _as_before(self, plain: bytes, kind: PieceKind, raster: Raster) -> Encoded | None:
        """The way that won last; None when it is time to try all, or when it disappoints."""
        with self._lock:
            known = self._known.get(_kind_of(raster, len(plain)))
            if known is None or known.retry_in <= 0:
                return None
            known.retry_in -= 1
            winner, expected = known.winner, known.fraction
        if winner is None:
            encoded = codecs.encode(plain, kind, level=self._level)
        else:
            try:
                data = self._right_image(plain, raster, winner)
            except _AnotherPictureError:
                return None
            if data is None:
                return None
            encoded = Encoded(data, winner.codec)
        fraction = len(encoded.data) / len(plain)
        if fraction > WORSE * expected:
            return None
        with self._lock:
            known.fraction += (fraction - known.fraction) / 4
        return encoded

    def _best(self, plain: bytes, kind: PieceKind, raster: Raster) -> Encoded:
        """Try every way; the smallest that is right and within the budget wins, here and for pieces to come."""
        some = _some_rows(plain, raster)
        as_bytes = len(codecs.encode(some, kind, level=self._level).data)
        sizes = {way: len(self._image(some, raster, way) or some) for way in self._ways}
        best, winner, retry_in = None, None, RETRY_PIECES
        for way in sorted(sizes, key=lambda way: sizes[way]):
            if sizes[way] >= as_bytes or not codecs.saves(sizes[way], len(some)):
                break
            try:
                data = self._right_image(plain, raster, way)
            except _AnotherPictureError:
                retry_in = RETRY_SOON_PIECES
                continue
            if data is not None:
                best, winner = Encoded(data, way.codec), way
                break
        if best is None:
            best = codecs.encode(plain, kind, level=self._level)
        with self._lock:
            known = self._remembered(raster, len(plain))
            known.winner, known.fraction, known.retry_in = winner, len(best.data) / len(plain), retry_in - 1
        return best

    def _image(self, plain: bytes, raster: Raster, way: Way) -> bytes | None:
        """The encoded image; None when that fails."""
        try:
            return rasters.encode_image(plain, raster, way.codec, way.effort)
        except rasters.ImageFailedError as failed:
            log.warning("encode.failed", extra={"codec": way.codec.name, "why": str(failed)})
            return None

    def _right_image(self, plain: bytes, raster: Raster, way: Way) -> bytes | None:
        """The encoded image where it saves enough and costs what the budget allows on average.

        Raises _AnotherPictureError when it does not decode to the same.
        """
        began = self._processor_seconds()
        data = self._image(plain, raster, way)
        if data is None or not codecs.saves(len(data), len(plain)):
            return None
        try:
            same = rasters.decode_image(data, way.codec, len(plain)) == plain
        except (errors.Damaged, errors.RecallFailed, MemoryError):
            same = False
        if not same:
            log.warning("encode.not_the_same", extra={"codec": way.codec.name, "effort": way.effort})
            raise _AnotherPictureError
        usual = way.seconds_per_gigabyte
        cost = min((self._processor_seconds() - began) * GIGABYTE / len(plain), SURPRISE_MAX * usual)
        with self._lock:
            costs = self._remembered(raster, len(plain)).costs
            costs[way] = costs.get(way, usual) + (cost - costs.get(way, usual)) / 4
            return data if costs[way] <= self._budget else None

    def _remembered(self, raster: Raster, raw_bytes: int) -> _Known:
        """What is known of its kind, perhaps nothing yet. Needs the lock."""
        kind = _kind_of(raster, raw_bytes)
        known = self._known.setdefault(kind, _Known(None, 1.0, 0))
        self._known.move_to_end(kind)
        while len(self._known) > KINDS_MAX:
            self._known.popitem(last=False)
        return known


def _kind_of(raster: Raster, raw_bytes: int) -> _Kind:
    return _Kind(
        raster.samples,
        raster.sample_bytes,
        raster.signed,
        raster.planes,
        raster.bits_stored,
        raw_bytes.bit_length(),
    )


def _some_rows(plain: bytes, raster: Raster) -> bytes:
    """Whole rows from the middle, where pictures are; all of a piece that is small or whose rows lie apart."""
    rows = TRIAL_BYTES // raster.row_bytes
    if raster.planes or not rows or len(plain) < 2 * TRIAL_BYTES:
        return plain
    start = (len(plain) // raster.row_bytes - rows) // 2 * raster.row_bytes
    return plain[start : start + rows * raster.row_bytes]
