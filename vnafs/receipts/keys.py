"""The file of the key that signs an archive's receipts: made once, readable by its owner alone.

An archive without encryption has its key here and nowhere else, so a restored one makes another. An encrypted one has
it in its keyring; what is here of an older one is taken in there (`vnafs.upkeep.signing`). The file is synced before
the first receipt is signed with it. Any process may read it.
"""

from __future__ import annotations

import contextlib
import os

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.local.spool import fsync_directory, local_error
from vnafs.receipts import jws

FILE_NAME = "receipts.pem"
KEY_BYTES_MAX = 16 * 1024


def ensure(folder: str) -> tuple[Ed25519PrivateKey, bool]:
    """The key in *folder*, and whether it was made just now. Raises Damaged, NoSpace, StorageFailed."""
    path = os.path.join(folder, FILE_NAME)
    with contextlib.suppress(FileNotFoundError):
        return _load(path), False
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    beside = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)  # whoever was first has made the key
        os.unlink(beside)
        fsync_directory(folder)
        fsync_directory(os.path.dirname(folder))
    except OSError as problem:
        raise local_error(problem, "keeping the key of receipts") from problem
    kept = _load(path)
    return kept, jws.key_id(kept.public_key()) == jws.key_id(key.public_key())


def _load(path: str) -> Ed25519PrivateKey:
    with open(path, "rb") as file:
        pem = file.read(KEY_BYTES_MAX)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise Damaged(what=f"The key of receipts in {path}") from problem
    if not isinstance(key, Ed25519PrivateKey):
        raise Damaged(what=f"The key of receipts in {path}")
    return key


def find(folder: str) -> tuple[Ed25519PrivateKey, Instant] | None:
    """The key in *folder* and when its file was written, or None where there is none. Raises Damaged."""
    path = os.path.join(folder, FILE_NAME)
    with contextlib.suppress(FileNotFoundError):
        return _load(path), Instant(os.stat(path).st_mtime_ns)
    return None


def remove(folder: str) -> None:
    """Remove the file of a key that is kept elsewhere from now on. Raises StorageFailed."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, FILE_NAME))
        fsync_directory(folder)
    except OSError as problem:
        raise local_error(problem, "removing the key of receipts") from problem


def private_key(secret: bytes) -> Ed25519PrivateKey:
    """The key whose 32 bytes (RFC 8032) these are."""
    return Ed25519PrivateKey.from_private_bytes(secret)


def secret_of(key: Ed25519PrivateKey) -> bytes:
    """And back."""
    return key.private_bytes_raw()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of its public key (RFC 8032)."""
    return key.public_key().public_bytes_raw()
