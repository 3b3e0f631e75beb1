"""The archive's own copy of its keyring, and the file with the secret that opens it. Only the owner may read either.

Replaced in one step and synced, like everything that others rely on. One thread at a time.
"""

from __future__ import annotations

import os
import stat

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.local.replacement import replace
from vnafs.local.spool import fsync_directory, local_error

KEYRING = "keyring"
MASTER = "master.key"
SECRET_BYTES_MAX = 4096


def exists(folder: str) -> bool:
    """Whether an archive whose keys are in *folder* is encrypted."""
    return os.path.exists(os.path.join(folder, KEYRING))


def load(folder: str) -> bytes:
    """The keyring. Raises StorageFailed."""
    try:
        with open(os.path.join(folder, KEYRING), "rb") as file:
            return file.read()
    except OSError as problem:
        raise local_error(problem, "reading the keyring") from problem


def save(folder: str, data: bytes) -> None:
    """Replace the keyring. Raises NoSpace, StorageFailed."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        replace(os.path.join(folder, KEYRING), data, mode=0o600)
    except OSError as problem:
        raise local_error(problem, "writing the keyring") from problem


def write_secret(path: str, text: str) -> None:
    """Write a secret to a file that must not exist yet, for its owner alone. Raises FileExistsError, OSError."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(os.path.dirname(os.path.abspath(path)))


def read_secret(path: str, *, key: str) -> bytes:
    """What a key file holds. *key* names it in messages. Raises ConfigurationInvalid when others may read it too."""

    def invalid(why: str, fix: str) -> ConfigurationInvalid:
        return ConfigurationInvalid(file="vnafs.toml", key=key, value=repr(path), why=why, fix=fix)

    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise invalid("others than its owner may use it", f"Run `chmod 600 {path}`")
            found = file.read(SECRET_BYTES_MAX + 1)
    except OSError as problem:
        raise invalid(os.strerror(problem.errno or 0), "Put the key file back, or name another one") from problem
    if not found.strip() or len(found) > SECRET_BYTES_MAX:
        raise invalid("it is empty, or too large for a key", "Put the key file back, or name another one")
    return found
