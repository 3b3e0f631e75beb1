"""Timestamps of signatures by a third party (RFC 3161), kept where JAdES (ETSI TS 119 182-1) puts them.

A token says that the signature, as text in base64url, existed at a time; it lies in the unprotected header of the
envelope, so that a receipt with or without it has the same signature. A service that does not answer, or answers
nonsense, gives no token and a reason: receipts do not wait for it. Any thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import datetime as dt
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from vnafs.domain.errors import Damaged, InvalidArgument, NotFound, TargetUnavailable
from vnafs.domain.ids import TargetName

SECONDS_MAX = 10.0
"""For one request and its answer."""
ANSWER_BYTES_MAX = 256 * 1024
_GRANTED = b"\x30\x03\x02\x01\x00"
"""PKIStatusInfo of RFC 3161, section 2.4.2: granted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """What a token says."""

    time: dt.datetime
    trusted: bool
    """Its certificate leads to one that we were told to trust; without any, nobody vouches for the time."""


class TimestampService:
    """One service, and the certificates in *ca_file* that it must lead to; without a file, only what it stamped counts.

    Raises NotFound, InvalidArgument for a file that cannot be used.
    """

    def __init__(self, url: str, ca_file: str = "", *, seconds_max: float = SECONDS_MAX) -> None:
        self._url = url
        self._roots = certificates(ca_file) if ca_file else []
        self._seconds_max = seconds_max
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def stamp(self, signature: str) -> bytes:
        """A token for a signature in base64url. Raises TargetUnavailable, whatever is the matter."""
        data = signature.encode("ascii")
        request = TimestampRequestBuilder(data, HashAlgorithm.SHA256, nonce=True, cert_req=True).build()
        try:
            answer = decode_timestamp_response(in_order(self._ask(request.as_bytes())))
            if answer.status != 0:
                raise self._unavailable(f"it answers with status {answer.status}")
            if answer.tst_info.nonce != request.nonce:
                raise self._unavailable("its answer is not to our request")
            token = answer.time_stamp_token()
            _checked(answer, data, self._roots)
        except (ValueError, Damaged) as problem:
            raise self._unavailable(f"its answer cannot be used: {problem}") from problem
        return token

    def _ask(self, body: bytes) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the configuration allows http and https alone
            self._url, body, {"Content-Type": "application/timestamp-query"}
        )
        try:
            with contextlib.closing(self._opener.open(request, timeout=self._seconds_max)) as answer:
                data: bytes = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as problem:  # urllib's own errors are OSErrors
            raise self._unavailable(str(problem) or type(problem).__name__) from problem
        return data

    def _unavailable(self, why: str) -> TargetUnavailable:
        return TargetUnavailable(target=TargetName("timestamp service"), why=why)


def attach(envelope: Mapping[str, Any], token: bytes) -> dict[str, Any]:
    """The envelope with a token for its signature."""
    value = base64.b64encode(token).decode("ascii")
    return {**envelope, "header": {"etsiU": [{"sigTst": {"tstTokens": [{"val": value}]}}]}}


def token_of(envelope: Mapping[str, Any]) -> bytes | None:
    """The token in an envelope, or None. Raises Damaged."""
    if "header" not in envelope:
        return None
    match envelope["header"]:
        case {"etsiU": [{"sigTst": {"tstTokens": [{"val": str(value)}]}}]}:
            with contextlib.suppress(binascii.Error, ValueError):
                return base64.b64decode(value, validate=True)
    raise Damaged(what="The timestamp of a receipt")


def check(token: bytes, signature: str, roots: Sequence[x509.Certificate]) -> Stamp:
    """What a token says of a signature in base64url.

    Raises Damaged when it is of another one, or leads to none of *roots* where there are any.
    """
    try:
        answer = decode_timestamp_response(_response(token))
    except ValueError as problem:
        raise Damaged(what="The timestamp of a receipt") from problem
    return _checked(answer, signature.encode("ascii"), roots)


def _checked(answer: TimeStampResponse, data: bytes, roots: Sequence[x509.Certificate]) -> Stamp:
    if answer.tst_info.message_imprint.message != hashlib.sha256(data).digest():
        raise Damaged(what="The timestamp, which is of something else than this receipt,")
    if roots:
        builder = VerifierBuilder()
        for root in roots:
            builder = builder.add_root_certificate(root)
        try:
            builder.build().verify_message(answer, data)
        except VerificationError as problem:
            raise Damaged(what=f"The timestamp ({problem})") from problem
    return Stamp(answer.tst_info.gen_time, bool(roots))


def in_order(response: bytes) -> bytes:
    """A TimeStampResp with the certificates of its SignedData in DER's order (X.690, section 11.6).

    openssl ts puts them as they are configured, which a strict reader refuses; no signature covers their order.
    Whatever else it is comes back as it was.
    """
    try:
        start, stop = _inside(response, 0)
        start = _inside(response, start)[1]  # past the status, into the token
        start = _inside(response, _inside(response, start)[0])[1]  # past its type
        start = _inside(response, _inside(response, start)[0])[0]  # into SignedData
        for _ in range(3):  # version, digest algorithms, what is signed
            start = _inside(response, start)[1]
        begin, stop = _inside(response, start)
        if response[start] != 0xA0:
            return response
        found = []
        at = begin
        while at < stop:
            end = _inside(response, at)[1]
            found.append(response[at:end])
            at = end
    except IndexError:
        return response
    return response[:begin] + b"".join(sorted(found)) + response[stop:] if at == stop else response


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Where the value of the element at *at* begins and ends. Raises IndexError for what is none."""
    size = der[at + 1]
    begin = at + 2
    if size >= 0x80:
        digits = size & 0x7F
        size, begin = int.from_bytes(der[begin : begin + digits], "big"), begin + digits
    if begin + size > len(der):
        raise IndexError(at)
    return begin, begin + size


def _response(token: bytes) -> bytes:
    """TimeStampResp of RFC 3161 around a token."""
    body = _GRANTED + token
    size = len(body)
    length = bytes([size]) if size < 0x80 else b"".join(_long(size))
    return b"\x30" + length + body


def _long(size: int) -> tuple[bytes, bytes]:
    """DER's long form of a length."""
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(digits)]), digits


def certificates(path: str) -> list[x509.Certificate]:
    """Certificates from a PEM file. Raises NotFound, InvalidArgument."""
    try:
        with open(path, "rb") as file:
            pem = file.read(os.fstat(file.fileno()).st_size)
    except OSError as problem:
        raise NotFound(what=f"A readable file of certificates {path}") from problem
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as problem:
        raise InvalidArgument(why=f"{path} has no certificates in PEM") from problem
    return found
