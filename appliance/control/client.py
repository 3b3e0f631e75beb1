"""A control socket's asking side: synchronous, one connection a thread, reconnecting when a daemon restarted."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from appliance.control import wire
from vnafs.domain.errors import DaemonUnreachable


class ControlClient:
    """Asks one daemon. Safe for several threads: each has its own connection."""

    def __init__(
        self, path: str, daemon: str, *, timeout_seconds: float | None = 60.0, on_behalf_of: int | None = None
    ) -> None:
        """*on_behalf_of* is the user for whom this process says to ask; the daemon notes it as a claim."""
        self._path = path
        self._daemon = daemon
        self._timeout_seconds = timeout_seconds
        self._claim = {} if on_behalf_of is None else {"on_behalf_of": on_behalf_of}
        self._local = threading.local()

    def call(
        self, method: str, *, on_event: Callable[[Mapping[str, Any]], None] | None = None, **params: object
    ) -> Any:
        """The method's result. Raises what the daemon refused with, or DaemonUnreachable.

        A connection that a restart broke is opened again once: every method may be repeated.
        """
        reused = getattr(self._local, "connection", None) is not None
        try:
            return self._ask(method, params, on_event)
        except _Broken as problem:
            if not reused:
                raise self._unreachable(problem) from problem
        try:
            return self._ask(method, params, on_event)
        except _Broken as problem:
            raise self._unreachable(problem) from problem

    def _ask(
        self, method: str, params: Mapping[str, object], on_event: Callable[[Mapping[str, Any]], None] | None
    ) -> Any:
        try:
            connection, lines = self._connect()
            connection.sendall(wire.encode({"v": wire.VERSION, "method": method, "params": params, **self._claim}))
            while True:
                message = wire.decode(_line(lines))
                if "event" not in message:
                    break
                if on_event is not None:
                    on_event(message["event"])
        except TimeoutError as problem:
            self.close()  # it may still be at work: asking again would do the work twice
            raise DaemonUnreachable(
                daemon=self._daemon, socket=self._path, why=f"no answer within {self._timeout_seconds} s"
            ) from problem
        except OSError as problem:
            self.close()
            raise _Broken(str(problem)) from problem
        except BaseException:
            self.close()  # an answer may still be on its way; it must not be taken for the next one's
            raise
        if "error" in message:
            raise wire.raised(message["error"])
        return message["result"]

    def _connect(self) -> tuple[socket.socket, BinaryIO]:
        if getattr(self._local, "connection", None) is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_seconds)
            try:
                with wire.address(self._path) as address:
                    connection.connect(address)
            except OSError:
                connection.close()
                raise
            self._local.connection = connection
            self._local.lines = connection.makefile("rb")
        return self._local.connection, self._local.lines

    def _unreachable(self, problem: Exception) -> DaemonUnreachable:
        return DaemonUnreachable(daemon=self._daemon, socket=self._path, why=str(problem))

    def close(self) -> None:
        """Close this thread's connection. Idempotent."""
        if getattr(self._local, "connection", None) is not None:
            with contextlib.suppress(OSError):
                self._local.lines.close()
                self._local.connection.close()
            self._local.connection = None


class _Broken(Exception):
    """The connection ended before the answer."""


def _line(lines: BinaryIO) -> bytes:
    line = lines.readline(wire.LINE_BYTES_MAX)
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the daemon closed the connection")
    return line
