"""The pack: an immutable object that holds pieces and recipes and describes itself (FORMAT.md has every byte).

The writer appends to one local file and hashes while it writes; nothing is ever patched, so the first byte is
final when it is written. The reader takes any source of spans, distrusts every byte, and serves a piece only when
its SHA-256 is right. With a cipher, every part of the body and the catalogue is encrypted at its own offset. Knows no
index and no target. One thread at a time for each object. Durable when `close` returned: file and directory are
synced; before that the pack does not exist.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import xxhash

from vnafs.content import bases, catalogue, codecs, recipe
from vnafs.content.bases import Base, FetchBase
from vnafs.content.catalogue import Catalogue, FileEntry, FileHints, PackHeader, RecipeEntry
from vnafs.content.crypt import AES_256_GCM, TAG_BYTES, WRAPPED_BYTES, Cipher, Part
from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import Envelope, KeyId
from vnafs.domain.ids import PackId, RepositoryId, Sha256, Span
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind, PieceRef, Recipe

__all__ = [
    "Catalogue",
    "ClosedPack",
    "FileEntry",
    "FileHints",
    "PackHeader",
    "PackReader",
    "PackWriter",
    "RecipeEntry",
    "open_base",
    "open_piece",
    "open_recipe",
    "rebuild",
]

FORMAT_VERSION = 1
MAGIC = b"\x89VNAPK\r\n"
"""A byte no text has, a name, and a line end: shows a transfer that "repaired" bytes."""
END_MAGIC = b"VNAPKEND"
HEADER_BYTES = 256
FOOTER_BYTES = 160
TAIL_BYTES = 64 * 1024
"""One read of this much from the end lists a usual pack."""
WRITE_BUFFER_BYTES = 256 * 1024

_HEADER = struct.Struct("<8sHHI16s16sQIIQHHI16s16s128s8s")
_NO_ENVELOPE = Envelope(KeyId(bytes(16)), b"")
_FOOTER = struct.Struct("<16sQQQQQQIIII32s28sHH8s")
_END = struct.Struct("<HH8s")
_GUARD = struct.Struct("<Q")
_MUST_UNDERSTAND = 0xFFFF0000
_SIZE_MAX = 1 << 50


@dataclasses.dataclass(frozen=True, slots=True)
class ClosedPack:
    """A pack that is complete and on stable storage."""

    id: PackId
    size_bytes: int
    sha256: Sha256
    """Of the whole object."""
    pieces: int
    contents: int


def encode_header(header: PackHeader) -> bytes:
    """The first HEADER_BYTES of a pack."""
    envelope = header.envelope or _NO_ENVELOPE
    body = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        HEADER_BYTES,
        0,  # flags
        header.pack,
        header.archive,
        header.repository,
        header.retention_class,
        0,
        header.created,
        AES_256_GCM if header.envelope else 0,
        len(envelope.wrapped),
        0,
        envelope.key,
        bytes(16),
        envelope.wrapped,
        bytes(8),
    )
    return body + _GUARD.pack(xxhash.xxh3_64_intdigest(body))


def decode_header(data: Buffer) -> PackHeader:
    """Raises Damaged, or FormatUnknown for a later version, an unknown flag or an unknown encryption."""
    view = memoryview(data)
    if len(view) < HEADER_BYTES or view[:8] != MAGIC:
        raise errors.Damaged(what="the header of a pack")
    fields = _HEADER.unpack_from(view)
    version, length, flags = fields[1:4]
    if version > FORMAT_VERSION:
        raise errors.FormatUnknown(what="a pack", found=version, known=FORMAT_VERSION)
    guard = _GUARD.unpack_from(view, HEADER_BYTES - 8)[0]
    if version == 0 or length != HEADER_BYTES or guard != xxhash.xxh3_64_intdigest(view[: HEADER_BYTES - 8]):
        raise errors.Damaged(what="the header of a pack")
    if flags & _MUST_UNDERSTAND:
        raise errors.FormatUnknown(what="a pack's flags", found=f"{flags:#x}", known=0)
    envelope = None
    if fields[10] > AES_256_GCM:
        raise errors.FormatUnknown(what="a pack's encryption", found=fields[10], known=AES_256_GCM)
    if fields[10]:
        if fields[11] != WRAPPED_BYTES:
            raise errors.Damaged(what="the header of a pack")
        envelope = Envelope(KeyId(fields[13]), fields[15][:WRAPPED_BYTES])
    return PackHeader(PackId(fields[4]), fields[5], RepositoryId(fields[6]), fields[7], Instant(fields[9]), envelope)


@dataclasses.dataclass(frozen=True, slots=True)
class Footer:
    """The last FOOTER_BYTES of a pack."""

    pack: PackId
    bodies_bytes: int
    bodies_xxh3: int
    catalogue_offset: int
    catalogue_stored_bytes: int
    catalogue_raw_bytes: int
    catalogue_xxh3: int
    pieces: int
    recipes: int
    files: int
    sha256: Sha256
    """Of every byte before the footer."""


def encode_footer(footer: Footer) -> bytes:
    """Its bytes, guard first."""
    body = _FOOTER.pack(
        footer.pack,
        footer.bodies_bytes,
        footer.bodies_xxh3,
        footer.catalogue_offset,
        footer.catalogue_stored_bytes,
        footer.catalogue_raw_bytes,
        footer.catalogue_xxh3,
        footer.pieces,
        footer.recipes,
        footer.files,
        0,
        footer.sha256,
        bytes(28),
        FORMAT_VERSION,
        FOOTER_BYTES,
        END_MAGIC,
    )
    return _GUARD.pack(xxhash.xxh3_64_intdigest(body)) + body


def decode_footer(data: Buffer, size_bytes: int) -> Footer:
    """The footer at the end of *data*, of a pack of *size_bytes*. Raises Damaged, FormatUnknown."""
    view = memoryview(data)
    if len(view) < FOOTER_BYTES or view[-8:] != END_MAGIC:
        raise errors.Damaged(what="the footer of a pack")
    version, length, _ = _END.unpack_from(view, len(view) - _END.size)
    if version > FORMAT_VERSION:
        raise errors.FormatUnknown(what="a pack", found=version, known=FORMAT_VERSION)
    view = view[-FOOTER_BYTES:]
    if version == 0 or length != FOOTER_BYTES or _GUARD.unpack_from(view)[0] != xxhash.xxh3_64_intdigest(view[8:]):
        raise errors.Damaged(what="the footer of a pack")
    fields = _FOOTER.unpack_from(view, 8)
    footer = Footer(
        pack=PackId(fields[0]),
        bodies_bytes=fields[1],
        bodies_xxh3=fields[2],
        catalogue_offset=fields[3],
        catalogue_stored_bytes=fields[4],
        catalogue_raw_bytes=fields[5],
        catalogue_xxh3=fields[6],
        pieces=fields[7],
        recipes=fields[8],
        files=fields[9],
        sha256=Sha256(fields[11]),
    )
    if (
        footer.catalogue_offset != HEADER_BYTES + footer.bodies_bytes
        or footer.catalogue_offset + footer.catalogue_stored_bytes + FOOTER_BYTES != size_bytes
        or footer.catalogue_raw_bytes > catalogue.RAW_BYTES_MAX
    ):
        raise errors.Damaged(what="the footer of a pack")
    return footer


class PackWriter:
    """Writes one pack. After any error only `abort` makes sense.

    Every method raises NoSpace or StorageFailed when the disk does not take the bytes.
    """

    def __init__(
        self,
        path: str,
        header: PackHeader,
        *,
        repository_name: str,
        cipher: Cipher | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        """Create the file at *path*, which must not exist, or write to *file* that the caller created there.

        *cipher* is that of the header's envelope, if it has one.
        """
        self.id = header.pack
        self.header = header
        self._cipher = cipher
        self._path = path
        self._sha256 = hashlib.sha256()
        self._bodies = xxhash.xxh3_64()
        self._offset = 0
        self._lines = [catalogue.pack_line(header, repository_name)]
        self._lines_bytes = len(self._lines[0])
        self._pieces = 0
        self._recipes: set[Sha256] = set()
        self._files = 0
        self._file: BinaryIO | None
        try:
            self._file = file or open(path, "xb", buffering=WRITE_BUFFER_BYTES)  # noqa: SIM115 - close and abort do
        except OSError as error:
            raise _translated(error, "creating a pack") from error
        self._append(encode_header(header))

    @property
    def size_bytes(self) -> int:
        """An upper bound of its size if it were closed now: the catalogue counts as if it were not compressed."""
        return self._offset + self._lines_bytes + TAG_BYTES + FOOTER_BYTES

    def append_piece(self, stored: bytes, *, raw_bytes: int, codec: Codec, kind: PieceKind, sha256: Sha256) -> PieceRef:
        """Store one encoded piece; *sha256* is of its raw bytes."""
        if not 0 < len(stored) <= raw_bytes <= PIECE_BYTES_MAX:
            raise errors.InvalidArgument(why=f"a piece of {raw_bytes} bytes stored in {len(stored)} is none")
        stored = self._sealed(Part.PIECE, stored)
        piece = PieceRef(self.id, self._offset, len(stored), raw_bytes, codec, kind, sha256)
        self._body(stored)
        self._pieces += 1
        self._note(catalogue.piece_line(piece))
        return piece

    def append_content(self, content: Recipe, hints: FileHints | None = None) -> Span:
        """Store a recipe, whose pieces may be in this pack and in others; where its record lies."""
        if content.sha256 in self._recipes or sum(piece.raw_bytes for piece in content.pieces) != content.size_bytes:
            raise errors.InvalidArgument(why="a recipe that is in the pack already, or does not add up")
        if len(content.pieces) > recipe.PIECES_MAX:
            raise errors.FileTooBig(limit_bytes=recipe.PIECES_MAX * PIECE_BYTES_MAX)
        record = self._sealed(Part.RECIPE, recipe.encode_recipe(content, self.id))
        span = Span(self._offset, len(record))
        self._body(record)
        self._recipes.add(content.sha256)
        self._note(catalogue.recipe_line(content.sha256, content.size_bytes, span))
        if hints is not None:
            self.append_file(content.sha256, hints)
        return span

    def append_file(self, content: Sha256, hints: FileHints) -> None:
        """Note another file that is the same content; costs a line of the catalogue."""
        self._files += 1
        self._note(catalogue.file_line(content, hints))

    def close(self) -> ClosedPack:
        """Finish the pack and put it on stable storage."""
        bodies = self._offset - HEADER_BYTES
        stored = self._sealed(Part.CATALOGUE, catalogue.pressed(self._lines))
        offset = self._offset
        self._append(stored)
        footer = Footer(
            pack=self.id,
            bodies_bytes=bodies,
            bodies_xxh3=self._bodies.intdigest(),
            catalogue_offset=offset,
            catalogue_stored_bytes=len(stored),
            catalogue_raw_bytes=self._lines_bytes,
            catalogue_xxh3=xxhash.xxh3_64_intdigest(stored),
            pieces=self._pieces,
            recipes=len(self._recipes),
            files=self._files,
            sha256=Sha256(self._sha256.digest()),
        )
        self._append(encode_footer(footer))
        file, self._file = self._file, None
        if file is None:
            raise errors.InvalidArgument(why="the pack is closed")
        try:
            with file:
                file.flush()
                os.fsync(file.fileno())
            _sync_directory(os.path.dirname(self._path) or ".")
        except OSError as error:
            raise _translated(error, "syncing a pack") from error
        return ClosedPack(self.id, self._offset, Sha256(self._sha256.digest()), self._pieces, len(self._recipes))

    def abort(self) -> None:
        """Remove the file, closed or not. Idempotent."""
        file, self._file = self._file, None
        try:
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    # Buffered bytes that the disk did not take; they are unwanted now.
                    if error.errno not in _FULL:
                        raise
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _translated(error, "removing an unfinished pack") from error

    def _sealed(self, part: Part, data: bytes) -> bytes:
        """As it is stored at the offset that is next; what follows must store it there."""
        return data if self._cipher is None else self._cipher.seal(part, self._offset, data)

    def _note(self, line: bytes) -> None:
        self._lines.append(line)
        self._lines_bytes += len(line)

    def _body(self, data: bytes) -> None:
        self._bodies.update(data)
        self._append(data)

    def _append(self, data: bytes) -> None:
        if self._file is None:
            raise errors.InvalidArgument(why="the pack is closed")
        try:
            self._file.write(data)
        except OSError as error:
            raise _translated(error, "writing a pack") from error
        self._sha256.update(data)
        self._offset += len(data)


Fetch = Callable[[Span], bytes]
"""Bytes of a pack from wherever it is: a local file, a range request. May raise its own domain errors."""


class PackReader:
    """Reads one pack through *fetch*, and *cipher* if it is encrypted; keeps only the base it read last.

    Raises Damaged, FormatUnknown and what *fetch* raises.
    """

    def __init__(self, fetch: Fetch, size_bytes: int, pack: PackId, cipher: Cipher | None = None) -> None:
        self._cipher = cipher
        self._fetch = fetch
        self._size = size_bytes
        self._pack = pack
        self._last: tuple[Base, bytes] | None = None

    def header(self) -> PackHeader:
        """What the first bytes say."""
        header = decode_header(self._read(0, HEADER_BYTES))
        if header.pack != self._pack:
            raise errors.Damaged(what=f"pack {self._pack.hex()}")
        return header

    def catalogue(self) -> Catalogue:
        """What the pack holds: one fetch of TAIL_BYTES, a second one when the catalogue is larger."""
        if not HEADER_BYTES + FOOTER_BYTES <= self._size <= _SIZE_MAX:
            raise errors.Damaged(what=f"pack {self._pack.hex()}")
        length = min(TAIL_BYTES, self._size)
        tail = self._read(self._size - length, length)
        footer = decode_footer(tail, self._size)
        if footer.pack != self._pack:
            raise errors.Damaged(what=f"pack {self._pack.hex()}")
        start = footer.catalogue_offset - (self._size - length)
        if start >= 0:
            stored = tail[start : start + footer.catalogue_stored_bytes]
        else:
            stored = self._read(footer.catalogue_offset, footer.catalogue_stored_bytes)
        if xxhash.xxh3_64_intdigest(stored) != footer.catalogue_xxh3:
            raise errors.Damaged(what=f"the catalogue of pack {self._pack.hex()}")
        stored = _opened(self._cipher, Part.CATALOGUE, footer.catalogue_offset, stored)
        found = catalogue.read_catalogue(stored, footer.catalogue_raw_bytes, self._pack)
        if (len(found.pieces), len(found.recipes), len(found.files)) != (footer.pieces, footer.recipes, footer.files):
            raise errors.Damaged(what=f"the catalogue of pack {self._pack.hex()}")
        return found

    def recipe(self, span: Span) -> Recipe:
        """The recipe whose record lies at *span*."""
        if span.length is None or span.length > recipe.RECORD_BYTES_MAX:
            raise errors.Damaged(what=f"a recipe in pack {self._pack.hex()}")
        return open_recipe(span, self._read(span.offset, span.length), self._pack, self._cipher)

    def piece(self, ref: PieceRef) -> bytes:
        """The raw bytes of a piece of this pack, equal to its SHA-256."""
        if ref.pack != self._pack or not 0 < ref.stored_bytes <= PIECE_BYTES_MAX + TAG_BYTES:
            raise errors.Damaged(what=f"a piece of pack {self._pack.hex()}")
        return open_piece(ref, self._read(ref.offset, ref.stored_bytes), self._base, self._cipher)

    def _base(self, base: Base) -> bytes:
        if self._last is None or self._last[0] != base:
            self._last = base, open_base(base, self._read(base.offset, base.stored_bytes), self._cipher)
        return self._last[1]

    def _read(self, offset: int, length_bytes: int) -> bytes:
        if offset < 0 or offset + length_bytes > self._size:
            raise errors.Damaged(what=f"pack {self._pack.hex()}")
        data = self._fetch(Span(offset, length_bytes))
        if len(data) != length_bytes:
            raise errors.Damaged(what=f"pack {self._pack.hex()}")
        return data


def _opened(cipher: Cipher | None, part: Part, offset: int, stored: Buffer) -> bytes:
    return bytes(stored) if cipher is None else cipher.open(part, offset, stored)


def open_recipe(span: Span, stored: Buffer, pack: PackId, cipher: Cipher | None = None) -> Recipe:
    """The recipe whose stored record lies at *span* of *pack*. Raises Damaged, FormatUnknown."""
    return recipe.decode_recipe(_opened(cipher, Part.RECIPE, span.offset, stored), pack)


def open_piece(ref: PieceRef, stored: Buffer, fetch_base: FetchBase, cipher: Cipher | None = None) -> bytes:
    """The raw bytes of a piece from its stored bytes; raises Damaged unless they are the bytes that were stored.

    *fetch_base* is asked at most once, for a base in the same pack; what it raises comes through.
    """
    plain = stored if cipher is None else cipher.open(Part.PIECE, ref.offset, stored)
    if ref.codec is Codec.ZSTD_AFTER_BASE:
        raw = bases.decode_leaning(plain, ref.raw_bytes, fetch_base(bases.base_of(plain, ref.offset)))
    else:
        raw = codecs.decode(plain, ref.codec, ref.raw_bytes)
    if hashlib.sha256(raw).digest() != ref.sha256:
        raise errors.Damaged(what=f"a piece of pack {ref.pack.hex()}")
    return raw


def open_base(base: Base, stored: Buffer, cipher: Cipher | None = None) -> bytes:
    """The raw bytes of a base from its stored bytes. Raises Damaged."""
    return bases.decode_base(base, stored if cipher is None else cipher.open(Part.PIECE, base.offset, stored))


def rebuild(content: Recipe, fetch_piece: Callable[[PieceRef], bytes]) -> Iterator[bytes]:
    """The bytes of a content in order, a piece at a time.

    The last piece is given only when the whole equals the content's SHA-256: whoever got everything got the right
    bytes. Raises Damaged, and what *fetch_piece* raises.
    """
    digest = hashlib.sha256()
    held: bytes | None = None
    for ref in content.pieces:
        if held is not None:
            yield held
        held = fetch_piece(ref)
        digest.update(held)
    if digest.digest() != content.sha256:
        raise errors.Damaged(what="a rebuilt file")
    if held is not None:
        yield held


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _translated(error: OSError, doing: str) -> errors.VnaError:
    why = os.strerror(error.errno or errno.EIO)
    return errors.NoSpace(why=f"{doing}: {why}") if error.errno in _FULL else errors.StorageFailed(doing=doing, why=why)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
