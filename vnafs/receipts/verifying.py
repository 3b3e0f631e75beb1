"""Whether a receipt or a certificate is what an archive signed: from a file and a public key, with no archive."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import Damaged, FormatUnknown, NotFound, Refused, TooMuch
from vnafs.receipts import document, erasure, jws, page, publickeys, timestamps
from vnafs.receipts.document import moment
from vnafs.receipts.publickeys import PublicKey
from vnafs.receipts.timestamps import Stamp

FILE_BYTES_MAX = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """A receipt whose signature is right."""

    payload: dict[str, Any]
    stamp: Stamp | None
    """What its timestamp says, if it has one."""
    key: PublicKey
    """The one that signed it."""


def verify(path: str, key_path: str, ca_path: str = "") -> Verified:
    """A receipt, signed JSON or page, that the key signed, or one of several in the file.

    *ca_path* names certificates that its timestamp must lead to, which it must have then. Raises Refused without one,
    and for what was signed after its key had gone out of use; NotFound and InvalidArgument for files that cannot be
    used, Damaged for whatever is not as it was signed, FormatUnknown for a later version.
    """
    keys = publickeys.read(key_path)
    roots = timestamps.certificates(ca_path) if ca_path else []
    text = _read(path)
    envelope = page.envelope_of(text) if text.lstrip().startswith("<") else jws.json_object(text)
    key = publickeys.of_signer(keys, jws.signer(envelope)) if len(keys) > 1 else keys[0]
    payload = jws.opened(envelope, key.key)
    kind, version = payload.get("type"), payload.get("version")
    if (kind, version) not in {("vnafs-receipt", document.VERSION), (erasure.TYPE, erasure.VERSION)}:
        raise FormatUnknown(what="The receipt", found=version, known=document.VERSION)
    token = timestamps.token_of(envelope)
    if token is None and roots:
        raise Refused(what="The receipt", why="its signature is right, and it has no timestamp by a third party")
    stamp = None if token is None else timestamps.check(token, envelope["signature"], roots)
    stamped = "" if stamp is None else moment(int(stamp.time.timestamp()) * NANOSECONDS)
    if key.until and max(str(payload.get("as_of")), stamped) > key.until:
        raise Refused(
            what="The receipt",
            why=f"its signature is right, but it was made after {key.until}, when the archive signed with this key no "
            "more: whoever signed it is not the archive as it went on",
        )
    return Verified(payload, stamp, key)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > FILE_BYTES_MAX:
                raise TooMuch(what=path, limit=f"{FILE_BYTES_MAX} bytes", fix="This is no receipt")
            return file.read().decode("utf-8")
    except OSError as problem:
        raise NotFound(what=f"A readable receipt in {path}") from problem
    except UnicodeDecodeError as problem:
        raise Damaged(what="The text of a receipt") from problem
