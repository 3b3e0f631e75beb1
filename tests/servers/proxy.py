"""A network that misbehaves on demand: an HTTP/1.1 proxy between a client and a real server, on loopback.

A test scripts faults; each is used up by the next request that it fits, in order. What fits none passes through
untouched. A proxy that is closed refuses connections, as a dead server does.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 64 * 1024
BLOCK_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request. The fields combine; with none set the request just passes."""

    method: str = ""
    """Only requests with this method; empty fits all."""
    contains: str = ""
    """Only requests whose path and query contain this."""
    times: int = 1
    delay_seconds: float = 0
    """Before anything is forwarded."""
    answer: int = 0
    """Reply with this status instead of the server."""
    code: str = ""
    """The provider's error code in that reply."""
    headers: tuple[tuple[str, str], ...] = ()
    cut_request_at: int = -1
    """Break both connections after this many bytes of the request's body."""
    cut_reply_at: int = -1
    """Break off after this many bytes of the reply's body; its headers promise all of it."""
    drop_reply: bool = False
    """The server does as it is asked; the client never hears of it."""
    corrupt_request_at: int = -1
    """Flip the bits of this byte of the request's body."""
    corrupt_reply_at: int = -1
    """Flip the bits of this byte of the reply's body."""


class Proxy:
    """One listening proxy in front of *upstream* (`http://host:port`), on any port or on the one of a closed proxy."""

    def __init__(
        self, upstream: str, *, checks_sha256: bool = False, port: int = 0, delay_seconds: float = 0.0
    ) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.checks_sha256 = checks_sha256
        """Refuse a body that is not what its x-amz-checksum-sha256 says, as Amazon does and test servers do not."""
        self.delay_seconds = delay_seconds
        """Before every request is forwarded: a server that is far away."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self._server = _Listener(self, port)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="proxy", daemon=True)
        self._thread.start()

    def script(self, *faults: Fault) -> None:
        """Add faults after those that are still waiting."""
        with self._lock:
            for fault in faults:
                self._faults.extend([fault] * fault.times)

    def forgive(self) -> None:
        """Drop the faults that are still waiting."""
        with self._lock:
            self._faults.clear()

    @property
    def waiting(self) -> int:
        """Faults that no request has met yet."""
        with self._lock:
            return len(self._faults)

    def close(self) -> None:
        """Stop listening and break every connection. Idempotent."""
        self._server.shutdown()
        self._server.break_all()
        self._server.server_close()
        self._thread.join()

    def _next_fault(self, method: str, path: str) -> Fault:
        with self._lock:
            self.requests.append(f"{method} {path}")
            for index, fault in enumerate(self._faults):
                if fault.method in {"", method} and fault.contains in path:
                    return self._faults.pop(index)
        return Fault()


@contextlib.contextmanager
def proxy(upstream: str, *, checks_sha256: bool = False, delay_seconds: float = 0.0) -> Iterator[Proxy]:
    """A proxy for the length of the block."""
    found = Proxy(upstream, checks_sha256=checks_sha256, delay_seconds=delay_seconds)
    try:
        yield found
    finally:
        found.close()


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64
    block_on_close = True

    def __init__(self, owner: Proxy, port: int) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Connection)

    def opened(self, connection: socket.socket) -> None:
        with self._open_lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._open_lock:
            self._open.discard(connection)

    def break_all(self) -> None:
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Broken(Exception):
    """Either side is gone, or the fault says so."""


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Listener

    def handle(self) -> None:
        self.server.opened(self.request)
        upstream = None
        try:
            upstream = socket.create_connection(self.server.owner.upstream, timeout=120)
            self.server.opened(upstream)
            with self.request.makefile("rb") as client, upstream.makefile("rb") as server:
                while self._exchange(client, upstream, server):
                    pass
        except (_Broken, OSError):
            pass
        finally:
            self.server.closed(self.request)
            if upstream is not None:
                self.server.closed(upstream)
                upstream.close()

    def _exchange(self, client: BinaryIO, upstream: socket.socket, server: BinaryIO) -> bool:
        """One request and its reply; whether the connection goes on."""
        start, headers = _read_head(client)
        method, path, _version = start.split(" ", 2)
        fault = self.server.owner._next_fault(method, path)
        if delay_seconds := fault.delay_seconds + self.server.owner.delay_seconds:
            time.sleep(delay_seconds)
        if headers.pop("expect", "").lower() == "100-continue":
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault.answer:
            _pass_body(client, headers, lambda _data: None)
            self._reply(fault.answer, fault.code, fault.headers)
            return False
        if self.server.owner.checks_sha256 and "x-amz-checksum-sha256" in headers:
            body: list[bytes] = []
            _pass_body(client, headers, body.append)
            found = base64.b64encode(hashlib.sha256(b"".join(body)).digest()).decode()
            if found != headers["x-amz-checksum-sha256"]:
                self._reply(400, "BadDigest", ())
                return False
            upstream.sendall(_head(start, headers))
            for data in body:
                upstream.sendall(data)
        else:
            upstream.sendall(_head(start, headers))
            _pass_body(client, headers, _mangled(upstream.sendall, fault.cut_request_at, fault.corrupt_request_at))
        return self._answer(method, server, fault)

    def _answer(self, method: str, server: BinaryIO, fault: Fault) -> bool:
        status, headers = _read_head(server)
        while status.split(" ")[1] == "100":
            status, headers = _read_head(server)
        if fault.drop_reply:
            if method != "HEAD":
                _pass_body(server, headers, lambda _data: None)
            raise _Broken
        self.request.sendall(_head(status, headers))
        if method != "HEAD" and status.split(" ")[1] not in {"204", "304"}:
            _pass_body(server, headers, _mangled(self.request.sendall, fault.cut_reply_at, fault.corrupt_reply_at))
        return headers.get("connection", "").lower() != "close"

    def _reply(self, status: int, code: str, extra: tuple[tuple[str, str], ...]) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
        headers = {"content-type": "application/xml", "content-length": str(len(body)), "connection": "close"}
        if code:
            headers["x-ms-error-code"] = code
        headers.update((name.lower(), value) for name, value in extra)
        self.request.sendall(_head(f"HTTP/1.1 {status} Scripted", headers) + body)


def _read_head(source: BinaryIO) -> tuple[str, dict[str, str]]:
    start = source.readline(HEAD_BYTES_MAX).decode("latin-1").rstrip("\r\n")
    if not start:
        raise _Broken
    headers: dict[str, str] = {}
    while line := source.readline(HEAD_BYTES_MAX).decode("latin-1").rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return start, headers


def _head(start: str, headers: dict[str, str]) -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _pass_body(source: BinaryIO, headers: dict[str, str], send: Callable[[bytes], object]) -> None:
    """Hand the body that *headers* announce to *send*, chunk framing included when it has one."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            line = source.readline(HEAD_BYTES_MAX)
            send(line)
            size = int(line.split(b";")[0], 16)
            send(_exactly(source, size + 2))
            if size == 0:
                return
    left = int(headers.get("content-length", "0"))
    while left:
        data = source.read(min(BLOCK_BYTES, left))
        if not data:
            raise _Broken
        left -= len(data)
        send(data)


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise _Broken
    return data


def _mangled(send: Callable[[bytes], object], cut_at: int, corrupt_at: int) -> Callable[[bytes], None]:
    """*send* with one byte changed, or with an end before the end."""
    at = 0

    def mangle(data: bytes) -> None:
        nonlocal at
        if 0 <= cut_at < at + len(data):
            send(data[: cut_at - at])
            raise _Broken
        if at <= corrupt_at < at + len(data):
            spoiled = bytearray(data)
            spoiled[corrupt_at - at] ^= 0xFF
            data = bytes(spoiled)
        at += len(data)
        send(data)

    return mangle
