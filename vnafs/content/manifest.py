"""Manifest objects: segments, runs and snapshots, from which an index is rebuilt (FORMAT.md has every byte).

All three are a header and a body of rows. Rows are absolute: applying one twice, or an older one before a newer one,
changes nothing. Of an encrypted archive every object is encrypted, and one that is not is not its own. Pure functions
over bytes, which distrust what they read; they know no index and no target.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import xxhash
import zstandard

from vnafs.content import crypt
from vnafs.content.crypt import AES_256_GCM, WRAPPED_BYTES, Key
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import Envelope, KeyId
from vnafs.domain.ids import ObjectName, Sha256

FORMAT_VERSION = 1
MAGIC = b"\x89VNAMF\r\n"
HEADER_BYTES = 384
BODY_RAW_BYTES_MAX = 256 * 1024 * 1024
"""Bounds what a reader takes."""
LEVEL = 3
NUMBER_MAX = 1 << 62
"""No archive comes that far: a name with such a number is somebody's mischief."""
NO_PREVIOUS = Sha256(bytes(32))

_HEADER = struct.Struct("<8sHHI16sHHIQQ32sQQ32sHHI16s16s128s72s")
_HEAD_BYTES = 88
"""Up to and with the hash of the object before: authenticated with an encrypted body."""
_NO_ENVELOPE = Envelope(KeyId(bytes(16)), b"")
_GUARD = struct.Struct("<Q")
_MUST_UNDERSTAND = 0xFFFF0000


class Kind(enum.IntEnum):
    """What an object is. The numbers are stored."""

    SEGMENT = 1
    """What changed since the segment before it."""
    RUN = 2
    """Some of a snapshot's rows, in key order; named by its own hash, so that equal ones are stored once."""
    SNAPSHOT = 3
    """Which runs are all rows."""


class Operation(enum.IntEnum):
    """What a row does. The numbers are stored."""

    PUT = 1
    DELETE = 2
    DELETE_PREFIX = 3
    """Remove every key that begins so."""
    RUN = 4
    """Of a snapshot: the key is the run's first one, the value says which run."""


class Row(NamedTuple):
    """One row. The first byte of a key names its map: `n` namespace, `s` store, `a` about the archive."""

    operation: Operation
    key: bytes
    value: bytes = b""


NAMESPACE, STORE, ABOUT = b"n", b"s", b"a"


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What an object says of itself."""

    kind: Kind
    archive: bytes
    """16 bytes."""
    epoch: int = 0
    number: int = 0
    """Of a segment, from 1; of a snapshot the segment it is not complete without; 0 for a run."""
    created: Instant = Instant(0)
    """0 for a run."""
    previous: Sha256 = NO_PREVIOUS
    """SHA-256 of the segment before this one as an object; of a snapshot, of the segment it is not complete without."""
    more: bool = False
    """The change goes on in the next segment; what is there so far is no state that ever was."""
    envelope: Envelope | None = None
    """As read from an encrypted object; `encode` makes its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """What the manifests of an encrypted archive are written and read with."""

    current: Key
    known: Mapping[KeyId, Key]


def segment_name(number: int) -> ObjectName:
    """Where a segment lives on every target."""
    return ObjectName(f"{SEGMENTS}{number:016x}.segment")


def run_name(sha256: Sha256) -> ObjectName:
    """Where a run lives, by the SHA-256 of the object."""
    text = sha256.hex()
    return ObjectName(f"manifests/runs/{text[:2]}/{text}.run")


def snapshot_name(number: int) -> ObjectName:
    """Where a snapshot lives."""
    return ObjectName(f"{SNAPSHOTS}{number:016x}.snapshot")


SEGMENTS = "manifests/segments/"
SNAPSHOTS = "manifests/snapshots/"


def number_in(name: ObjectName) -> int | None:
    """The number in the name of a segment or snapshot; None for any other name."""
    stem, _, ending = name.rpartition("/")[2].partition(".")
    if ending not in {"segment", "snapshot"} or len(stem) != 16:
        return None
    try:
        number = int(stem, 16)
    except ValueError:
        return None
    return number if number < NUMBER_MAX else None


def encode(header: Header, rows: Iterable[Row], keys: Keys | None = None) -> bytes:
    """The object; the same one for the same header, rows and key. Raises TooBig past BODY_RAW_BYTES_MAX of rows."""
    out = bytearray()
    for operation, key, value in rows:
        out.append(operation)
        _add_sized(out, key)
        if operation in _WITH_VALUE:
            _add_sized(out, value)
    if len(out) > BODY_RAW_BYTES_MAX:
        raise errors.TooBig(what="a manifest object", limit_bytes=BODY_RAW_BYTES_MAX)
    body = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(bytes(out))

    def head_of(envelope: Envelope, body: bytes) -> bytes:
        return _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            HEADER_BYTES,
            0,  # flags
            header.archive,
            header.kind,
            int(header.more),
            header.epoch,
            header.number,
            header.created,
            header.previous,
            len(body),
            len(out),
            hashlib.sha256(body).digest(),
            AES_256_GCM if envelope.wrapped else 0,
            len(envelope.wrapped),
            0,
            envelope.key,
            bytes(16),
            envelope.wrapped,
            bytes(72),
        )

    head = head_of(_NO_ENVELOPE, body)
    if keys is not None:
        envelope, body = crypt.seal_manifest(keys.current, head[:_HEAD_BYTES], body)
        head = head_of(envelope, body)
    return head + _GUARD.pack(xxhash.xxh3_64_intdigest(head)) + body


_WITH_VALUE = frozenset((Operation.PUT, Operation.RUN))


def _is_guarded(header: bytes) -> bool:
    (guard,) = _GUARD.unpack_from(header, len(header) - _GUARD.size)
    return bool(guard == xxhash.xxh3_64_intdigest(header[: -_GUARD.size]))


def decode_header(data: bytes) -> Header:
    """What an object says of itself. Raises Damaged, or FormatUnknown for what a later program wrote."""
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        raise errors.Damaged(what="the header of a manifest object")
    fields = _HEADER.unpack_from(data)
    version, length, flags = fields[1:4]
    # in every version the last eight bytes of a header guard it: a flipped bit is no later program
    is_right = HEADER_BYTES <= length <= len(data) and _is_guarded(data[:length])
    if version > FORMAT_VERSION and (is_right or length > len(data)):
        raise errors.FormatUnknown(what="a manifest object", found=version, known=FORMAT_VERSION)
    if version == 0 or length != HEADER_BYTES or not is_right:
        raise errors.Damaged(what="the header of a manifest object")
    if flags & _MUST_UNDERSTAND:
        raise errors.FormatUnknown(what="a manifest object's flags", found=f"{flags:#x}", known=0)
    if fields[14] > AES_256_GCM:
        raise errors.FormatUnknown(what="a manifest object's encryption", found=fields[14], known=AES_256_GCM)
    if fields[14] and fields[15] != WRAPPED_BYTES:
        raise errors.Damaged(what="the header of a manifest object")
    try:
        kind = Kind(fields[5])
    except ValueError:
        raise errors.FormatUnknown(what="the kind of a manifest object", found=fields[5], known=max(Kind)) from None
    return Header(
        kind=kind,
        archive=fields[4],
        epoch=fields[7],
        number=fields[8],
        created=Instant(fields[9]),
        previous=Sha256(fields[10]),
        more=bool(fields[6]),
        envelope=Envelope(KeyId(fields[17]), fields[19][:WRAPPED_BYTES]) if fields[14] else None,
    )


def decode(data: bytes, keys: Keys | None = None) -> tuple[Header, Iterator[Row]]:
    """An object's header and rows. Raises Damaged before any row is given, FormatUnknown, or KeyMissing.

    With *keys* an object that is not encrypted is Damaged: anybody could have made it.
    """
    header = decode_header(data)
    fields = _HEADER.unpack_from(data)
    stored, raw, digest = fields[11:14]
    body = memoryview(data)[HEADER_BYTES:]
    if len(body) != stored or raw > BODY_RAW_BYTES_MAX or hashlib.sha256(body).digest() != digest:
        raise errors.Damaged(what="the body of a manifest object")
    body = memoryview(_opened(header, data, body, keys))
    try:
        if zstandard.frame_content_size(body) != raw:
            raise errors.Damaged(what="the body of a manifest object")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=raw) if raw else b""
    except zstandard.ZstdError as error:
        raise errors.Damaged(what="the body of a manifest object") from error
    return header, _rows(plain)


def _opened(header: Header, data: bytes, body: memoryview, keys: Keys | None) -> bytes | memoryview:
    if header.envelope is None:
        if keys is not None:
            raise errors.Damaged(what="a manifest object that should be encrypted")
        return body
    key = None if keys is None else keys.known.get(header.envelope.key)
    if key is None:
        raise errors.KeyMissing(what="A manifest object", why=f"no key {header.envelope.key.hex()}")
    return crypt.open_manifest(key, header.envelope, data[:_HEAD_BYTES], body)


def _rows(plain: bytes) -> Iterator[Row]:
    at, end = 0, len(plain)
    while at < end:
        number = plain[at]
        known = _OPERATIONS.get(number)
        if known is None:
            raise errors.FormatUnknown(what="a manifest row", found=number, known=max(Operation))
        operation, has_value = known
        key, at = _take_sized(plain, at + 1, end)
        value = b""
        if has_value:
            value, at = _take_sized(plain, at, end)
        yield _make(Row, (operation, key, value))


_OPERATIONS = {operation.value: (operation, operation in _WITH_VALUE) for operation in Operation}
_make = tuple.__new__


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run as a snapshot names it."""

    first: bytes
    """Its first key, map byte included; it reaches to the next run's."""
    rows: int
    size_bytes: int
    """Of the object."""
    sha256: Sha256
    """Of the object."""


_RUN = struct.Struct("<QQ32s")


def run_row(run: Run) -> Row:
    """As a snapshot holds it."""
    return Row(Operation.RUN, run.first, _RUN.pack(run.rows, run.size_bytes, run.sha256))


def run_of(row: Row) -> Run:
    """And back. Raises Damaged."""
    if len(row.value) != _RUN.size:
        raise errors.Damaged(what="a run in a snapshot")
    rows, size_bytes, sha256 = _RUN.unpack(row.value)
    return Run(row.key, rows, size_bytes, Sha256(sha256))


def _add_sized(out: bytearray, value: bytes) -> None:
    length = len(value)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    out += value


def _take_sized(plain: bytes, at: int, end: int) -> tuple[bytes, int]:
    """The bytes behind their length at *at*, and where they end; *end* is that of *plain*."""
    if at >= end:
        raise errors.Damaged(what="a manifest row")
    length = plain[at]
    at += 1
    if length >= 0x80:  # seldom
        length &= 0x7F
        shift = 7
        while True:
            if at >= end or shift > 28:
                raise errors.Damaged(what="a manifest row")
            byte = plain[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    stop = at + length
    if stop > end:
        raise errors.Damaged(what="a manifest row")
    return plain[at:stop], stop
