"""Canonical JSON and the signed envelope: RFC 8785 for what receipts hold, RFC 7515 with EdDSA (RFC 8037) around it.

Any JOSE library opens the envelope, which is the flattened JSON serialization of a JWS. Pure; any thread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vnafs.domain.errors import Damaged, FormatUnknown

TYPE = "vnafs-receipt+json"
"""The `typ` of the protected header."""
INTEGER_MAX = 2**53 - 1
"""What every JSON reader keeps exactly (RFC 8785, section 3.2.2.3)."""


def canonical(value: object) -> bytes:
    """The one way to write a value: keys in order, no spaces, UTF-8, only what must be escaped.

    Takes text, whole numbers up to 2^53 - 1, true, false, null, lists, and objects with ASCII keys, for which the order
    of bytes is that of RFC 8785. Raises ValueError for anything else: there are no fractions in a receipt.
    """
    _check(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _check(value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"the key {key!r} is not ASCII")
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > INTEGER_MAX:
            raise ValueError(f"{value} is too large a number")
    elif not (value is None or isinstance(value, bool | str)):
        raise ValueError(f"{type(value).__name__} has no place in a receipt")


def sign(payload: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The envelope of a payload."""
    header = {"alg": "EdDSA", "kid": key_id(key.public_key()), "typ": TYPE}
    protected, body = encode(canonical(header)), encode(canonical(payload))
    signature = key.sign(f"{protected}.{body}".encode("ascii"))
    return {"payload": body, "protected": protected, "signature": encode(signature)}


def opened(envelope: Mapping[str, Any], key: Ed25519PublicKey) -> dict[str, Any]:
    """The payload of an envelope that *key* signed. Raises Damaged, FormatUnknown."""
    header = json_object(_part(envelope, "protected"))
    if header.get("alg") != "EdDSA" or header.get("typ") != TYPE or "crit" in header:
        raise FormatUnknown(what="a receipt's signature", found=header.get("alg"), known="EdDSA")
    signed = f"{envelope['protected']}.{_text(envelope, 'payload')}".encode("ascii", "replace")
    try:
        key.verify(_part(envelope, "signature"), signed)
    except InvalidSignature as problem:
        raise Damaged(what="The receipt, or the key is not the one that signed it: its signature") from problem
    return json_object(_part(envelope, "payload"))


def unverified(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """The payload, whoever wrote it. Raises Damaged."""
    return json_object(_part(envelope, "payload"))


def signer(envelope: Mapping[str, Any]) -> str:
    """Which key an envelope says it was signed with. Raises Damaged."""
    return str(json_object(_part(envelope, "protected")).get("kid", ""))


def key_id(key: Ed25519PublicKey) -> str:
    """The thumbprint of a public key (RFC 7638, RFC 8037 section 2)."""
    members = {name: value for name, value in jwk(key).items() if name != "kid"}
    return encode(hashlib.sha256(canonical(members)).digest())


def jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """A public key as RFC 8037 writes it."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": encode(raw)}


def encode(data: bytes) -> str:
    """base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """And back, in the one way that `encode` writes. Raises Damaged."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as problem:
        raise Damaged(what="The base64url of a receipt") from problem
    if encode(data) != text:
        raise Damaged(what="The base64url of a receipt")
    return data


def _text(envelope: Mapping[str, Any], name: str) -> str:
    value = envelope.get(name)
    if not isinstance(value, str):
        raise Damaged(what=f"A receipt without {name}")
    return value


def _part(envelope: Mapping[str, Any], name: str) -> bytes:
    return decode(_text(envelope, name))


def json_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object that a part of a receipt is. Raises Damaged."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise Damaged(what="The JSON of a receipt") from problem
    if not isinstance(value, dict):
        raise Damaged(what="The JSON of a receipt")
    return value
