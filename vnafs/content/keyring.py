"""The keyring: every key of an archive, wrapped, as it lies beside the archive and on every target (FORMAT.md).

A root key wraps the repositories' keys; each slot wraps the root key with a secret: what the key file or passphrase
says, or the recovery key that an administrator keeps on paper. Changing a secret writes a new keyring and no pack.
A keyring without a secret gives nothing away but how many keys there are. Pure; any thread.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from vnafs.content import crypt
from vnafs.content.crypt import Key
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import KeyId
from vnafs.domain.ids import ObjectName, RepositoryId

FORMAT = "vnafs keys"
FORMAT_VERSION = 1
KEYRINGS = "keys/"
MANIFESTS = RepositoryId(0)
"""The key of manifests is filed under no repository."""
RECEIPTS = RepositoryId(1)
"""The keys that sign receipts are filed under the root, which is no repository: they encrypt nothing."""
MASTER, RECOVERY = "master", "recovery"
"""Which secret a slot takes."""
KEYRING_BYTES_MAX = 16 * 1024 * 1024
SLOTS_MAX = 16
RECOVERY_BYTES = 20
"""Of entropy in a recovery key: 160 bits."""

Entropy = Callable[[int], bytes]
"""So many random bytes, as os.urandom gives them."""

_SALT_BYTES = 16
_CHECK_BYTES = 5
_GROUP = 5
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}
"""32 MiB and a tenth of a second for each guess (RFC 7914)."""
_SCRYPT_MEMORY_BYTES_MAX = 256 * 1024 * 1024
"""A keyring that asks for more is not one of ours."""
NUMBER_MAX = 1 << 62
_ROOT = b"vnafs: wraps the root key, 1"
_KEYS = b"vnafs: wraps keys of repositories, 1"
_GUARD = b"vnafs: guards the keyring, 1"


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """The root key, wrapped with one secret."""

    takes: str
    """MASTER or RECOVERY; advice for messages."""
    salt: bytes
    wrapped: bytes
    n: int = _SCRYPT["n"]
    r: int = _SCRYPT["r"]
    p: int = _SCRYPT["p"]


@dataclasses.dataclass(frozen=True, slots=True)
class WrappedKey:
    """One key, under the root key."""

    id: KeyId
    repository: RepositoryId
    created: Instant
    wrapped: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Keyring:
    """All keys of an archive; *number* rises with each change."""

    archive: bytes
    number: int
    created: Instant
    slots: tuple[Slot, ...]
    keys: tuple[WrappedKey, ...]
    """Oldest first; the last one of a repository is used for what is written from now on."""


@dataclasses.dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs receipts."""

    secret: bytes = dataclasses.field(repr=False)
    """The private key of Ed25519 (RFC 8032), 32 bytes."""
    created: Instant


@dataclasses.dataclass(frozen=True, slots=True)
class Unlocked:
    """A keyring whose root key is known."""

    keyring: Keyring
    root: bytes = dataclasses.field(repr=False)
    opened_by: str = ""
    """What sort of secret did it, where one did."""

    def key(self, wrapped: WrappedKey) -> Key:
        """One of its keys. Raises Damaged."""
        return Key(wrapped.id, crypt.unwrap(self.root, wrapped.wrapped, _KEYS))

    def every(self) -> dict[KeyId, Key]:
        """All of its keys that encrypt; whoever has one that signs can decrypt nothing with it. Raises Damaged."""
        return {wrapped.id: self.key(wrapped) for wrapped in self.keyring.keys if wrapped.repository != RECEIPTS}

    def signing(self) -> list[SigningKey]:
        """Its keys that sign receipts, the oldest first: the last one does from now on. Raises Damaged."""
        wrapped = [key for key in self.keyring.keys if key.repository == RECEIPTS]
        return [SigningKey(self.key(key).secret, key.created) for key in wrapped]

    def encode(self) -> bytes:
        """As it is stored, guarded by the root key."""
        body = _document(self.keyring)
        guard = hmac.digest(crypt.derived(self.root, _GUARD), _canonical(body), "sha256").hex()
        return json.dumps({**body, "guard": guard, "sha256": _digest(body, guard)}, indent=1).encode() + b"\n"

    def with_key(self, repository: RepositoryId, now: Instant, entropy: Entropy) -> Unlocked:
        """One more key, the repository's from now on."""
        identity, secret = KeyId(entropy(16)), hashlib.sha256(entropy(crypt.KEY_BYTES) + _stamp(now)).digest()
        return self._with(identity, repository, secret, now, now)

    def with_signing(self, key: SigningKey, now: Instant, entropy: Entropy) -> Unlocked:
        """A key that signed receipts before there was a place for it here, and goes on. The same if it is here."""
        if any(known.secret == key.secret for known in self.signing()):
            return self
        return self._with(KeyId(entropy(16)), RECEIPTS, key.secret, key.created, now)

    def _with(
        self, identity: KeyId, repository: RepositoryId, secret: bytes, created: Instant, now: Instant
    ) -> Unlocked:
        added = WrappedKey(identity, repository, created, crypt.wrap(self.root, secret, _KEYS))
        return self._next(now, keys=(*self.keyring.keys, added))

    def with_keys_of(self, other: Unlocked, now: Instant) -> Unlocked:
        """The keys of both; what *other* alone has counts as older. The same when it has none that are new."""
        known = {key.id for key in self.keyring.keys}
        missing = tuple(key for key in other.keyring.keys if key.id not in known)
        return self._next(now, keys=(*missing, *self.keyring.keys)) if missing else self

    def with_master(self, secret: bytes, now: Instant, entropy: Entropy) -> Unlocked:
        """Another secret for the daemon that starts by itself, in place of the one before."""
        others = tuple(slot for slot in self.keyring.slots if slot.takes != MASTER)
        return self._next(now, slots=(*others, _slot(MASTER, secret, self.root, entropy(_SALT_BYTES))))

    def renewed(self, now: Instant, *, master: bytes, recovery: bytes, entropy: Entropy) -> Unlocked:
        """Another root key, other secrets and another key for everything written from now on.

        Whoever knows a former secret has, with a former keyring, the keys of what was written before, and no other.
        """
        root = _root(now, entropy)
        slots = (
            _slot(MASTER, master, root, entropy(_SALT_BYTES)),
            _slot(RECOVERY, recovery, root, entropy(_SALT_BYTES)),
        )
        wrapped = [
            dataclasses.replace(key, wrapped=crypt.wrap(root, self.key(key).secret, _KEYS)) for key in self.keyring.keys
        ]
        fresh = Unlocked(dataclasses.replace(self.keyring, slots=slots, keys=tuple(wrapped)), root)
        for repository in dict.fromkeys(key.repository for key in self.keyring.keys):
            fresh = fresh.with_key(repository, now, entropy)
        return fresh.numbered(self.keyring.number + 1, now)

    def numbered(self, number: int, now: Instant) -> Unlocked:
        """The same under another number."""
        return dataclasses.replace(self, keyring=dataclasses.replace(self.keyring, number=number, created=now))

    def _next(self, now: Instant, **changes: Any) -> Unlocked:
        number = self.keyring.number + 1
        return dataclasses.replace(
            self, keyring=dataclasses.replace(self.keyring, number=number, created=now, **changes)
        )


def _stamp(now: Instant) -> bytes:
    return now.to_bytes(8, "little")


def made(archive: bytes, now: Instant, *, master: bytes, recovery: bytes, entropy: Entropy) -> Unlocked:
    """A first keyring, with a key for manifests and none yet for repositories."""
    root = _root(now, entropy)
    slots = (_slot(MASTER, master, root, entropy(_SALT_BYTES)), _slot(RECOVERY, recovery, root, entropy(_SALT_BYTES)))
    empty = Unlocked(Keyring(archive, 0, now, slots, ()), root)
    return empty.with_key(MANIFESTS, now, entropy)


def _root(now: Instant, entropy: Entropy) -> bytes:
    return hashlib.sha256(entropy(crypt.KEY_BYTES) + _stamp(now)).digest()


def _slot(takes: str, secret: bytes, root: bytes, salt: bytes) -> Slot:
    slot = Slot(takes, salt, b"")
    return dataclasses.replace(slot, wrapped=crypt.wrap(_stretched(slot, secret), root, _ROOT))


def _stretched(slot: Slot, secret: bytes) -> bytes:
    memory = 128 * slot.n * slot.r * slot.p
    return hashlib.scrypt(secret, salt=slot.salt, n=slot.n, r=slot.r, p=slot.p, maxmem=2 * memory, dklen=32)


def unlock(data: bytes, secret: bytes) -> Unlocked:
    """Open a stored keyring with any of its secrets. Raises Damaged, FormatUnknown, KeyWrong."""
    keyring, document = _decode(data)
    for slot in keyring.slots:
        try:
            root = crypt.unwrap(_stretched(slot, secret), slot.wrapped, _ROOT)
        except (errors.Damaged, ValueError):  # another secret's, or parameters that no scrypt takes
            continue
        return dataclasses.replace(_guarded(keyring, document, root), opened_by=slot.takes)
    raise errors.KeyWrong(what=f"keyring {keyring.number} of archive {keyring.archive.hex()}")


def with_root(data: bytes, root: bytes) -> Unlocked:
    """Open a stored keyring with the root key itself. Raises Damaged, also when it is another's, FormatUnknown."""
    return _guarded(*_decode(data), root)


def _guarded(keyring: Keyring, document: dict[str, Any], root: bytes) -> Unlocked:
    guard = hmac.digest(crypt.derived(root, _GUARD), _canonical(document), "sha256")
    if not hmac.compare_digest(guard.hex(), str(document.get("guard"))):
        raise errors.Damaged(what="a keyring")
    return Unlocked(keyring, root)


def decode(data: bytes) -> Keyring:
    """What a stored keyring says without a secret; not to be trusted. Raises Damaged, FormatUnknown."""
    return _decode(data)[0]


def keyring_name(number: int) -> ObjectName:
    """Where a keyring lies on every target."""
    return ObjectName(f"{KEYRINGS}{number:016x}.keys")


def number_in(name: ObjectName) -> int | None:
    """The number in the name of a keyring; None for any other name."""
    stem, _, ending = name.rpartition("/")[2].partition(".")
    if ending != "keys" or len(stem) != 16:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


# -- secrets as people have them -----------------------------------------------------------------------------------


def recovery_text(secret: bytes) -> str:
    """RECOVERY_BYTES as a recovery key is written down: eight groups of five letters and digits, a check included."""
    check = hashlib.sha256(b"vnafs recovery key" + secret).digest()[:_CHECK_BYTES]
    text = base64.b32encode(secret + check).decode()
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def recovery_secret(text: str) -> bytes | None:
    """And back, forgiving case, spaces and look-alikes. None when it is no recovery key, or has a slip in it."""
    bare = "".join(letter for letter in text.upper() if letter.isalnum()).translate(str.maketrans("018", "OIB"))
    try:
        data = base64.b32decode(bare)
    except (binascii.Error, ValueError):
        return None
    secret = data[:RECOVERY_BYTES]
    return secret if len(data) == RECOVERY_BYTES + _CHECK_BYTES and recovery_text(secret) == _grouped(bare) else None


def _grouped(bare: str) -> str:
    return "-".join(bare[at : at + _GROUP] for at in range(0, len(bare), _GROUP))


def secret_of(text: bytes) -> bytes:
    """The secret in a key file: that of a recovery key, or else the text itself without the line's end."""
    recovery = recovery_secret(text.decode("ascii", "replace")) if len(text) < 1024 else None
    return recovery if recovery is not None else text.rstrip(b"\r\n")


# -- as JSON -------------------------------------------------------------------------------------------------------


def _document(keyring: Keyring) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "archive": keyring.archive.hex(),
        "number": keyring.number,
        "created_ns": keyring.created,
        "slots": [
            {
                "takes": slot.takes,
                "kdf": "scrypt",
                "n": slot.n,
                "r": slot.r,
                "p": slot.p,
                "salt": slot.salt.hex(),
                "wrapped": slot.wrapped.hex(),
            }
            for slot in keyring.slots
        ],
        "keys": [
            {
                "id": key.id.hex(),
                "repository": key.repository,
                "created_ns": key.created,
                "wrapped": key.wrapped.hex(),
            }
            for key in keyring.keys
        ],
    }


def _canonical(document: dict[str, Any]) -> bytes:
    """What the guard covers: everything but itself and the checksum, keys sorted, no spaces."""
    rest = {name: value for name, value in document.items() if name not in {"guard", "sha256"}}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def _digest(document: dict[str, Any], guard: str) -> str:
    """Tells damage from a keyring that is another's, without a key."""
    return hashlib.sha256(_canonical(document) + guard.encode()).hexdigest()


def _decode(data: bytes) -> tuple[Keyring, dict[str, Any]]:
    if len(data) > KEYRING_BYTES_MAX:
        raise errors.Damaged(what="a keyring")
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise errors.Damaged(what="a keyring")
        version = int(document["version"])
        if version > FORMAT_VERSION:
            raise errors.FormatUnknown(what="a keyring", found=version, known=FORMAT_VERSION)
        if document["sha256"] != _digest(document, str(document["guard"])):
            raise errors.Damaged(what="a keyring")
        slots = tuple(_slot_of(entry) for entry in document["slots"][:SLOTS_MAX] if entry["kdf"] == "scrypt")
        keys = tuple(
            WrappedKey(
                KeyId(bytes.fromhex(entry["id"])),
                RepositoryId(int(entry["repository"])),
                Instant(int(entry["created_ns"])),
                bytes.fromhex(entry["wrapped"]),
            )
            for entry in document["keys"]
        )
        archive, number = bytes.fromhex(document["archive"]), int(document["number"])
        if not 0 < number < NUMBER_MAX:
            raise errors.Damaged(what="a keyring")
        return Keyring(archive, number, Instant(int(document["created_ns"])), slots, keys), document
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        raise errors.Damaged(what="a keyring") from problem


def _slot_of(entry: dict[str, Any]) -> Slot:
    n, r, p = int(entry["n"]), int(entry["r"]), int(entry["p"])
    if n < 2 or min(r, p) < 1 or n & (n - 1) or 128 * n * r * p > _SCRYPT_MEMORY_BYTES_MAX:
        raise ValueError("not parameters of scrypt")
    return Slot(str(entry["takes"]), bytes.fromhex(entry["salt"]), bytes.fromhex(entry["wrapped"]), n, r, p)
