"""The key that signs an archive's receipts: one file, made once, readable by its owner alone.

A restored archive has none and makes another: who holds receipts of the first one keeps its public key. The file is
synced before the first receipt is signed with it. Any process may read it.
"""

from __future__ import annotations

import contextlib
import os

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vnafs.domain.errors import Damaged, InvalidArgument, NotFound
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


def public_pem(key: Ed25519PublicKey) -> str:
    """A public key as PEM, which openssl(1) reads."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def read_public(path: str) -> Ed25519PublicKey:
    """A public key from a PEM file. Raises NotFound, InvalidArgument."""
    try:
        with open(path, "rb") as file:
            pem = file.read(KEY_BYTES_MAX)
    except OSError as problem:
        raise NotFound(what=f"A readable public key in {path}") from problem
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise InvalidArgument(why=f"{path} is no public key in PEM; `vna receipt --public-key` prints one") from problem
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidArgument(why=f"{path} is not an Ed25519 key")
    return key
