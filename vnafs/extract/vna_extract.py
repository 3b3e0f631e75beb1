#!/usr/bin/env python3
"""vna-extract: list and extract everything that is on a target of vnafs, without vnafs.

    python3 vna_extract.py TARGET-URL OUT      extract every file under its name into OUT
    python3 vna_extract.py TARGET-URL --list   say what there is
    … --key FILE                               of an encrypted archive: a file with its recovery key

One file, which imports nothing of vnafs: copy it anywhere. It needs Python 3.11, the public packages `zstandard` and
`xxhash`, `imagecodecs` where pixels are stored as images (the default), `boto3` for s3:// or `azure-storage-blob` for
azure://, and `cryptography` for what is encrypted. FORMAT.md tells every byte that it reads. It is longer than a module
should be because being one file is its purpose; each part below knows only those above it.

Names come from the newest usable manifests, exact and as of one moment; without any, from the catalogues of the packs,
as files were called when they were packed. Every piece and every file is compared with its SHA-256 before it gets its
name; what cannot be given back right is reported, and everything else goes on. The target is only read. One thread;
memory is bounded, an index of what there is lies in a temporary file (TMPDIR).

Exit codes: 0 everything is there, 1 not yet (the target cannot be reached, OUT is full), 2 wrong usage, 3 refused
(the key is missing or wrong, or a later version made it), 4 something is damaged or missing.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import contextlib
import dataclasses
import datetime as dt
import errno
import functools
import hashlib
import hmac
import io
import ipaddress
import itertools
import json
import os
import re
import sqlite3
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import xxhash
import zstandard

MEBIBYTE = 1024 * 1024
PIECE_BYTES_MAX = 16 * MEBIBYTE
TAG_BYTES = 16
"""Of what is encrypted, behind each part."""
RECIPE_BYTES_MAX = 80 * MEBIBYTE
CATALOGUE_BYTES_MAX = 128 * MEBIBYTE
MANIFEST_RAW_BYTES_MAX = 256 * MEBIBYTE
OBJECT_BYTES_MAX = 300 * MEBIBYTE
"""Of a manifest object."""
TAIL_BYTES = 64 * 1024
"""Read from the end of a pack: its footer and usually its catalogue."""
BLOCK_BYTES = 4 * MEBIBYTE
BLOCKS_MAX = 32
"""Kept of packs from which much is wanted."""
BASES_MAX = 64
"""Kept of pieces that others lean on."""
TOGETHER_BYTES_MAX = 8 * MEBIBYTE
"""Neighbouring pieces are read in one request up to this."""
EMPTY = hashlib.sha256().digest()
ROOT = 1


# -- what can go wrong -------------------------------------------------------------------------------------------


class ExtractError(Exception):
    """Something that a user should read."""

    exit_code = 4


class Unreachable(ExtractError):
    """The target does not answer, or OUT takes no more: nothing is known to be lost; try again."""

    exit_code = 1


class Usage(ExtractError):
    """The command line is wrong."""

    exit_code = 2


class Refused(ExtractError):
    """Not for this program: encrypted with a key that is not here, or of a later format."""

    exit_code = 3


class Damaged(ExtractError):
    """Bytes that are not what they should be."""


class Missing(ExtractError):
    """The target answers, and has no such object."""


# -- targets: where objects are ----------------------------------------------------------------------------------


class Target(Protocol):
    """Objects by name. Raises Missing, Refused, Unreachable."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names that begin so, and their sizes in bytes."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """At most *length* bytes from *offset* on: fewer where the object ends."""


class DirectoryTarget:
    """A directory."""

    def __init__(self, root: str) -> None:
        self._root = root

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Target. *prefix* ends with a slash."""
        if not os.path.isdir(self._root):
            raise Unreachable(f"{self._root} is no directory; is the disk mounted?")
        for folder, folders, files in os.walk(os.path.join(self._root, prefix), onerror=self._walk_failed):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                yield os.path.relpath(path, self._root), os.stat(path).st_size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Target."""
        try:
            with open(os.path.join(self._root, name), "rb") as file:
                left = os.fstat(file.fileno()).st_size - offset
                file.seek(offset)
                return file.read(max(0, min(length, left)))
        except FileNotFoundError as problem:
            if not os.path.isdir(self._root):
                raise self._unreachable(problem) from problem
            raise Missing(f"{name} is not on the target") from problem
        except OSError as problem:
            if problem.errno == errno.EIO:
                raise Damaged(f"{name} cannot be read from its disk: {problem.strerror}") from problem
            raise self._unreachable(problem) from problem

    def _walk_failed(self, problem: OSError) -> None:
        if not isinstance(problem, FileNotFoundError):  # a target need not have such objects
            raise self._unreachable(problem) from problem

    def _unreachable(self, problem: OSError) -> Unreachable:
        return Unreachable(f"{self._root}: {problem.strerror}")


VERSIONS_MAX = 65_536
"""Names on a bucket whose first version is remembered."""


class S3Target:
    """A bucket. In one that keeps versions an object is its first: what was written over it is not vnafs's."""

    def __init__(self, bucket: str, prefix: str, options: dict[str, str]) -> None:
        try:
            import boto3  # noqa: PLC0415 - only s3:// needs it
            from botocore import exceptions  # noqa: PLC0415
            from botocore.config import Config  # noqa: PLC0415
        except ImportError as problem:
            raise Usage("s3:// needs the package boto3") from problem
        proxy, endpoint = options.get("proxy"), options.get("endpoint")
        config = Config(
            region_name=options.get("region", "us-east-1"),
            retries={"total_max_attempts": 1, "mode": "standard"},  # Patient does
            s3={"addressing_style": "path" if endpoint else "auto"},
            proxies={"http": proxy, "https": proxy} if proxy else {},
        )
        if boto3.session.Session().get_credentials() is None:
            raise Usage("s3:// needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        self._client: Any = boto3.client("s3", endpoint_url=endpoint, verify=options.get("ca"), config=config)
        self._bucket = bucket
        self._prefix = prefix
        self._answered: type[Exception] = exceptions.ClientError
        self._failed: type[Exception] = exceptions.BotoCoreError
        self._keeps_versions: bool | None = None
        self._first: dict[str, str] = {}

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Target. What is hidden behind a delete marker is listed, too."""
        with self._translated(prefix):
            if self._versions_are_kept():
                for name, first in self._first_versions(prefix):
                    yield name, first["Size"]
                return
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    yield found["Key"][len(self._prefix) :], found["Size"]

    def _versions_are_kept(self) -> bool:
        """And may be looked at. Asked once."""
        if self._keeps_versions is None:
            try:
                status = self._client.get_bucket_versioning(Bucket=self._bucket).get("Status")
                self._keeps_versions = bool(status)
                if status:
                    self._client.list_object_versions(Bucket=self._bucket, MaxKeys=1)
            except self._answered:  # it lacks the call, or we the right: then the newest is what there is
                self._keeps_versions = False
        return self._keeps_versions

    def _first_versions(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Each name with any bytes, and its first version: the last that is listed."""
        before: Any = None
        pages = self._client.get_paginator("list_object_versions")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
            for found in page.get("Versions", ()):
                if before is not None and before["Key"] != found["Key"]:
                    yield before["Key"][len(self._prefix) :], before
                before = found
        if before is not None:
            yield before["Key"][len(self._prefix) :], before

    def _version(self, name: str) -> dict[str, str]:
        if not self._versions_are_kept():
            return {}
        if name not in self._first:
            first = next((first for found, first in self._first_versions(name) if found == name), None)
            if first is None:
                return {}
            if len(self._first) == VERSIONS_MAX:
                self._first.clear()
            self._first[name] = first["VersionId"]
        return {"VersionId": self._first[name]}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Target."""
        try:
            with self._translated(name):
                span = f"bytes={offset}-{offset + length - 1}"
                which = {"Bucket": self._bucket, "Key": self._prefix + name, **self._version(name)}
                answer = self._client.get_object(**which, Range=span)
                with contextlib.closing(answer["Body"]) as body:
                    return bytes(body.read())
        except EOFError:
            return b""

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._answered as problem:
            answer: dict[str, Any] = getattr(problem, "response", {})
            code = str(answer.get("Error", {}).get("Code", ""))
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "NoSuchKey":
                raise Missing(f"{name} is not on the target") from problem
            if status == 416:  # begins at or past the end
                raise EOFError from problem
            if status in {400, 401, 403}:
                raise Refused(f"the target refuses to give {name}: {code}; check the credentials") from problem
            raise Unreachable(f"the target answers {status} {code}") from problem
        except self._failed as problem:
            raise Unreachable(str(problem)) from problem


class AzureTarget:
    """A container."""

    def __init__(self, account: str, container: str, prefix: str, options: dict[str, str]) -> None:
        try:
            from azure.core import exceptions  # noqa: PLC0415 - only azure:// needs it
            from azure.core.pipeline.transport import RequestsTransport  # noqa: PLC0415
            from azure.storage.blob import ContainerClient  # noqa: PLC0415
        except ImportError as problem:
            raise Usage("azure:// needs the package azure-storage-blob") from problem
        proxy = options.get("proxy")
        self._container: Any = ContainerClient(
            _account_url(account, options.get("endpoint", "").rstrip("/")),
            container,
            credential=_azure_secret(account),
            transport=RequestsTransport(use_env_settings=False, connection_verify=options.get("ca", True)),
            proxies={"http": proxy, "https": proxy} if proxy else {},
            retry_total=0,  # Patient does
            max_single_get_size=BLOCK_BYTES,
            max_chunk_get_size=BLOCK_BYTES,
        )
        self._prefix = prefix
        self._answered: type[Exception] = exceptions.HttpResponseError
        self._failed: type[Exception] = exceptions.AzureError

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Target."""
        with self._translated(prefix):
            for found in self._container.list_blobs(name_starts_with=self._prefix + prefix):
                yield found.name[len(self._prefix) :], found.size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Target."""
        try:
            with self._translated(name):
                return bytes(self._container.download_blob(self._prefix + name, offset, length).readall())
        except EOFError:
            return b""

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._failed as problem:
            status = getattr(problem, "status_code", None)
            code = getattr(getattr(problem, "error_code", ""), "value", getattr(problem, "error_code", ""))
            if code == "BlobNotFound":
                raise Missing(f"{name} is not on the target") from problem
            if status == 416:  # begins at or past the end
                raise EOFError from problem
            if status in {400, 401, 403}:
                raise Refused(f"the target refuses to give {name}: {code}; check the credentials") from problem
            raise Unreachable(f"the target answers {status} {code}" if status else str(problem)) from problem


def _account_url(account: str, endpoint: str) -> str:
    """The blob service; emulators at a bare address have the account in the path."""
    if not endpoint:
        return f"https://{account}.blob.core.windows.net"
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    bare = "." not in host
    with contextlib.suppress(ValueError):
        bare = bool(ipaddress.ip_address(host)) or bare
    return f"{endpoint}/{account}" if bare and not parts.path.strip("/") else endpoint


def _azure_secret(account: str) -> Any:
    """From the usual variables, as vnafs takes it."""
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential  # noqa: PLC0415 - see AzureTarget

    pairs = dict(
        part.split("=", 1) for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";") if "=" in part
    )
    key = os.environ.get("AZURE_STORAGE_KEY") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY") or pairs.get("AccountKey")
    token = os.environ.get("AZURE_STORAGE_SAS_TOKEN") or pairs.get("SharedAccessSignature")
    if key:
        return AzureNamedKeyCredential(account, key)
    if token:
        return AzureSasCredential(token.lstrip("?"))
    raise Usage("azure:// needs AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING")


class Patient:
    """A target around one that may fail for a while."""

    WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)

    def __init__(self, target: Target, sleep: Callable[[float], None] = time.sleep) -> None:
        self._target = target
        self._sleep = sleep

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Target. Begins again after a failure, past what it has given."""
        given: set[str] = set()
        for wait in (*self.WAITS_SECONDS, None):
            try:
                for name, size in self._target.list(prefix):
                    if name not in given:
                        given.add(name)
                        yield name, size
            except Unreachable:
                if wait is None:
                    raise
                self._sleep(wait)
            else:
                return

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Target."""
        for wait in self.WAITS_SECONDS:
            try:
                return self._target.read(name, offset, length)
            except Unreachable:
                self._sleep(wait)
        return self._target.read(name, offset, length)


_OPTIONS = {"file": set[str](), "s3": {"endpoint", "region", "proxy", "ca"}, "azure": {"endpoint", "proxy", "ca"}}


def open_target(url: str) -> Target:
    """The target of a URL as vnafs writes it, or of a plain path. Raises Usage."""
    if "://" not in url:
        return DirectoryTarget(os.path.abspath(url))
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/")
    options = dict(parse_qsl(parts.query))
    if parts.scheme not in _OPTIONS:
        raise Usage(f"{url}: begin with file://, s3:// or azure://")
    if unknown := options.keys() - _OPTIONS[parts.scheme]:
        raise Usage(f"unknown option of {parts.scheme}://: {', '.join(sorted(unknown))}")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not path:
            raise Usage(f"{url}: write file:///absolute/path")
        return DirectoryTarget("/" + path)
    if not parts.netloc:
        raise Usage(f"{url}: names no {'bucket' if parts.scheme == 's3' else 'account'}")
    if parts.scheme == "s3":
        return Patient(S3Target(parts.netloc, path and path + "/", options))
    container, _, prefix = path.partition("/")
    if not container:
        raise Usage(f"{url}: write azure://ACCOUNT/CONTAINER/PREFIX")
    return Patient(AzureTarget(parts.netloc, container, prefix and prefix + "/", options))


# -- bytes: FORMAT.md, both parts --------------------------------------------------------------------------------

_ZSTD = zstandard.ZstdDecompressor()
_U64 = struct.Struct("<Q")
_MUST_UNDERSTAND = 0xFFFF0000


def inflate(
    stored: bytes | memoryview, raw_bytes: int, what: str, decompressor: zstandard.ZstdDecompressor = _ZSTD
) -> bytes:
    """The content of a zstd frame that says it has so many bytes. Raises Damaged before it takes more."""
    try:
        if zstandard.frame_content_size(stored) != raw_bytes:
            raise Damaged(f"{what} does not say what it should")
        if not raw_bytes:
            return b""
        return decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as problem:
        raise Damaged(f"{what} cannot be decompressed") from problem


class Envelope(NamedTuple):
    """How an object is encrypted: which key wraps its data key, and the data key wrapped."""

    key: bytes
    wrapped: bytes


_ENVELOPE = struct.Struct("<HHI16s16s128s")


def check_envelope(data: bytes, magic: bytes, header_bytes: int, encryption_at: int, what: str) -> Envelope | None:
    """What headers of packs and manifests have in common (F-6, M-4); None: not encrypted. Raises Damaged, Refused."""
    if len(data) < header_bytes or data[:8] != magic:
        raise Damaged(f"the header of {what} is damaged")
    version, length, flags = struct.unpack_from("<HHI", data, 8)
    if version > 1:
        raise Refused(f"{what} was made with format version {version}; use a newer vna-extract")
    guard = _U64.unpack_from(data, header_bytes - 8)[0]
    if version != 1 or length != header_bytes or guard != xxhash.xxh3_64_intdigest(data[: header_bytes - 8]):
        raise Damaged(f"the header of {what} is damaged")
    if flags & _MUST_UNDERSTAND:
        raise Refused(f"{what} was made with flags {flags:#x}; use a newer vna-extract")
    encryption, wrapped_bytes, _, key, _, wrapped = _ENVELOPE.unpack_from(data, encryption_at)
    if encryption > 1:
        raise Refused(f"{what} was made with encryption {encryption}; use a newer vna-extract")
    return Envelope(key, wrapped[:wrapped_bytes]) if encryption else None


# -- keys: FORMAT.md, "Encryption" -------------------------------------------------------------------------------

_SCRYPT_BYTES_MAX = 256 * MEBIBYTE
_SIGNS = 1
"""The number under which keyrings file the keys that sign receipts: nothing is encrypted with these."""
Opener = Callable[[int, int, bytes | memoryview], bytes]
"""Decrypts what is stored as a kind of part at an offset of one object. Raises Damaged."""
PIECE_PART, RECIPE_PART, CATALOGUE_PART, MANIFEST_PART = 1, 2, 3, 4


def derived(secret: bytes, purpose: bytes) -> bytes:
    """A key for one purpose."""
    return hmac.digest(secret, purpose + b"\x01", "sha256")


def unwrap(secret: bytes, wrapped: bytes, purpose: bytes) -> bytes:
    """A key that was wrapped with one derived from *secret* (RFC 3394). Raises Damaged."""
    try:
        from cryptography.hazmat.primitives import keywrap  # noqa: PLC0415 - only what is encrypted needs it
    except ImportError as problem:
        raise Usage("what is encrypted needs the package cryptography") from problem
    try:
        return keywrap.aes_key_unwrap(derived(secret, purpose), wrapped)
    except (keywrap.InvalidUnwrap, ValueError) as problem:
        raise Damaged("a wrapped key is damaged, or the key is another's") from problem


class Keys:
    """Every key that a secret opens."""

    def __init__(self, target: Target, text: bytes) -> None:
        """Read the keyrings of *target*. *text*: what the key file says. Raises Refused when none opens."""
        self._keys: dict[bytes, bytes] = {}
        self.repositories: set[int] = set()
        """Those with keys: their packs are encrypted."""
        secret = recovery_secret(text.decode("ascii", "replace")) or text.rstrip(b"\r\n")
        root: bytes | None = None
        why: ExtractError = Refused("there is no keyring on the target")
        for name in sorted(keyrings(target), reverse=True):
            try:
                document = self._document(target, name)
                root = root or self._root(document, secret, name)
                self._take(document, root, name)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                why = Damaged(f"{name} is damaged")
            except (Damaged, Missing, Refused) as problem:
                why = problem
        if root is None:
            raise why

    @staticmethod
    def _document(target: Target, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(target.read(name, 0, OBJECT_BYTES_MAX))
        if int(document["version"]) > 1:
            raise Refused(f"{name} was made with format version {document['version']}; use a newer vna-extract")
        return document

    @staticmethod
    def _root(document: dict[str, Any], secret: bytes, name: str) -> bytes:
        for slot in document["slots"]:
            n, r, p = int(slot["n"]), int(slot["r"]), int(slot["p"])
            if slot["kdf"] != "scrypt" or min(n - 1, r, p) < 1 or n & (n - 1) or 128 * n * r * p > _SCRYPT_BYTES_MAX:
                continue
            memory = 256 * n * r * p
            salt = bytes.fromhex(slot["salt"])
            stretched = hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=32)
            with contextlib.suppress(Damaged):
                return unwrap(stretched, bytes.fromhex(slot["wrapped"]), b"vnafs: wraps the root key, 1")
        raise Refused(f"the key does not open {name}")

    def _take(self, document: dict[str, Any], root: bytes, name: str) -> None:
        rest = {key: value for key, value in document.items() if key not in {"guard", "sha256"}}
        plain = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        guard = hmac.digest(derived(root, b"vnafs: guards the keyring, 1"), plain, "sha256")
        if not hmac.compare_digest(guard.hex(), str(document["guard"])):
            raise Damaged(f"{name} is damaged, or of another root key")
        for entry in document["keys"]:
            if int(entry["repository"]) == _SIGNS:
                continue
            self.repositories.add(int(entry["repository"]))
            wrapped = bytes.fromhex(entry["wrapped"])
            self._keys[bytes.fromhex(entry["id"])] = unwrap(root, wrapped, b"vnafs: wraps keys of repositories, 1")

    def opener(self, envelope: Envelope, about: bytes, what: str) -> Opener:
        """What decrypts the object *what*. Raises Refused, Damaged."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        key = self._keys.get(envelope.key)
        if key is None:
            raise Refused(f"{what} is encrypted with key {envelope.key.hex()}, which no keyring has")
        data_key = unwrap(key, envelope.wrapped, b"vnafs: wraps data keys, 1")

        def opened(part: int, offset: int, stored: bytes | memoryview) -> bytes:
            try:
                return AESGCM(data_key).decrypt(struct.pack("<IQ", part, offset), stored, about)
            except (InvalidTag, ValueError) as problem:
                raise Damaged(f"{what} is damaged at {offset}") from problem

        return opened


def keyrings(target: Target) -> list[str]:
    """The names of the keyrings on a target."""
    names = re.compile(r"keys/[0-9a-f]{16}\.keys")
    return [name for name, _ in target.list("keys/") if names.fullmatch(name)]


def recovery_secret(text: str) -> bytes | None:
    """The 20 bytes of a recovery key, forgiving case, spaces and look-alikes; None when it is none."""
    bare = "".join(letter for letter in text.upper() if letter.isalnum()).translate(str.maketrans("018", "OIB"))
    try:
        data = base64.b32decode(bare)
    except (binascii.Error, ValueError):
        return None
    check = hashlib.sha256(b"vnafs recovery key" + data[:20]).digest()[:5]
    return data[:20] if len(data) == 25 and data[20:] == check else None


PUT, DELETE, DELETE_PREFIX, RUN = 1, 2, 3, 4
SEGMENT_KIND, RUN_KIND, SNAPSHOT_KIND = 1, 2, 3


class Row(NamedTuple):
    """One row of a manifest."""

    operation: int
    key: bytes
    value: bytes


class Manifest(NamedTuple):
    """A manifest object whose bytes are right."""

    kind: int
    archive: bytes
    more: bool
    number: int
    created_ns: int
    previous: bytes
    sha256: bytes
    """Of the object."""
    plain: bytes

    def rows(self) -> Iterator[Row]:
        """Its rows. Raises Damaged, Refused."""
        at = 0
        while at < len(self.plain):
            operation = self.plain[at]
            if not PUT <= operation <= RUN:
                raise Refused(f"a manifest row has operation {operation}; use a newer vna-extract")
            key, at = _sized(self.plain, at + 1)
            value = b""
            if operation in {PUT, RUN}:
                value, at = _sized(self.plain, at)
            yield Row(operation, key, value)


_MANIFEST = struct.Struct("<16sHHIQQ32sQQ32s")


def read_manifest(data: bytes, what: str, keys: Keys | None) -> Manifest:
    """A manifest object. Raises Damaged, Refused."""
    envelope = check_envelope(data, b"\x89VNAMF\r\n", 384, 136, what)
    archive, kind, more, _, number, created, previous, stored, raw, sha256 = _MANIFEST.unpack_from(data, 16)
    if not SEGMENT_KIND <= kind <= SNAPSHOT_KIND:
        raise Refused(f"{what} is of kind {kind}; use a newer vna-extract")
    body = memoryview(data)[384:]
    if len(body) != stored or raw > MANIFEST_RAW_BYTES_MAX or hashlib.sha256(body).digest() != sha256:
        raise Damaged(f"{what} is damaged")
    whole = hashlib.sha256(data).digest()
    if keys is not None:
        if envelope is None:
            raise Damaged(f"{what} should be encrypted and is not")  # anybody could have made it
        body = memoryview(keys.opener(envelope, data[:88], what)(MANIFEST_PART, 0, body))
    elif envelope is not None:
        raise Refused(f"{what} is encrypted; name a file with the recovery key with --key")
    return Manifest(kind, archive, bool(more), number, created, previous, whole, inflate(body, raw, what))


def _sized(plain: bytes, at: int) -> tuple[bytes, int]:
    length = shift = 0
    while True:
        if at >= len(plain) or shift > 28:
            raise Damaged("a manifest row is cut short")
        byte = plain[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if at + length > len(plain):
        raise Damaged("a manifest row is cut short")
    return plain[at : at + length], at + length


class Entry(NamedTuple):
    """One piece of a recipe."""

    pack: bytes
    raw_bytes: int
    stored_bytes: int
    codec: int
    offset: int
    sha256: bytes


_RECIPE_HEAD = struct.Struct("<4sIQ32sII")
_ENTRY = struct.Struct("<IIIBBHQ32s")


def read_recipe(record: bytes, home: bytes, sha256: bytes) -> list[Entry]:
    """The pieces of a content. Raises Damaged."""
    what = f"a recipe in pack {home.hex()}"
    if len(record) < _RECIPE_HEAD.size + 8:
        raise Damaged(f"{what} is cut short")
    magic, length, size, content, count, others = _RECIPE_HEAD.unpack_from(record)
    first = _RECIPE_HEAD.size + 16 * others
    end = first + _ENTRY.size * count
    if magic != b"RCPE" or length != len(record) or end + 8 != length or content != sha256:
        raise Damaged(f"{what} is damaged")
    if _U64.unpack_from(record, end)[0] != xxhash.xxh3_64_intdigest(memoryview(record)[:end]):
        raise Damaged(f"{what} is damaged")
    packs = [home, *(record[at : at + 16] for at in range(_RECIPE_HEAD.size, first, 16))]
    entries = []
    for number, raw, stored, codec, _, _, offset, digest in _ENTRY.iter_unpack(memoryview(record)[first:end]):
        if number >= len(packs) or not 0 < stored <= raw + TAG_BYTES or not 0 < raw <= PIECE_BYTES_MAX:
            raise Damaged(f"{what} is damaged")
        entries.append(Entry(packs[number], raw, stored, codec, offset, digest))
    if sum(entry.raw_bytes for entry in entries) != size:
        raise Damaged(f"{what} is damaged")
    return entries


HTJ2K, JPEG_XL, ZSTD_AFTER_BASE = 3, 4, 5
_IMAGE_HEAD = struct.Struct("<QIIBBBB")
_SIZ = struct.Struct(">HHHHIIIIIIIIH")


def read_image(stored: memoryview, codec: int, raw_bytes: int, what: str) -> bytes:
    """The samples of an image and its tail (F-17 to F-19). Raises Damaged before it takes more; Refused."""
    if len(stored) <= _IMAGE_HEAD.size:
        raise Damaged(f"{what} is cut short")
    guard, rows, columns, samples, size, flags, tail = _IMAGE_HEAD.unpack_from(stored)
    stream, end = bytes(stored[_IMAGE_HEAD.size : len(stored) - tail]), bytes(stored[len(stored) - tail :])
    sane = rows and columns and samples in (1, 3) and size in (1, 2) and flags < (4 if samples == 3 else 2)
    if guard != xxhash.xxh3_64_intdigest(stored[8:]) or not sane or rows * columns * samples * size + tail != raw_bytes:
        raise Damaged(f"{what} is damaged")
    if image_size(stream, codec) != (rows, columns):
        raise Damaged(f"{what} is another image than it says")
    try:
        import imagecodecs  # noqa: PLC0415 - only images need it

        decode = imagecodecs.htj2k_decode if codec == HTJ2K else imagecodecs.jpegxl_decode
    except (ImportError, AttributeError) as problem:
        raise Refused(
            f"{what} is an image; install the public package imagecodecs and go on with --resume"
        ) from problem
    try:
        pixels = decode(stream).reshape(rows, columns, samples).astype(f"<u{size}", casting="equiv")
    except (RuntimeError, ValueError, TypeError) as problem:
        raise Damaged(f"{what} cannot be decoded") from problem
    if flags & 1:
        pixels ^= 1 << 8 * size - 1
    if flags & 2:
        pixels = pixels.transpose(2, 0, 1)
    return bytes(pixels.tobytes()) + end


def image_size(stream: bytes, codec: int) -> tuple[int, int]:
    """Rows and columns that a codestream begins with; zeros for what is none (15444-1 A.5.1, 18181-1 SizeHeader)."""
    if codec == HTJ2K:
        if len(stream) < _SIZ.size:
            return 0, 0
        soc, siz, _, _, columns, rows, *offsets, _ = _SIZ.unpack_from(stream)
        right = (soc, siz, offsets) == (0xFF4F, 0xFF51, [0, 0, columns, rows, 0, 0])
        return (rows, columns) if right else (0, 0)
    at = 0
    if stream[4:8] == b"JXL ":  # a container: boxes of length and name (18181-2)
        for _ in range(8):
            length, name = int.from_bytes(stream[at : at + 4], "big"), stream[at + 4 : at + 8]
            if name == b"jxlc":
                at += 16 if length == 1 else 8
                break
            at += max(length, 8)
    if stream[at : at + 2] != b"\xff\x0a":
        return 0, 0
    bits = int.from_bytes(stream[at + 2 : at + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits % (1 << count), bits >> count
        return value

    eights = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if eights else take((9, 13, 18, 30)[take(2)]) + 1

    rows, ratio = side(), take(3)
    across, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return rows, rows * across // down if ratio else side()


class Base(NamedTuple):
    """A piece of the same pack that another one leans on: the head of what does."""

    guard: int
    offset: int
    stored_bytes: int
    raw_bytes: int


_BASE = struct.Struct("<QQII")
BASE_BYTES_MAX = 64 * 1024


def read_leaning(entry: Entry, stored: memoryview, fetch_base: Callable[[Base], bytes], what: str) -> bytes:
    """What is stored as it differs from a base (F-20 to F-22). Raises Damaged before it takes more, and Refused."""
    if len(stored) <= _BASE.size:
        raise Damaged(f"{what} is cut short")
    base = Base(*_BASE.unpack_from(stored))
    sane = 0 < base.stored_bytes <= base.raw_bytes + TAG_BYTES and 0 < base.raw_bytes <= BASE_BYTES_MAX
    if not sane or base.offset + base.stored_bytes > entry.offset:
        raise Damaged(f"{what} is damaged")
    before = zstandard.ZstdCompressionDict(fetch_base(base), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return inflate(stored[_BASE.size :], entry.raw_bytes, what, zstandard.ZstdDecompressor(dict_data=before))


def read_piece(entry: Entry, stored: memoryview, fetch_base: Callable[[Base], bytes]) -> bytes:
    """The raw bytes of a piece, equal to its SHA-256. Raises Damaged, Refused."""
    what = f"a piece at {entry.offset} in pack {entry.pack.hex()}"
    if entry.codec > ZSTD_AFTER_BASE:
        raise Refused(f"{what} was made with codec {entry.codec}; use a newer vna-extract")
    if entry.codec == 0:
        raw = bytes(stored)
    elif entry.codec in (HTJ2K, JPEG_XL):
        raw = read_image(stored, entry.codec, entry.raw_bytes, what)
    elif entry.codec == ZSTD_AFTER_BASE:
        raw = read_leaning(entry, stored, fetch_base, what)
    else:
        raw = inflate(stored, entry.raw_bytes, what)
    if entry.codec == 2:
        half, mixed = (len(raw) + 1) // 2, bytearray(len(raw))
        mixed[0::2], mixed[1::2] = raw[:half], raw[half:]
        raw = bytes(mixed)
    if len(raw) != entry.raw_bytes or hashlib.sha256(raw).digest() != entry.sha256:
        raise Damaged(f"{what} is damaged")
    return raw


def pack_name(pack: bytes) -> str:
    """Where a pack is on a target."""
    return f"packs/{pack.hex()[:2]}/{pack.hex()}.pack"


def pack_opener(header: bytes, pack: bytes, keys: Keys | None) -> Opener | None:
    """What decrypts a pack, whose first bytes are *header*; None: it is not encrypted. Raises Damaged, Refused."""
    what = f"pack {pack.hex()}"
    envelope = check_envelope(header[:256], b"\x89VNAPK\r\n", 256, 72, what)
    if header[16:32] != pack:
        raise Damaged(f"{what} is another one")
    if envelope is None:
        if keys is not None and _U64.unpack_from(header, 48)[0] in keys.repositories:
            raise Damaged(f"{what} should be encrypted and is not")  # anybody could have made it
        return None
    if keys is None:
        raise Refused(f"{what} is encrypted; name a file with the recovery key with --key")
    return keys.opener(envelope, pack, what)


def read_catalogue(target: Target, pack: bytes, size: int, keys: Keys | None) -> list[dict[str, Any]]:
    """The lines of a pack's catalogue, in one read or two, and one of the header where things are encrypted.

    Raises Damaged, Refused, Missing, Unreachable.
    """
    name, what = pack_name(pack), f"pack {pack.hex()}"
    opener = None if keys is None else pack_opener(target.read(name, 0, 256), pack, keys)
    tail = target.read(name, max(0, size - TAIL_BYTES), TAIL_BYTES)
    footer = tail[-160:]
    if len(footer) < 160 or footer[152:] != b"VNAPKEND":
        raise Damaged(f"{what} was cut short, or its footer is damaged")
    version, length = struct.unpack_from("<HH", footer, 148)
    if version > 1:
        raise Refused(f"{what} was made with format version {version}; use a newer vna-extract")
    offset, stored, raw, guard = struct.unpack_from("<QQQQ", footer, 40)
    if (
        length != 160
        or footer[8:24] != pack
        or _U64.unpack_from(footer)[0] != xxhash.xxh3_64_intdigest(footer[8:])
        or offset + stored + 160 != size
        or raw > CATALOGUE_BYTES_MAX
    ):
        raise Damaged(f"the footer of {what} is damaged")
    data = tail[-160 - stored : -160] if stored + 160 <= len(tail) else target.read(name, offset, stored)
    if len(data) != stored or xxhash.xxh3_64_intdigest(data) != guard:
        raise Damaged(f"the catalogue of {what} is damaged")
    if opener is not None:
        data = opener(CATALOGUE_PART, offset, data)
    try:
        return [json.loads(line) for line in inflate(data, raw, f"the catalogue of {what}").split(b"\n") if line]
    except ValueError as problem:
        raise Damaged(f"the catalogue of {what} is damaged") from problem


# -- names -------------------------------------------------------------------------------------------------------


def is_name(name: bytes) -> bool:
    """Whether it can stand in a directory, and leads nowhere else."""
    return name not in {b"", b".", b".."} and b"/" not in name and b"\0" not in name


def components(path: bytes) -> list[bytes]:
    """The names in a path below OUT. Raises Damaged for one that could lead elsewhere."""
    names = path.split(b"/")
    if not all(map(is_name, names)):
        raise Damaged("its path would lead elsewhere")
    return names


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which paths to list or extract."""

    repository: bytes | None = None
    prefix: tuple[bytes, ...] = ()

    def takes(self, path: bytes) -> bool:
        """Whether *path* is one of them."""
        names = tuple(path.split(b"/"))
        return self.repository in {None, names[0]} and names[: len(self.prefix)] == self.prefix

    def enters(self, path: bytes) -> bool:
        """Whether some below *path* may be."""
        names = tuple(path.split(b"/"))
        shared = min(len(names), len(self.prefix))
        return self.repository in {None, names[0]} and names[:shared] == self.prefix[:shared]


def shown(path: bytes) -> str:
    """A path on one line of a terminal."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def exact(name: str, value: bytes) -> dict[str, str]:
    """Bytes in JSON: readable where they are UTF-8, exact where they are not."""
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


# -- the index: what there is, in a temporary file ---------------------------------------------------------------


class Place(NamedTuple):
    """Where the recipe record of a content is, and its size in bytes."""

    pack: bytes
    offset: int
    length: int
    size: int
    others: bytes
    """Ids of other packs that it needs, joined, as far as they are known without reading it."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One name to list or extract."""

    path: bytes
    kind: str
    """`directory`, `file`, `symlink` or `other`."""
    repository: int = 0
    inode: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    link: bytes = b""
    xattrs: str = "{}"
    """JSON, base64 to base64."""
    size: int = 0
    sha256: bytes | None = None
    pack: bytes | None = None
    """Where its recipe is."""
    offset: int = 0
    why: str = ""
    """Why there are no bytes of it."""


_COLUMNS = [field.name for field in dataclasses.fields(Item)]
_SCHEMA = f"""
PRAGMA journal_mode = DELETE;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (id BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE contents (sha256 BLOB, repository INTEGER, pack BLOB, offset INTEGER, length INTEGER, size INTEGER,
    others BLOB, PRIMARY KEY (sha256, repository, pack, offset)) WITHOUT ROWID;
CREATE INDEX contents_of_pack ON contents (pack);
CREATE TABLE hints (repository INTEGER, path BLOB, pack BLOB, created INTEGER, inode INTEGER, version INTEGER,
    whole INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, mtime INTEGER, ctime INTEGER, sha256 BLOB, xattrs TEXT);
CREATE INDEX hints_by_path ON hints (path);
CREATE TABLE items ({", ".join(_COLUMNS)}, PRIMARY KEY (path)) WITHOUT ROWID;
CREATE INDEX items_of_pack ON items (pack, offset, inode);
"""


class Index:
    """Tables in a temporary file, so that memory does not grow with the archive."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(_SCHEMA)

    # rows of manifests

    def apply(self, rows: Iterable[Row]) -> None:
        """Bring rows into the maps. Raises Refused for a map that is not known."""
        for operation, group in itertools.groupby(rows, lambda row: row.operation):
            kept = [row for row in group if self._is_kept(row)]
            if operation == PUT:
                self.db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", [row[1:] for row in kept])
            elif operation == DELETE:
                self.db.executemany("DELETE FROM rows WHERE key = ?", [(row.key,) for row in kept])
            elif operation == DELETE_PREFIX:
                spans = [(row.key, _after(row.key)) for row in kept]
                self.db.executemany("DELETE FROM rows WHERE key >= ? AND key < ?", spans)

    @staticmethod
    def _is_kept(row: Row) -> bool:
        if row.key[:1] not in {b"n", b"s", b"a"}:
            raise Refused(f"a manifest row is of map {row.key[:1]!r}; use a newer vna-extract")
        return row.key[:1] != b"a" and row.key[:2] != b"sP"

    def row(self, key: bytes) -> bytes | None:
        """The value of a key."""
        found = self.db.execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin so, without the prefix, and their values, in order."""
        query = "SELECT key, value FROM rows WHERE key >= ? AND key < ? ORDER BY key"
        for key, value in self.db.execute(query, (prefix, _after(prefix))):
            yield key[len(prefix) :], value

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Everything inside at once, or nothing of it."""
        self.db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    # packs, contents, items

    def add_pack(self, pack: bytes, size: int) -> None:
        """An object that is there."""
        self.db.execute("INSERT OR REPLACE INTO packs VALUES (?, ?)", (pack, size))

    def has_pack(self, pack: bytes) -> bool:
        """Whether it is there."""
        return self.db.execute("SELECT 1 FROM packs WHERE id = ?", (pack,)).fetchone() is not None

    def add_content(self, sha256: bytes, repository: int, place: Place) -> None:
        """A content whose recipe is known."""
        row = (sha256, repository, place.pack, place.offset, place.length, place.size, place.others)
        self.db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def gone(self, place: Place) -> list[bytes]:
        """Which packs that it needs are not there."""
        needed = [place.pack, *(place.others[at : at + 16] for at in range(0, len(place.others), 16))]
        return [pack for pack in needed if not self.has_pack(pack)]

    def places(self, sha256: bytes | None, repository: int, pack: bytes | None = None) -> list[Place]:
        """Where a content's recipe is: in *pack* if it can be, then in its repository, then anywhere."""
        query = (
            "SELECT pack, offset, length, size, others FROM contents WHERE sha256 = ?"
            " ORDER BY pack IS NOT ?, repository != ?, pack"
        )
        return [Place(*row) for row in self.db.execute(query, (sha256, pack, repository))]

    def add_item(self, item: Item) -> None:
        """A name; of two equal ones the first stays."""
        values = [getattr(item, name) for name in _COLUMNS]
        self.db.execute(f"INSERT OR IGNORE INTO items VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - only `?`

    def items(self, kind: str = "", order: str = "path") -> Iterator[Item]:
        """Items of a kind, or all."""
        query = f"SELECT * FROM items WHERE ? IN ('', kind) ORDER BY {order}"  # noqa: S608 - our own words
        for row in self.db.execute(query, (kind,)):
            yield Item(*row)

    def totals(self) -> tuple[int, int]:
        """Files and their bytes."""
        files, size = self.db.execute("SELECT COUNT(*), TOTAL(size) FROM items WHERE kind = 'file'").fetchone()
        return files, int(size)

    def share_wanted(self, pack: bytes) -> float:
        """Which part of the contents at home in a pack is wanted."""
        query = "SELECT (SELECT COUNT(*) FROM items WHERE pack = ?), (SELECT COUNT(*) FROM contents WHERE pack = ?)"
        wanted, there = self.db.execute(query, (pack, pack)).fetchone()
        return wanted / there if there else 0.0


def _after(prefix: bytes) -> bytes:
    """The first key past all that begin so."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\xff" * 64


# -- saying what happens -----------------------------------------------------------------------------------------


class Console:
    """Results on standard output, problems and progress on standard error."""

    def __init__(self, out: BinaryIO, errors: io.TextIOBase, *, as_json: bool) -> None:
        self._out = out
        self._errors = errors
        self._as_json = as_json
        self._live = errors.isatty()
        self._next = 0.0
        self.worst = 0
        self.counts: collections.Counter[str] = collections.Counter()

    def note(self, text: str) -> None:
        """For the user, without consequences."""
        self._errors.write(f"{self._clear()}vna-extract: {text}\n")

    def problem(self, problem: ExtractError | str) -> None:
        """Something is not as it should be, and shows in the exit code; damage before anything else."""
        self.worst = max(self.worst, problem.exit_code if isinstance(problem, ExtractError) else 4)
        self.note(str(problem))

    def result(self, item: Item, result: str, problem: ExtractError | None = None, **more: object) -> None:
        """What became of one item."""
        self.counts[result] += 1
        if self._as_json:
            why = {"why": str(problem)} if problem else {}
            self.line({**exact("path", item.path), "kind": item.kind, "result": result, **more, **why})
        if problem is not None:
            self.worst = max(self.worst, problem.exit_code)
            self.note(f"{result}: {shown(item.path)}: {problem}")

    def line(self, document: dict[str, Any]) -> None:
        """One JSON document."""
        self._out.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def text(self, text: str) -> None:
        """One line."""
        self._out.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def progress(self, text: str, *values: object) -> None:
        """Where things are, now and then, on a terminal; *values* go where *text* has braces."""
        if self._live and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            words = [shown(value) if isinstance(value, bytes) else value for value in values]
            self._errors.write(f"\r{text.format(*words)[:100]}\x1b[K")
            self._errors.flush()

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""


# -- manifests: exact names as of one moment ---------------------------------------------------------------------

_INODE = struct.Struct(">BBBHIIIqqqqqqq")
_CONTENT = struct.Struct(">B32sqqqqI")
_PACK_VERSIONS = {1, 2, 3}
_FROZEN_BYTES = 73


class Manifests:
    """The manifests of a target, brought into the index."""

    def __init__(self, target: Target, keys: Keys | None, index: Index, console: Console) -> None:
        self._target = target
        self._keys = keys
        self._index = index
        self._console = console
        self._segments: set[int] = set()
        self.archive = b""
        self.number = 0
        self.created_ns = 0

    def load(self) -> bool:
        """Load the newest state that can be had (M-10). False when there is none; says why. Raises Unreachable."""
        self._segments = set(self._numbers("segment"))
        snapshots = sorted(self._numbers("snapshot"), reverse=True)
        if not snapshots:
            return False
        for number in snapshots:
            try:
                with self._index.change():
                    self._load(number)
            except (Damaged, Missing) as problem:
                self._console.problem(f"snapshot {number} cannot be used: {problem}")
            else:
                return True
        return False

    def _numbers(self, kind: str) -> Iterator[int]:
        names = re.compile(rf"manifests/{kind}s/([0-9a-f]{{16}})\.{kind}")
        for name, _ in self._target.list(f"manifests/{kind}s/"):
            if found := names.fullmatch(name):
                yield int(found[1], 16)

    def _get(self, name: str, kind: int) -> Manifest:
        found = read_manifest(self._target.read(name, 0, OBJECT_BYTES_MAX), name, self._keys)
        if found.kind != kind or self.archive not in {b"", found.archive}:
            raise Damaged(f"{name} is something else")
        return found

    def _load(self, number: int) -> None:
        self.archive = b""
        snapshot = self._get(f"manifests/snapshots/{number:016x}.snapshot", SNAPSHOT_KIND)
        if snapshot.number != number:
            raise Damaged(f"it says that it is {snapshot.number}")
        self.archive = snapshot.archive
        begin = number
        for count, row in enumerate(snapshot.rows()):
            if row.operation == RUN:
                self._console.progress("loading run {} of snapshot {}", count, number)
                self._load_run(row.value)
            elif row.key == b"afrom" and row.value.isdigit():
                begin = int(row.value)
        self._replay(snapshot, begin)

    def _load_run(self, value: bytes) -> None:
        if len(value) != 48:
            raise Damaged("it names a run that is none")
        text = value[16:].hex()
        run = self._get(f"manifests/runs/{text[:2]}/{text}.run", RUN_KIND)
        if run.sha256 != value[16:]:
            raise Damaged(f"run {text} is damaged")
        self._index.apply(run.rows())

    def _replay(self, snapshot: Manifest, begin: int) -> None:
        """Apply segments past *begin* while they follow; what counts is committed."""
        self.number, self.created_ns = begin, snapshot.created_ns
        if begin >= snapshot.number:
            self._commit()
        before: bytes | None = None
        for at in itertools.count(begin + 1):
            try:
                segment = self._segment(at, before)
            except (Damaged, Missing) as problem:
                why = problem
                break
            if at == snapshot.number and segment.sha256 != snapshot.previous:
                raise Damaged(f"segment {at} is another one")
            self._console.progress("replaying segment {}", at)
            self._index.apply(segment.rows())
            before = segment.sha256
            if not segment.more:
                self.number, self.created_ns = at, segment.created_ns
                if at >= snapshot.number:
                    self._commit()
        if self.number < snapshot.number:
            raise why
        self._index.db.execute("ROLLBACK")  # segments whose change goes on in one that is not there
        if at <= (head := max(self._segments, default=0)):
            self._console.problem(f"segments {self.number + 1} to {head} cannot be used: {why}")

    def _segment(self, number: int, before: bytes | None) -> Manifest:
        if number not in self._segments:
            raise Missing(f"segment {number} is not there")
        segment = self._get(f"manifests/segments/{number:016x}.segment", SEGMENT_KIND)
        if segment.number != number or (before is not None and segment.previous != before):
            raise Damaged(f"segment {number} does not follow the one before it")
        return segment

    def _commit(self) -> None:
        self._index.db.execute("COMMIT")
        self._index.db.execute("BEGIN")


class ManifestTree:
    """Turns loaded rows into items."""

    def __init__(self, index: Index, console: Console, wanted: Wanted) -> None:
        self._index = index
        self._console = console
        self._wanted = wanted

    def fill(self) -> None:
        """Contents, then every name from the root on."""
        with self._index.change():
            self._fill_contents()
            seen = {ROOT}
            folders = [(ROOT, b"")]
            while folders:
                inode, path = folders.pop()
                for below, name in self._names(inode, path):
                    if below not in seen:  # damage could make a directory its own ancestor
                        seen.add(below)
                        folders.append((below, name))

    def _fill_contents(self) -> None:
        packs: dict[int, bytes] = {}
        for key, value in self._index.rows(b"sK"):
            if value[0] not in _PACK_VERSIONS:
                raise Refused(f"a pack row has version {value[0]}; use a newer vna-extract")
            packs[int.from_bytes(key, "big")] = value[1:17]
        for _, value in self._index.rows(b"sC"):
            if value[0] != 1:
                raise Refused(f"a content row has version {value[0]}; use a newer vna-extract")
            _, sha256, size, repository, home, offset, length = _CONTENT.unpack_from(value)
            leans_on = [number for (number,) in struct.iter_unpack(">Q", value[_CONTENT.size :])]
            if all(number in packs for number in (home, *leans_on)):
                others = b"".join(packs[number] for number in leans_on)
                self._index.add_content(sha256, repository, Place(packs[home], offset, length, size, others))

    def _names(self, folder: int, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Add the names in a directory; gives the directories among them."""
        for name, value in self._index.rows(b"nE" + struct.pack(">Q", folder)):
            below = b"/".join([*([path] if path else []), name])
            if not self._wanted.enters(below):
                continue
            self._console.progress("reading names: {}", below)
            try:
                inode = _inode_of(name, value)
                item = self._item(below, inode)
            except ExtractError as problem:
                self._console.result(Item(below, "other"), "damaged", problem)
                continue
            if item.kind == "directory":
                yield inode, below
            if self._wanted.takes(below):
                self._index.add_item(item)

    def _item(self, path: bytes, inode: int) -> Item:
        value = self._index.row(b"nI" + struct.pack(">Q", inode))
        if value is None or len(value) < 101:
            raise Damaged("its inode is not there")
        if value[0] != 1:
            raise Refused(f"its inode row has version {value[0]}; use a newer vna-extract")
        _, _, flags, mode, uid, gid, _, size, _, atime, mtime, _, _, repository = _INODE.unpack_from(value)
        item = Item(path, "other", repository, inode, mode, uid, gid, atime, mtime)
        if flags & 1:
            item = dataclasses.replace(item, xattrs=self._xattrs(inode))
        if stat.S_ISDIR(mode):
            return dataclasses.replace(item, kind="directory")
        if stat.S_ISLNK(mode):
            link = self._index.row(b"nL" + struct.pack(">Q", inode)) or b""
            return dataclasses.replace(item, kind="symlink", link=link, size=len(link))
        if not stat.S_ISREG(mode):
            rdev = int.from_bytes(value[101:109], "big") if flags & 4 else 0
            return dataclasses.replace(item, rdev=rdev)
        item = dataclasses.replace(item, kind="file", size=size)
        if flags & 2:
            return self._with_bytes(item, [value[101:133]])
        if not size and int.from_bytes(value[93:101], "big", signed=True) not in {-1, (1 << 63) - 1}:
            return self._with_bytes(item, [EMPTY])  # closed, and not sealed yet (M-19)
        version = int.from_bytes(value[89:93], "big")
        frozen = self._frozen(inode)
        before = [value[101:133]] if flags & 8 else []
        younger = [sha256 for of, sha256 in frozen if of >= version]
        return self._with_bytes(item, [*younger, *before, *(sha256 for of, sha256 in frozen if of < version)])

    def _with_bytes(self, item: Item, digests: Sequence[bytes]) -> Item:
        for sha256 in digests:
            for place in self._index.places(sha256, item.repository):
                return dataclasses.replace(item, sha256=sha256, size=place.size, pack=place.pack, offset=place.offset)
            if sha256 == EMPTY:
                return dataclasses.replace(item, sha256=EMPTY, size=0)
        why = "its newest bytes never came to the target; --catalogues may find older ones"
        return dataclasses.replace(item, sha256=digests[0] if digests else None, why=why)

    def _frozen(self, inode: int) -> list[tuple[int, bytes]]:
        """What a file that was open when it was last seen had in it, with the version, the youngest first (M-17)."""
        value = self._index.row(b"sW" + struct.pack(">Q", inode))
        if value is None or value[0] != 1:
            return []
        copies = range(26, len(value) - _FROZEN_BYTES + 1, _FROZEN_BYTES)
        return [(int.from_bytes(value[at + 1 : at + 9], "big"), value[at + 9 : at + 41]) for at in reversed(copies)]

    def _xattrs(self, inode: int) -> str:
        found = self._index.rows(b"nX" + struct.pack(">Q", inode))
        return json.dumps({_base64(name): _base64(value) for name, value in found})


def _inode_of(name: bytes, entry: bytes) -> int:
    if not is_name(name):
        raise Damaged("its path would lead elsewhere")
    if len(entry) < 9 or entry[0] >> 4 not in {1, 2}:
        raise Refused("its entry is of another version; use a newer vna-extract")
    return int.from_bytes(entry[1:9], "big")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- catalogues: names as they were when packs were written ------------------------------------------------------


class CatalogueTree:
    """Turns the catalogues of all packs into items."""

    def __init__(self, target: Target, keys: Keys | None, index: Index, console: Console, wanted: Wanted) -> None:
        self._target = target
        self._keys = keys
        self._index = index
        self._console = console
        self._wanted = wanted

    def fill(self, *, all_versions: bool) -> None:
        """Read every catalogue, then choose. A pack that cannot be listed is reported."""
        packs = self._index.db.execute("SELECT id, size FROM packs ORDER BY id").fetchall()
        with self._index.change():
            for count, (pack, size) in enumerate(packs):
                self._console.progress("reading catalogue {} of {}", count, len(packs))
                try:
                    self._read(pack, read_catalogue(self._target, pack, size, self._keys))
                except (Damaged, Missing, Refused) as problem:
                    self._console.problem(type(problem)(f"{problem}; the files in it are not known"))
                except (KeyError, TypeError, ValueError, AttributeError):
                    self._console.problem(f"the catalogue of pack {pack.hex()} is damaged; not all its files are known")
        with self._index.change():
            self._choose(all_versions=all_versions)
            self._make_room()

    def _read(self, pack: bytes, lines: list[dict[str, Any]]) -> None:
        head = lines[0]
        repository, created = int(head["repository"]), int(head["created_ns"])
        for line in lines:
            if line["kind"] == "recipe":
                place = Place(pack, int(line["offset"]), int(line["length"]), int(line["size"]), b"")
                self._index.add_content(bytes.fromhex(line["sha256"]), repository, place)
            elif line["kind"] == "file":
                self._add_hint(repository, pack, created, line)

    def _add_hint(self, repository: int, pack: bytes, created: int, line: dict[str, Any]) -> None:
        path = base64.b64decode(line["path_base64"]) if "path_base64" in line else line["path"].encode()
        attributes = [int(line[name]) for name in ("mode", "uid", "gid", "mtime_ns", "ctime_ns")]
        xattrs = {str(name): str(value) for name, value in line.get("xattrs", {}).items()}
        row = (
            *(repository, path, pack, created, int(line["inode"]), int(line["version"]), not line.get("open", False)),
            *(*attributes, bytes.fromhex(line["sha256"]), json.dumps(xattrs)),
        )
        self._index.db.execute(f"INSERT INTO hints VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - only `?`

    def _choose(self, *, all_versions: bool) -> None:
        """Of each path the newest version, and the others under names of their own when they are wanted."""
        query = (
            "SELECT path, repository, pack, inode, version, mode, uid, gid, mtime, sha256, xattrs FROM hints"
            " ORDER BY path, created DESC, ctime DESC, version DESC, whole DESC, mtime DESC"
        )
        for path, group in itertools.groupby(self._index.db.execute(query), lambda row: row[0]):
            seen: set[bytes] = set()
            for _, repository, pack, inode, version, mode, uid, gid, mtime, sha256, xattrs in group:
                if sha256 in seen or (not all_versions and (seen or not path)):
                    continue
                name = path
                if seen or not path:
                    name = path or b"unnamed"
                    name = self._free(b"%s.~v%d~" % (name, version), b"%s.~v%d.%d~" % (name, version, inode))
                seen.add(sha256)
                item = Item(name, "file", repository, inode, mode or 0o100644, uid, gid, mtime, mtime, 0, b"", xattrs)
                self._add(dataclasses.replace(item, sha256=sha256), pack)

    def _add(self, item: Item, pack: bytes) -> None:
        if not self._wanted.takes(item.path):
            return
        try:
            components(item.path)
        except Damaged as problem:
            self._console.result(item, "damaged", problem)
            return
        for place in self._index.places(item.sha256, item.repository, pack):
            self._index.add_item(dataclasses.replace(item, size=place.size, pack=place.pack, offset=place.offset))
            return
        self._index.add_item(dataclasses.replace(item, why="no pack that can be listed has its recipe"))

    def _make_room(self) -> None:
        """A path that was a file once and a directory at another time: the file gets another name."""
        for item in list(self._colliding()):
            self._index.db.execute("DELETE FROM items WHERE path = ?", (item.path,))
            path = self._free(item.path + b".~file~", b"%s.~file.%d~" % (item.path, item.inode))
            self._console.note(f"{shown(item.path)} was a file and a directory; the file is {shown(path)}")
            self._index.add_item(dataclasses.replace(item, path=path))

    def _colliding(self) -> Iterator[Item]:
        for item in self._index.items():
            below = (item.path + b"/", item.path + b"0")  # 0 comes right after /
            if self._index.db.execute("SELECT 1 FROM items WHERE path > ? AND path < ?", below).fetchone():
                yield item

    def _free(self, *names: bytes) -> bytes:
        """The first name that is not in use, or else the last."""
        for name in names:
            if not self._index.db.execute("SELECT 1 FROM items WHERE path = ?", (name,)).fetchone():
                return name
        return names[-1]


# -- bytes of files ----------------------------------------------------------------------------------------------


class Packs:
    """Ranges of packs: whole blocks, kept for a while, of a pack from which much is wanted, else no more than asked."""

    def __init__(self, target: Target, keys: Keys | None, index: Index) -> None:
        self._target = target
        self._keys = keys
        self._index = index
        self._known: collections.OrderedDict[bytes, tuple[bool, Opener | None]] = collections.OrderedDict()
        self._blocks: collections.OrderedDict[tuple[bytes, int], bytes] = collections.OrderedDict()

    def opened(self, pack: bytes, part: int, offset: int, stored: memoryview) -> memoryview:
        """What was stored at *offset*, decrypted where it is encrypted. Raises as `read` does."""
        _, opener = self._look(pack)
        return stored if opener is None else memoryview(opener(part, offset, stored))

    def read(self, pack: bytes, offset: int, length: int) -> memoryview:
        """Exactly these bytes, as they are stored. Raises Damaged, Missing, Refused, Unreachable."""
        dense, _ = self._look(pack)
        if dense:
            first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
            parts = [self._block(pack, number) for number in range(first, last + 1)]
            data = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
            data = data[offset - first * BLOCK_BYTES :][:length]
        else:
            data = memoryview(self._target.read(pack_name(pack), offset, length))
        if len(data) != length:
            raise Damaged(f"pack {pack.hex()} was cut short")
        return data

    def _look(self, pack: bytes) -> tuple[bool, Opener | None]:
        """Whether much of it is wanted, and what decrypts it."""
        if pack not in self._known:
            dense = self._index.share_wanted(pack) >= 0.5
            header = self._block(pack, 0) if dense else self._target.read(pack_name(pack), 0, 256)
            self._known[pack] = dense, pack_opener(header, pack, self._keys)
            if len(self._known) > 10_000:
                self._known.popitem(last=False)
        return self._known[pack]

    def _block(self, pack: bytes, number: int) -> bytes:
        block = self._blocks.get((pack, number))
        if block is None:
            block = self._target.read(pack_name(pack), number * BLOCK_BYTES, BLOCK_BYTES)
            self._blocks[pack, number] = block
            if len(self._blocks) > BLOCKS_MAX:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end((pack, number))
        return block


class Contents:
    """The bytes of contents, rebuilt piece by piece."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._bases: collections.OrderedDict[tuple[bytes, Base], bytes] = collections.OrderedDict()

    def pieces(self, place: Place, sha256: bytes) -> Iterator[bytes]:
        """In order; each equals its SHA-256, and when the last one has been given all together equal *sha256*."""
        if not 0 < place.length <= RECIPE_BYTES_MAX:
            raise Damaged(f"a recipe in pack {place.pack.hex()} is too long")
        stored = self._packs.read(place.pack, place.offset, place.length)
        record = bytes(self._packs.opened(place.pack, RECIPE_PART, place.offset, stored))
        entries = read_recipe(record, place.pack, sha256)
        digest = hashlib.sha256()
        for group in _neighbours(entries):
            start = group[0].offset
            stored = self._packs.read(group[0].pack, start, group[-1].offset + group[-1].stored_bytes - start)
            for entry in group:
                at = entry.offset - start
                plain = self._packs.opened(entry.pack, PIECE_PART, entry.offset, stored[at : at + entry.stored_bytes])
                piece = read_piece(entry, plain, functools.partial(self._base, entry.pack))
                digest.update(piece)
                yield piece
        if digest.digest() != sha256:
            raise Damaged("its bytes do not have its SHA-256")

    def _base(self, pack: bytes, base: Base) -> bytes:
        """The raw bytes of a base, kept for what leans on it next."""
        raw = self._bases.get((pack, base))
        if raw is None:
            what = f"a piece at {base.offset} in pack {pack.hex()}"
            stored = self._packs.read(pack, base.offset, base.stored_bytes)
            raw = inflate(self._packs.opened(pack, PIECE_PART, base.offset, stored), base.raw_bytes, what)
            if xxhash.xxh3_64_intdigest(raw) != base.guard:
                raise Damaged(f"{what} is damaged")
            self._bases[pack, base] = raw
            if len(self._bases) > BASES_MAX:
                self._bases.popitem(last=False)
        return raw


def _neighbours(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Pieces that lie one behind the other, so that one request gets them."""
    group: list[Entry] = []
    for entry in entries:
        if group and not (
            entry.pack == group[-1].pack
            and entry.offset == group[-1].offset + group[-1].stored_bytes
            and entry.offset + entry.stored_bytes - group[0].offset <= TOGETHER_BYTES_MAX
        ):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


# -- OUT ---------------------------------------------------------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDERS_OPEN_MAX = 128


class Out:
    """The tree that is written. Everything is done relative to directories that were opened without following links.

    A file has another name until all of it is there and right.
    """

    def __init__(self, path: str, *, owner: bool) -> None:
        os.makedirs(path, exist_ok=True)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self._owner = owner
        self._part = b".vna-extract-%d.part" % os.getpid()
        self.xattrs_left_out = 0

    def is_empty(self) -> bool:
        """Whether nothing is there yet."""
        return not os.listdir(self._root)

    def close(self) -> None:
        """Let go of everything."""
        for folder in (*self._folders.values(), self._root):
            os.close(folder)

    # directories

    def make_folder(self, path: bytes) -> None:
        """A directory in which we can write for now."""
        self._folder(path)

    def finish_folder(self, item: Item) -> None:
        """Give a directory what it had, once nothing more is written into it."""
        self._attributes(self._folder(item.path), item)

    def _folder(self, path: bytes) -> int:
        """The directory, made where it is missing; open until many others were asked for."""
        if not path or path in self._folders:
            return self._folders.get(path, self._root)
        known = path
        while known and known not in self._folders:
            known = known.rpartition(b"/")[0]
        folder = self._folders.get(known, self._root)
        for name in components(path[len(known) :].lstrip(b"/")):
            known = known + b"/" + name if known else name
            self._folders[known] = folder = self._step(folder, name)
            if len(self._folders) > _FOLDERS_OPEN_MAX:
                os.close(self._folders.popitem(last=False)[1])
        return folder

    @staticmethod
    def _step(above: int, name: bytes) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
        try:
            folder = os.open(name, _DIRECTORY, dir_fd=above)
        except PermissionError:  # as an earlier run left it
            os.chmod(name, 0o700, dir_fd=above)
            folder = os.open(name, _DIRECTORY, dir_fd=above)
        status = os.fstat(folder)
        if status.st_mode & 0o300 != 0o300 and status.st_uid == os.geteuid():
            os.fchmod(folder, 0o700)
        return folder

    def _at(self, path: bytes) -> tuple[int, bytes]:
        components(path)
        parent, _, name = path.rpartition(b"/")
        return self._folder(parent), name

    # files

    def holds(self, item: Item) -> bool:
        """Whether the file is there with the right bytes."""
        folder, name = self._at(item.path)
        try:
            file = open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")  # noqa: SIM115 - see below
        except OSError:
            return False
        with file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != item.size:
                return False
            digest = hashlib.sha256()
            while block := file.read(MEBIBYTE):
                digest.update(block)
            if digest.digest() != item.sha256:
                return False
            self._attributes(file.fileno(), item)
            return True

    def write(self, item: Item, pieces: Iterable[bytes]) -> None:
        """A file, if its pieces come to their end."""
        folder, name = self._at(item.path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with open(os.open(self._part, flags, 0o600, dir_fd=self._root), "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                self._attributes(file.fileno(), item)
            os.rename(self._part, name, src_dir_fd=self._root, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._root)
            raise

    def link(self, first: bytes, path: bytes) -> None:
        """Another name for a file that is there."""
        there, leaf = self._at(first)
        os.link(leaf, self._part, src_dir_fd=there, dst_dir_fd=self._root, follow_symlinks=False)
        folder, name = self._at(path)
        os.rename(self._part, name, src_dir_fd=self._root, dst_dir_fd=folder)
        with contextlib.suppress(FileNotFoundError):  # rename(2) leaves it when both are one file already
            os.unlink(self._part, dir_fd=self._root)

    # what is neither

    def make(self, item: Item) -> None:
        """A symbolic link or a node."""
        folder, name = self._at(item.path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        if item.kind == "symlink":
            os.symlink(item.link, name, dir_fd=folder)
        elif stat.S_ISFIFO(item.mode):
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif self._owner:
            os.mknod(name, item.mode & 0o170600, item.rdev, dir_fd=folder)
        else:
            raise Refused("a device or socket is only made by root with --owner")
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (folder, name), item)
        if self._owner:
            os.chown(name, item.uid, item.gid, dir_fd=folder, follow_symlinks=False)
        if item.kind != "symlink":
            os.chmod(name, self._mode(item), dir_fd=folder)
        os.utime(name, ns=(item.atime_ns, item.mtime_ns), dir_fd=folder, follow_symlinks=False)

    # attributes

    def _attributes(self, file: int, item: Item) -> None:
        self._set_xattrs(file, item)
        if self._owner:
            os.fchown(file, item.uid, item.gid)
        os.fchmod(file, self._mode(item))
        os.utime(file, ns=(item.atime_ns, item.mtime_ns))

    def _mode(self, item: Item) -> int:
        """Without its owner a file must not run as somebody else."""
        mode = stat.S_IMODE(item.mode)
        return mode if self._owner else mode & ~(stat.S_ISUID | stat.S_ISGID)

    def _set_xattrs(self, at: int | bytes, item: Item) -> None:
        for name, value in json.loads(item.xattrs).items():
            try:
                os.setxattr(at, base64.b64decode(name), base64.b64decode(value), follow_symlinks=isinstance(at, int))
            except (OSError, ValueError, AttributeError):  # not permitted, not supported here, no Linux
                self.xattrs_left_out += 1


# -- the work ----------------------------------------------------------------------------------------------------


class Extraction:
    """Brings every item of the index into OUT."""

    def __init__(
        self, target: Target, keys: Keys | None, index: Index, out: Out, console: Console, *, resume: bool
    ) -> None:
        self._index = index
        self._out = out
        self._console = console
        self._resume = resume
        self._contents = Contents(Packs(target, keys, index))
        self._bytes = 0
        self._first: Item | None = None

    def run(self) -> None:
        """Directories, files in the order of packs, links and nodes; attributes of directories last."""
        for item in self._index.items("directory"):
            self._one(item, lambda item: self._out.make_folder(item.path))
        files, size = self._index.totals()
        for done, item in enumerate(self._index.items("file", "pack, offset, inode, path")):
            self._console.progress("{} of {} files, {} of {} MB", done, files, self._bytes >> 20, size >> 20)
            self._one(item, self._file)
        for item in (*self._index.items("symlink"), *self._index.items("other")):
            self._one(item, self._out.make, done="written")
        for item in self._index.items("directory", "path DESC"):
            self._one(item, self._out.finish_folder, done="written")

    def _one(self, item: Item, work: Callable[[Item], str | None], done: str = "") -> None:
        """Do it, and say what became of it."""
        try:
            result = work(item) or done
        except Unreachable:
            raise
        except Refused as problem:
            self._console.result(item, "refused", problem)
        except Missing as problem:
            self._console.result(item, "missing", problem)
        except ExtractError as problem:
            self._console.result(item, "damaged", problem)
        except OSError as problem:
            if problem.errno in _FULL:
                raise Unreachable(f"OUT takes no more: {problem.strerror}; go on with --resume") from problem
            self._console.result(item, "failed", Unreachable(f"it cannot be written: {problem.strerror}"))
        else:
            if result:
                self._console.result(item, result)

    def _file(self, item: Item) -> str:
        if item.why or item.sha256 is None:
            raise Missing(item.why)
        if self._first is not None and item.inode == self._first.inode and item.sha256 == self._first.sha256:
            with contextlib.suppress(OSError):  # a file system without hard links gets another file
                self._out.link(self._first.path, item.path)
                return "linked"
        self._first = None
        if self._resume and self._out.holds(item):
            result = "kept"
        else:
            self._write(item, item.sha256)
            result = "written"
        self._bytes += item.size
        self._first = item
        return result

    def _write(self, item: Item, sha256: bytes) -> None:
        """From the first place that has it right."""
        problems: list[ExtractError] = []
        for place in self._index.places(sha256, item.repository, item.pack):
            try:
                self._out.write(item, self._contents.pieces(place, sha256))
            except (Damaged, Missing, Refused) as problem:
                problems.append(problem)
            else:
                return
        if sha256 == EMPTY:
            self._out.write(item, [])
        else:
            raise problems[0] if problems else Missing("its bytes are not on the target")


def list_items(index: Index, console: Console, *, as_json: bool) -> None:
    """One line for each item; what is known to be missing is a problem."""
    for item in index.items():
        gone = [index.gone(place) for place in index.places(item.sha256, item.repository, item.pack)]
        why = f"pack {gone[0][0].hex()} is not on the target" if gone and all(gone) else item.why
        pack = item.pack.hex() if item.pack else None
        sha256 = item.sha256.hex() if item.sha256 else None
        if as_json:
            known = {name: getattr(item, name) for name in ("kind", "size", "mode", "uid", "gid", "mtime_ns", "inode")}
            document = {**exact("path", item.path), **known, "sha256": sha256, "pack": pack}
            document |= {"xattrs": json.loads(item.xattrs)} if item.xattrs != "{}" else {}
            document |= exact("link", item.link) if item.kind == "symlink" else {}
            console.line(document | ({"why": why} if why else {}))
        elif item.kind != "directory":
            console.text(f"{item.size:>14} {sha256 or '-':<64} {pack or '-':<32} {shown(item.path)}")
        if why:
            console.problem(Missing(f"missing: {shown(item.path)}: {why}"))


def fill(target: Target, keys: Keys | None, index: Index, console: Console, choice: argparse.Namespace) -> None:
    """Find out what there is. Raises Refused, Unreachable, Usage."""
    wanted = Wanted(
        os.fsencode(choice.repository) if choice.repository else None,
        tuple(name for name in os.fsencode(choice.path).split(b"/") if name),
    )
    names = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{32})\.pack")
    with index.change():
        for name, size in target.list("packs/"):
            if found := names.fullmatch(name):
                index.add_pack(bytes.fromhex(found[1]), size)
    manifests = Manifests(target, keys, index, console)
    if not choice.catalogues and manifests.load():
        if choice.all_versions:
            raise Usage("older versions are only in catalogues: add --catalogues")
        when = dt.datetime.fromtimestamp(manifests.created_ns / 1e9, dt.UTC)
        console.note(
            f"archive {manifests.archive.hex()} as of {when:%Y-%m-%d %H:%M:%S} UTC (segment {manifests.number})"
        )
        ManifestTree(index, console, wanted).fill()
        return
    if not choice.catalogues:
        console.note("there are no usable manifests; names come from the catalogues of packs, as they were then")
    CatalogueTree(target, keys, index, console, wanted).fill(all_versions=choice.all_versions)


# -- the command line --------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(
        prog="vna-extract",
        description="Lists and extracts everything from a target of vnafs, without vnafs.",
        epilog="Exit codes: 0 all is there, 1 not yet, 2 usage, 3 refused, 4 damaged or missing. Credentials come from "
        "the provider's usual environment variables.",
    )
    add = parser.add_argument
    add("target", metavar="TARGET-URL", help="file:///PATH, s3://BUCKET/PREFIX?endpoint=…, azure://ACCOUNT/CONTAINER/…")
    add("out", metavar="OUT", nargs="?", help="a directory that is empty or does not exist")
    add("--list", action="store_true", help="only list: size, SHA-256, pack and path")
    add("--json", action="store_true", help="a JSON document on each line of standard output")
    add("--resume", action="store_true", help="OUT has files of an earlier run: keep those that are right")
    add("--repository", metavar="NAME", default="", help="only this top-level directory")
    add(
        "--path",
        metavar="PREFIX",
        default="",
        help="only what is at or below this path, which begins with the repository",
    )
    add("--catalogues", action="store_true", help="names as files were packed, even where there are manifests")
    add("--all-versions", action="store_true", help="from catalogues: older versions too, as NAME.~vN~")
    add("--owner", action="store_true", help="set owner and group, and all mode bits (root)")
    add("--key", metavar="FILE", help="a file with the recovery key, or the key file, of an encrypted archive")
    return parser


def keys_for(target: Target, file: str | None) -> Keys | None:
    """The keys of an encrypted archive; None for one that is not. Raises Refused, Usage."""
    if not keyrings(target):
        if file:
            raise Refused(
                "there is no keyring on the target: it is not encrypted, or they were removed; without --key it "
                "is read as one that is not"
            )
        return None
    if not file:
        raise Refused("this archive is encrypted; name a file with its recovery key with --key")
    try:
        with open(file, "rb") as stream:
            return Keys(target, stream.read(4096))
    except OSError as problem:
        raise Usage(f"{file} cannot be read: {problem.strerror}") from problem


def run(choice: argparse.Namespace, console: Console) -> None:
    """Do what was asked. Raises ExtractError."""
    if not choice.list and not choice.out:
        raise Usage("say where to extract to, or --list")
    if choice.owner and os.geteuid() != 0:
        raise Usage("--owner needs root")
    target = open_target(choice.target)
    keys = keys_for(target, choice.key)
    with tempfile.TemporaryDirectory(prefix="vna-extract-") as scratch, contextlib.ExitStack() as stack:
        index = Index(os.path.join(scratch, "index"))
        stack.callback(index.db.close)
        if choice.list:
            fill(target, keys, index, console, choice)
            list_items(index, console, as_json=choice.json)
            return
        out = Out(choice.out, owner=choice.owner)
        stack.callback(out.close)
        if not choice.resume and not out.is_empty():
            raise Usage(f"{choice.out} is not empty; name another directory, or go on with --resume")
        fill(target, keys, index, console, choice)
        Extraction(target, keys, index, out, console, resume=choice.resume).run()
        os.sync()
        if out.xattrs_left_out:
            console.note(f"{out.xattrs_left_out} extended attributes could not be set here; --list --json has them")
        summary = ", ".join(f"{count} {result}" for result, count in sorted(console.counts.items()))
        console.note(f"done: {summary or 'nothing'}")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    choice = arguments().parse_args(words)
    with contextlib.suppress(AttributeError):
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a replaced stream may lack it
    console = Console(sys.stdout.buffer, sys.stderr, as_json=choice.json)  # type: ignore[arg-type]  # TextIO is a TextIOBase
    try:
        run(choice, console)
        sys.stdout.flush()
    except ExtractError as problem:
        console.note(str(problem))
        return problem.exit_code
    except (OSError, sqlite3.OperationalError) as problem:  # standard output or the temporary file
        console.note(str(problem))
        return Unreachable.exit_code
    except KeyboardInterrupt:
        console.note("interrupted; go on with --resume")
        return Unreachable.exit_code
    return console.worst


if __name__ == "__main__":
    sys.exit(main())
