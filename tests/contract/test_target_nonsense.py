"""Answers that no object store gives: pages of a captive portal, half an answer, a broken one. Each is an error of the
port's own kind, whatever was asked; nothing of a client library's comes out, which would end whoever asked."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.contract.conftest import NAME
from vnafs.domain.clock import SystemClock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import Damaged, TargetError
from vnafs.domain.ids import ObjectName, Span
from vnafs.targets.address import AzureAddress, S3Address, parse_address
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials, S3Credentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.mirror import Mirror, Original
from vnafs.targets.open import open_adapter, open_mirror
from vnafs.targets.port import Target

A = ObjectName("packs/aa/aa01.pack")
LARGE = BytesBody(os.urandom(9 * MEBIBYTE))
KNOWN = Capabilities(
    exclusive_create=False,
    exclusive_create_multipart=False,
    checksum_sha256=False,
    checksum_md5=True,
    multipart=True,
)
QUICK = Limits(
    single_put_bytes_max=8 * MEBIBYTE, part_bytes=8 * MEBIBYTE, connect_seconds_max=1.0, read_seconds_max=0.5
)


def http(status: str, body: bytes, *headers: str, length: str | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


ANSWERS = {
    "nothing": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "half a status line": b"HTTP/1.1 2",
    "a page": http("200 OK", b"<html><body>Please sign in</body></html>", "Content-Type: text/html"),
    "no XML": http("200 OK", b"\x00\xff<<<", "Content-Type: application/xml"),
    "half of XML": http("200 OK", b'<?xml version="1.0"?><ListBucketResult><Contents><Key>', "Content-Type: text/xml"),
    "other XML": http("200 OK", b'<?xml version="1.0"?><Something/>', "Content-Type: application/xml"),
    "an empty answer": http("200 OK", b""),
    "a length that is none": http("200 OK", b"abc", length="many"),
    "a length below zero": http("200 OK", b"abc", length="-5"),
    "fewer bytes than promised": http("200 OK", b"abc", "ETag: x", length="4000"),
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "a body that is no gzip": http("200 OK", b"abc", "Content-Encoding: gzip", "ETag: x"),
    "a redirect to nowhere": http("301 Moved", b"", "Location: http://[::bad"),
    "a redirect in circles": http("307 Again", b"", "Location: /"),
    "an error that is no XML": http("400 Bad", b"\x00<<<"),
    "a server error that is no XML": http("503 Busy", b"<html>"),
    "a date that is none": http("503 Busy", b"", "Retry-After: when I am well", "Date: never"),
}


class Nonsense:
    """Answers every request alike; *resets* instead of closing, as a firewall does."""

    def __init__(self, answer: bytes, *, resets: bool) -> None:
        self._answer = answer
        self._resets = resets
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                while connection.recv(1 << 20):
                    connection.settimeout(0.02)
            connection.sendall(self._answer)
            if self._resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._listener.close()


def s3(url: str) -> Target:
    address = parse_address(f"s3://bucket/prefix?endpoint={url}&region=r")
    assert isinstance(address, S3Address)
    return open_adapter(NAME, address, S3Credentials("id", "secret"), SystemClock(), QUICK, KNOWN)


def azure(url: str) -> Target:
    address = parse_address(f"azure://account/container/prefix?endpoint={url}")
    assert isinstance(address, AzureAddress)
    return open_adapter(NAME, address, AzureCredentials("c2VjcmV0", ""), SystemClock(), QUICK, KNOWN)


def mirror(url: str) -> Mirror:
    address = parse_address(f"azure://account/container/prefix?endpoint={url}")
    return open_mirror(NAME, address, AzureCredentials("c2VjcmV0", ""), b"a" * 16, SystemClock(), QUICK)


def attempts(target: Target) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "probe", target.probe
    yield "put", lambda: target.put(ObjectName("packs/new"), BytesBody(b"new"))
    yield "put in parts", lambda: target.put(ObjectName("packs/large"), LARGE)
    yield "get", lambda: b"".join(target.get(A))
    yield "get a range", lambda: b"".join(target.get(A, Span(1, 10)))
    yield "read back", lambda: b"".join(target.read_back(A))
    yield "evidence", lambda: target.evidence(A)
    yield "list", lambda: list(target.list())
    yield "delete", lambda: target.delete(A)


def mirror_attempts(made: Mirror) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "probe", lambda: made.probe(known=False)
    yield "replace", lambda: made.replace("r/new", BytesBody(b"new"), 0)
    yield "replace in parts", lambda: made.replace("r/large", LARGE, 0)
    yield "copy", lambda: made.copy(Original("r/a", 3, BytesBody(b"new").sha256), "r/b", 0)
    yield "remove", lambda: made.remove("r/a")
    yield "list", lambda: list(made.list())


@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("open_it", [s3, azure, mirror])
@pytest.mark.parametrize("answer", ANSWERS)
def test_nonsense_is_an_error_of_the_target_and_of_nobody_else(answer: str, open_it, resets: bool) -> None:
    server = Nonsense(ANSWERS[answer], resets=resets)
    try:
        target = open_it(server.url)
        refused = 0
        wrong = []
        for name, attempt in (mirror_attempts if open_it is mirror else attempts)(target):
            try:
                attempt()
            except (TargetError, Damaged):
                refused += 1
            except Exception as problem:
                wrong.append((name, repr(problem)))
        assert not wrong
        assert refused, "it took everything for an answer: this tests nothing"
        target.close()
    finally:
        server.close()
