"""Encryption of packs and manifest objects: AES-256-GCM under a data key for each object (FORMAT.md, "Encryption").

A data key encrypts one object and nothing else, and each part of it once: what kind of part it is and its offset are
the nonce, so no counter has to survive anything, and no part passes for another one. A reverted disk, or a random
generator that repeats itself, cannot make two objects share a data key: a pack's is mixed from its id and time of birth
too, a manifest object's follows from all it says. Pure functions over bytes and keys; any thread. Keys are never shown
by `repr`. The crypto library is loaded by the first use: mount and most commands never need its 9 MB.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import struct

from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import Envelope, KeyId
from vnafs.domain.ids import PackId

AES_256_GCM = 1
"""The only encryption so far; the number is part of the formats (0: none)."""
KEY_BYTES = 32
WRAPPED_BYTES = KEY_BYTES + 8
TAG_BYTES = 16
"""What encryption adds to each part."""

_NONCE = struct.Struct("<IQ")
_WRAPS = b"vnafs: wraps data keys, 1"
_MANIFESTS = b"vnafs: data keys of manifest objects, 1"


class Part(enum.IntEnum):
    """What is encrypted. The numbers are part of the formats."""

    PIECE = 1
    RECIPE = 2
    CATALOGUE = 3
    MANIFEST = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """A repository's key, or that of the manifests."""

    id: KeyId
    secret: bytes = dataclasses.field(repr=False)
    """32 bytes."""


class Cipher:
    """Encrypts and decrypts the parts of one object."""

    __slots__ = ("_about", "_gcm")

    def __init__(self, data_key: bytes, about: bytes) -> None:
        """*about* is authenticated with every part: the id of a pack, the head of a manifest object."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - see the module

        self._gcm = AESGCM(data_key)
        self._about = about

    def seal(self, part: Part, offset: int, plain: Buffer) -> bytes:
        """The bytes to store at *offset*, TAG_BYTES more than *plain*. Never call it twice for one offset."""
        return self._gcm.encrypt(_NONCE.pack(part, offset), plain, self._about)

    def open(self, part: Part, offset: int, stored: Buffer) -> bytes:
        """What was sealed at *offset* as such a part. Raises Damaged unless it is exactly that."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        try:
            return self._gcm.decrypt(_NONCE.pack(part, offset), stored, self._about)
        except (InvalidTag, ValueError) as problem:
            raise errors.Damaged(what="something encrypted") from problem


def derived(secret: bytes, purpose: bytes) -> bytes:
    """A key for one purpose, 32 bytes: HMAC-SHA256 as in HKDF-Expand (RFC 5869) of one block."""
    return hmac.digest(secret, purpose + b"\x01", "sha256")


def wrap(secret: bytes, key: bytes, purpose: bytes) -> bytes:
    """*key* under one derived from *secret* (AES-256 key wrap, RFC 3394): needs no nonce."""
    from cryptography.hazmat.primitives import keywrap  # noqa: PLC0415

    return keywrap.aes_key_wrap(derived(secret, purpose), key)


def unwrap(secret: bytes, wrapped: bytes, purpose: bytes) -> bytes:
    """What was wrapped. Raises Damaged when it is not what was, or *secret* is not the one it was wrapped with."""
    from cryptography.hazmat.primitives import keywrap  # noqa: PLC0415

    try:
        return keywrap.aes_key_unwrap(derived(secret, purpose), wrapped)
    except (keywrap.InvalidUnwrap, ValueError) as problem:
        raise errors.Damaged(what="a wrapped key") from problem


def seal_pack(key: Key, pack: PackId, created: Instant, entropy: bytes) -> tuple[Envelope, Cipher]:
    """A fresh data key for a pack, wrapped, and in use. *entropy*: 32 random bytes."""
    data_key = hmac.digest(entropy, pack + created.to_bytes(8, "little"), "sha256")
    return Envelope(key.id, wrap(key.secret, data_key, _WRAPS)), Cipher(data_key, pack)


def open_pack(key: Key, envelope: Envelope, pack: PackId) -> Cipher:
    """The cipher of a pack. Raises Damaged."""
    return Cipher(unwrap(key.secret, envelope.wrapped, _WRAPS), pack)


def seal_manifest(key: Key, head: bytes, body: bytes) -> tuple[Envelope, bytes]:
    """The envelope of a manifest object and its body, encrypted; equal objects are equal when encrypted too.

    The data key is a keyed hash of all that is encrypted or authenticated (a synthetic key, as RFC 5297 makes a
    synthetic nonce): without the key nobody can tell what was hashed, and different bodies never share a data key.
    """
    data_key = hmac.digest(derived(key.secret, _MANIFESTS), hashlib.sha256(head + body).digest(), "sha256")
    return Envelope(key.id, wrap(key.secret, data_key, _WRAPS)), Cipher(data_key, head).seal(Part.MANIFEST, 0, body)


def open_manifest(key: Key, envelope: Envelope, head: bytes, body: Buffer) -> bytes:
    """The body of a manifest object. Raises Damaged."""
    return Cipher(unwrap(key.secret, envelope.wrapped, _WRAPS), head).open(Part.MANIFEST, 0, body)
