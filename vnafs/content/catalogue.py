"""The catalogue of the pack format: what a pack holds and what its contents were called (FORMAT.md, "Catalogue").

JSON lines in one zstd frame, so that a short program on public libraries lists a pack. Names and attributes are
hints as they were when the pack was written: the index and the manifests decide. Reading distrusts and is bounded.
Pure; any thread.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import zstandard

from vnafs.content.codecs import inflate
from vnafs.content.crypt import TAG_BYTES
from vnafs.content.facts import Facts
from vnafs.content.recipe import codec_of, kind_of
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import Envelope
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, Version
from vnafs.domain.recipes import PIECE_BYTES_MAX, PieceRef

RAW_BYTES_MAX = 128 * 1024 * 1024
"""Of the lines together. A writer counts them into its size, so a pack near its target stays far below."""
LINE_BYTES_MAX = 1024 * 1024
"""A file whose attributes would not fit is written without them and says so."""
LEVEL = 1
"""Hexadecimal hashes are most of what is left: level 3 makes a sixth more of them, and takes longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackHeader:
    """What the first bytes of a pack say of it."""

    pack: PackId
    archive: bytes
    """16 bytes that name the archive (its fsid)."""
    repository: RepositoryId
    retention_class: int
    created: Instant
    envelope: Envelope | None = None
    """Of an encrypted pack; None also as read from a catalogue, which does not repeat it."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileHints:
    """What one file that is some content was called and who owned it, when the pack was written."""

    path: bytes
    """From the repository's top directory on, `/`-separated, any byte but NUL; empty when it had no name."""
    inode: Inode
    version: Version
    mode: int = 0
    """st_mode, type bits included."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    xattrs: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict)
    """ACLs are among them, under the names the kernel gives them."""
    dicom: Facts | None = None
    is_open: bool = False
    """Somebody went on writing: the content is what the file was at some moment, not what it became."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecipeEntry:
    """Where the recipe record of one content lies."""

    sha256: Sha256
    size_bytes: int
    span: Span


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    """One file and the content it is."""

    sha256: Sha256
    hints: FileHints


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a pack says of itself."""

    header: PackHeader
    repository_name: str
    pieces: tuple[PieceRef, ...]
    recipes: tuple[RecipeEntry, ...]
    files: tuple[FileEntry, ...]


# -- writing -------------------------------------------------------------------------------------------------


def pack_line(header: PackHeader, repository_name: str) -> bytes:
    """The first line."""
    return _line(
        {
            "kind": "pack",
            "pack": header.pack.hex(),
            "archive": header.archive.hex(),
            "repository": header.repository,
            "repository_name": repository_name,
            "retention_class": header.retention_class,
            "created_ns": header.created,
        }
    )


def piece_line(piece: PieceRef) -> bytes:
    """A piece that is stored in this pack."""
    return _line(
        {
            "kind": "piece",
            "offset": piece.offset,
            "stored": piece.stored_bytes,
            "raw": piece.raw_bytes,
            "codec": int(piece.codec),
            "type": int(piece.kind),
            "sha256": piece.sha256.hex(),
        }
    )


def recipe_line(sha256: Sha256, size_bytes: int, span: Span) -> bytes:
    """A recipe record in this pack."""
    entry = {"kind": "recipe", "offset": span.offset, "length": span.length, "size": size_bytes, "sha256": sha256.hex()}
    return _line(entry)


def file_line(sha256: Sha256, hints: FileHints) -> bytes:
    """A file that is a content of this pack. Attributes that make it too long are left out, and it says so."""
    entry: dict[str, Any] = {
        "kind": "file",
        "sha256": sha256.hex(),
        **_path(hints.path),
        "inode": hints.inode,
        "version": hints.version,
        "mode": hints.mode,
        "uid": hints.uid,
        "gid": hints.gid,
        "mtime_ns": hints.mtime_ns,
        "ctime_ns": hints.ctime_ns,
    }
    if hints.is_open:
        entry["open"] = True
    extras: dict[str, Any] = {}
    if hints.xattrs:
        extras["xattrs"] = {_base64(name): _base64(value) for name, value in hints.xattrs.items()}
    if hints.dicom is not None:
        extras["dicom"] = dict(hints.dicom.attributes)
    line = _line(entry | extras)
    return line if len(line) <= LINE_BYTES_MAX else _line(entry | {"incomplete": True})


def pressed(lines: list[bytes]) -> bytes:
    """The catalogue as it is stored."""
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(b"".join(lines))


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _path(path: bytes) -> dict[str, str]:
    """Readable where it is UTF-8, exact where it is not."""
    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path_base64": _base64(path)}


# -- reading -------------------------------------------------------------------------------------------------


def read_catalogue(stored: bytes, raw_bytes: int, pack: PackId) -> Catalogue:
    """The catalogue in its stored bytes. Raises Damaged; lines and keys of later formats are passed over."""
    what = f"the catalogue of pack {pack.hex()}"
    if raw_bytes > RAW_BYTES_MAX:
        raise errors.Damaged(what=what)
    plain = inflate(stored, raw_bytes)
    first: tuple[PackHeader, str] | None = None
    pieces: list[PieceRef] = []
    recipes: list[RecipeEntry] = []
    files: list[FileEntry] = []
    try:
        for entry in _entries(plain):
            kind = entry["kind"]
            if kind == "pack":
                first = _read_pack(entry)
            elif kind == "piece":
                pieces.append(_read_piece(entry, pack))
            elif kind == "recipe":
                span = Span(_count(entry["offset"]), _count(entry["length"]))
                recipes.append(RecipeEntry(_hash(entry["sha256"]), _count(entry["size"]), span))
            elif kind == "file":
                files.append(FileEntry(_hash(entry["sha256"]), _read_hints(entry)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise errors.Damaged(what=what) from error
    if first is None or first[0].pack != pack:
        raise errors.Damaged(what=what)
    return Catalogue(first[0], first[1], tuple(pieces), tuple(recipes), tuple(files))


def _entries(plain: bytes) -> Iterator[dict[str, Any]]:
    for line in plain.removesuffix(b"\n").split(b"\n"):
        if len(line) > LINE_BYTES_MAX:
            raise ValueError("line too long")
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise TypeError("not an object")
        yield entry


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("not a number that counts something")
    return value


def _signed(value: object) -> int:
    """Times before 1970 are negative."""
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError("not a time")
    return value


def _hash(value: str) -> Sha256:
    found = bytes.fromhex(value)
    if len(found) != 32:
        raise ValueError("not a SHA-256")
    return Sha256(found)


def _read_pack(entry: dict[str, Any]) -> tuple[PackHeader, str]:
    header = PackHeader(
        PackId(bytes.fromhex(entry["pack"])),
        bytes.fromhex(entry["archive"]),
        RepositoryId(_count(entry["repository"])),
        _count(entry["retention_class"]),
        Instant(_count(entry["created_ns"])),
    )
    return header, str(entry["repository_name"])


def _read_piece(entry: dict[str, Any], pack: PackId) -> PieceRef:
    piece = PieceRef(
        pack,
        _count(entry["offset"]),
        _count(entry["stored"]),
        _count(entry["raw"]),
        codec_of(_count(entry["codec"])),
        kind_of(_count(entry["type"])),
        _hash(entry["sha256"]),
    )
    if not piece.stored_bytes - TAG_BYTES <= piece.raw_bytes <= PIECE_BYTES_MAX:
        raise ValueError("a piece too long")
    return piece


def _read_hints(entry: dict[str, Any]) -> FileHints:
    exact = entry.get("path_base64")
    path = entry["path"].encode() if exact is None else base64.b64decode(exact, validate=True)
    facts = entry.get("dicom")
    return FileHints(
        path=path,
        inode=Inode(_count(entry["inode"])),
        version=Version(_count(entry["version"])),
        mode=_count(entry["mode"]),
        uid=_count(entry["uid"]),
        gid=_count(entry["gid"]),
        mtime_ns=_signed(entry["mtime_ns"]),
        ctime_ns=_signed(entry["ctime_ns"]),
        xattrs={base64.b64decode(k): base64.b64decode(v) for k, v in entry.get("xattrs", {}).items()},
        dicom=None if facts is None else Facts({str(k): str(v) for k, v in facts.items()}),
        is_open=entry.get("open") is True,
    )
