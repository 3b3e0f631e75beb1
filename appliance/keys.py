"""The secrets of an encrypted archive: where they are found, and how they are made. Entry points only."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Mapping

from appliance.config import Configuration
from vnafs.content import keyring
from vnafs.domain.clock import Instant, SystemClock
from vnafs.domain.errors import AlreadyExists, ConfigurationInvalid, KeyWrong, NotYet
from vnafs.local import keyfile

RANDOM_BYTES = 32
SECRET_BYTES_MIN = 16
FRESH = ".new"
"""Added to the key file's name while the keyring is about to change; whichever of the two opens it counts."""


def is_encrypted(configuration: Configuration) -> bool:
    """Whether the archive has a keyring."""
    return keyfile.exists(configuration.folder("keys"))


def key_file(configuration: Configuration) -> str:
    """Where the secret is, unless it is in the environment."""
    return configuration.encryption.key_file or os.path.join(configuration.folder("keys"), keyfile.MASTER)


def secret(configuration: Configuration, environ: Mapping[str, str]) -> bytes | None:
    """The secret that opens the archive's keyring; None for an archive that is not encrypted.

    Raises ConfigurationInvalid, which says where it was looked for, and KeyWrong.
    """
    if not is_encrypted(configuration):
        return None
    name = configuration.encryption.key_environment
    if name:
        value = environ.get(name, "")
        if not value:
            raise ConfigurationInvalid(
                file=configuration.file,
                key="encryption.key_environment",
                value=repr(name),
                why="there is no such environment variable, or it is empty",
                fix="Set it for the daemons, or use encryption.key_file",
            )
        return keyring.secret_of(os.fsencode(value))
    path = key_file(configuration)
    data = keyfile.load(configuration.folder("keys"))
    fresh = f"{path}{FRESH}"
    if os.path.exists(fresh):  # a change that was cut short: it came to pass, or it did not
        found = keyring.secret_of(keyfile.read_secret(fresh, key="encryption.key_file"))
        with contextlib.suppress(KeyWrong):
            keyring.unlock(data, found)
            os.replace(fresh, path)
            return found
    return keyring.secret_of(keyfile.read_secret(path, key="encryption.key_file"))


def make(
    configuration: Configuration, archive: bytes, recovery_file: str, typed_back: Callable[[str], str] | None
) -> None:
    """Give a new archive its keys: the keyring, the secret beside it and the recovery key in *recovery_file*.

    *typed_back* asks a person for the recovery key just written down, until it is right; None where nobody is there.
    Raises AlreadyExists, ConfigurationInvalid, NotYet when the person gives up.
    """
    recovery, path = os.urandom(keyring.RECOVERY_BYTES), key_file(configuration)
    write_new(recovery_file, keyring.recovery_text(recovery), key="--recovery-key")
    try:
        if typed_back is not None:
            confirm(recovery, recovery_file, typed_back)
        if not os.path.exists(path):  # else it has a passphrase that somebody chose
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_new(path, new_secret(), key="encryption.key_file")
        master = keyring.secret_of(keyfile.read_secret(path, key="encryption.key_file"))
        _require_long(master, path)
        unlocked = keyring.made(archive, _now(), master=master, recovery=recovery, entropy=os.urandom)
        unlocked = unlocked.with_key(keyring.RECEIPTS, _now(), os.urandom).numbered(1, _now())
        keyfile.save(configuration.folder("keys"), unlocked.encode())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(recovery_file)
        raise


def _require_long(master: bytes, path: str) -> None:
    if len(master) < SECRET_BYTES_MIN:
        raise ConfigurationInvalid(
            file="(arguments)",
            key="--key-file",
            value=repr(path),
            why=f"its passphrase has {len(master)} bytes, and everybody who reads a target may guess it",
            fix=f"Choose one of {SECRET_BYTES_MIN} or more, or let one be made",
        )


def forget(configuration: Configuration) -> None:
    """Remove the keyring that an `init` left which did not come to its end, and the key file it made."""
    folder = configuration.folder("keys")
    for name in (keyfile.KEYRING, keyfile.MASTER):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))


def settle(configuration: Configuration, unlocked: keyring.Unlocked) -> None:
    """Give a restored archive its keyring, and a fresh secret beside it that opens it without the recovery key."""
    master = new_secret()
    path = os.path.join(configuration.folder("keys"), keyfile.MASTER)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_new(path, master, key="encryption.key_file")
    unlocked = unlocked.with_master(keyring.secret_of(master.encode()), _now(), os.urandom)
    keyfile.save(configuration.folder("keys"), unlocked.encode())


def new_secret() -> str:
    """What a key file has that nobody typed."""
    return base64.b64encode(os.urandom(RANDOM_BYTES)).decode()


def _now() -> Instant:
    return SystemClock().now()


def confirm(recovery: bytes, recovery_file: str, typed_back: Callable[[str], str]) -> None:
    """Ask until the recovery key was typed back. Raises NotYet after three attempts."""
    for _ in range(3):
        if keyring.recovery_secret(typed_back(f"The recovery key is in {recovery_file}. Type it back: ")) == recovery:
            return
    raise NotYet(what="The archive", why="the recovery key was not typed back; nothing was made")


def write_new(path: str, text: str, *, key: str) -> None:
    """Write a secret to a new file. Raises AlreadyExists, ConfigurationInvalid."""
    try:
        keyfile.write_secret(path, text)
    except FileExistsError:
        raise AlreadyExists(what=f"File {path}") from None
    except OSError as problem:
        raise ConfigurationInvalid(
            file="(arguments)",
            key=key,
            value=repr(path),
            why=os.strerror(problem.errno or 0),
            fix="Name a file that can be made",
        ) from problem
