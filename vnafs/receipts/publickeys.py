"""Public keys of receipts as a file: PEM blocks, each below a few lines that say when the archive signed with it.

Such lines are allowed before a block (RFC 7468, section 2), so openssl(1) reads the first key of the file, and any
program that reads several finds them all. A file with one block and no lines is the key that verifies, whenever it
signed. Pure but for `read`; any thread.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vnafs.domain.errors import InvalidArgument, NotFound
from vnafs.receipts import jws

FILE_BYTES_MAX = 1024 * 1024
_BLOCK = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_LINE = re.compile(r"^(From|Until|Why|Told-By-Target): (.*)$", re.MULTILINE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclasses.dataclass(frozen=True, slots=True)
class PublicKey:
    """One key that verifies receipts."""

    key: Ed25519PublicKey
    since: str = ""
    """As receipts write times; empty where that is not said."""
    until: str = ""
    """From then on the archive signed with another one; empty for the one that signs, and where that is not said."""
    why: str = ""
    """Why the archive began to sign with it."""
    told: bool = False
    """Whoever could write to a target of an archive without encryption could have put it there."""

    @property
    def name(self) -> str:
        """Its thumbprint, the `kid` of what it signed."""
        return jws.key_id(self.key)


def from_bytes(public: bytes) -> Ed25519PublicKey:
    """The public key whose 32 bytes (RFC 8032) these are."""
    return Ed25519PublicKey.from_public_bytes(public)


def pem(key: Ed25519PublicKey) -> str:
    """One key alone, which openssl(1) reads."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def text(keys: Sequence[PublicKey]) -> str:
    """All of them, with what is known of each."""
    parts = []
    for one in keys:
        lines = [f"Key: {one.name}"]
        lines += [f"From: {one.since}"] if _TIME.fullmatch(one.since) else []  # else it is not known
        lines += [f"Until: {one.until}"] if _TIME.fullmatch(one.until) else []
        lines += [f"Why: {one.why}"] if one.why else []
        lines += ["Told-By-Target: yes"] if one.told else []
        parts.append("\n".join(lines) + "\n" + pem(one.key))
    return "\n".join(parts)


def read(path: str) -> list[PublicKey]:
    """Every key in a file, one at least. Raises NotFound, InvalidArgument."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError as problem:
        raise NotFound(what=f"A readable public key in {path}") from problem
    found, after = [], 0
    for block in _BLOCK.finditer(data):
        said = dict(_LINE.findall(data[after : block.start()].replace("\r\n", "\n")))
        after = block.end()
        for line in ("From", "Until"):
            if said.get(line) and not _TIME.fullmatch(said[line]):
                raise InvalidArgument(why=f"{path} has a line {line} that is no time")
        found.append(
            PublicKey(
                _key(block.group(), path),
                said.get("From", ""),
                said.get("Until", ""),
                said.get("Why", ""),
                said.get("Told-By-Target") == "yes",
            )
        )
    if not found:
        raise InvalidArgument(why=f"{path} is no public key in PEM; `vna receipt --public-key` prints one")
    return found


def _key(block: str, path: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(block.replace("\r\n", "\n").encode("ascii", "replace"))
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise InvalidArgument(why=f"{path} is no public key in PEM; `vna receipt --public-key` prints one") from problem
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidArgument(why=f"{path} is not an Ed25519 key")
    return key


def of_signer(keys: Sequence[PublicKey], name: str) -> PublicKey:
    """The one with that thumbprint; where none has it, one that does not verify."""
    return next((one for one in keys if one.name == name), keys[-1])
