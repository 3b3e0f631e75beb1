"""A control socket's serving side: a bounded number of threads, one connection each.

Every request for a method that is audited leaves one line in the log: who asked, as the kernel says, for what, and what
became of it.

Which thread a method's work runs in is the daemon's choice: `run` is called with the work and returns its result
(mount hands it to its event loop, tierd runs it where it is).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from appliance.control import peers, wire
from vnafs.domain.actors import Actor, Door
from vnafs.domain.errors import ArchiveBusy, NoSpace, RequestInvalid, VnaError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
ACCEPT_AGAIN_SECONDS = 0.1
RESERVE_BYTES = 1024 * 1024
"""Kept beside each socket; making a name on XFS needs some dozen free blocks."""
Emit = Callable[[Mapping[str, Any]], None]
"""Sends one event line to whoever asked."""


class Asker:
    """Whoever asked: takes event lines, and is who the kernel says."""

    def __init__(self, connection: socket.socket, who: Actor) -> None:
        self._connection = connection
        self.who = who
        """With a name only where the method is audited: names may take a while."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Send one event line."""
        self._connection.sendall(wire.encode({"event": event}))


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """One thing that can be asked for, declared with who may ask and how it is audited."""

    name: str
    call: Callable[[Mapping[str, Any], Asker], Any]
    role: str = "operator"
    """viewer < operator < administrator; the sockets' own users are administrators."""
    audit: str = ""
    """`source:subject:action`, empty for what only reads, and for what daemons ask of each other all the time."""


class ControlServer:
    """Serves methods on one unix socket until closed."""

    def __init__(self, path: str, methods: list[Method]) -> None:
        self._path = path
        self._methods = {method.name: method for method in methods}
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._closed = False
        self._socket = _listen(path)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def _accept(self) -> None:
        while True:
            self._places.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError as problem:
                self._places.release()
                if self._closed:
                    return
                # out of descriptors, most likely: it passes
                log.warning("control.accept_failed", extra={"why": str(problem)})
                time.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            uid = peers.uid_of(connection)
            if uid not in {0, os.geteuid()}:
                connection.close()
                self._places.release()
                log.warning("control.peer_refused", extra={"uid": uid})
                continue
            threading.Thread(target=self._serve, args=(connection, uid), name="control-peer", daemon=True).start()

    def _serve(self, connection: socket.socket, uid: int) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(wire.LINE_BYTES_MAX):
                    self._answer(connection, uid, line)
        except OSError:
            log.debug("control.peer_gone")
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._done.notify_all()
            self._places.release()

    def _answer(self, connection: socket.socket, uid: int, line: bytes) -> None:
        try:
            request = wire.decode(line)
            method = self._method(request)
            claimed = peers.claim_in(request)
            who = peers.actor(uid, claimed) if method.audit else Actor(Door.COMMAND, uid)
            call = functools.partial(method.call, request.get("params") or {}, Asker(connection, who))
            answer: Mapping[str, Any] = {"result": _audited(method, who, call) if method.audit else call()}
        except VnaError as problem:
            answer = wire.error(problem)
        except (KeyError, TypeError, ValueError) as problem:
            log.exception("control.request_failed")
            answer = wire.error(RequestInvalid(method=request.get("method", "?"), why=repr(problem)))
        except OSError as problem:
            log.exception("control.request_failed")
            answer = wire.error(VnaError(why=repr(problem)))
        connection.sendall(wire.encode(answer))

    def _method(self, request: Mapping[str, Any]) -> Method:
        name = str(request.get("method"))
        if request.get("v") != wire.VERSION:
            raise RequestInvalid(method=name, why=f"version {request.get('v')} is not {wire.VERSION}")
        if name not in self._methods:
            raise RequestInvalid(method=name, why=f"known are {', '.join(sorted(self._methods))}")
        return self._methods[name]

    def close(self, seconds_max: float = 0.0) -> bool:
        """Stop answering; requests under way lose their connection. Whether all were done within *seconds_max*.

        Idempotent.
        """
        if not self._closed:
            self._close()
        until = time.monotonic() + seconds_max
        with self._done:
            return self._done.wait_for(lambda: not self._connections, max(0.0, until - time.monotonic()))

    def _close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _listen(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with wire.address(path) as address:
            probe.connect(address)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a daemon that was killed
    else:
        raise ArchiveBusy(what=path, pid="unknown")
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(listener, path)
        os.chmod(path, 0o600)
        listener.listen(CONNECTIONS_MAX)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: str) -> None:
    """Bind, on a full disk with the room that was kept for it: without its daemons nobody would make any."""
    reserve = os.open(f"{path}.reserve", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            with wire.address(path) as address:
                listener.bind(address)
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            log.warning("control.reserve_used", extra={"socket": os.path.basename(path)})
            os.ftruncate(reserve, 0)
            os.fsync(reserve)
            try:
                with wire.address(path) as address:
                    listener.bind(address)
            except OSError as again:
                raise NoSpace(why="the disk of the archive is full; not even a control socket can be made") from again
        try:
            os.posix_fallocate(reserve, 0, RESERVE_BYTES)
        except OSError as problem:
            log.warning("control.no_reserve", extra={"why": str(problem)})
    finally:
        os.close(reserve)


def _audited(method: Method, who: Actor, call: Callable[[], Any]) -> Any:
    """Its result, with one line in the log whatever becomes of it."""
    outcome = "failed"
    try:
        result = call()
        outcome = "done"
    except VnaError as problem:
        outcome = problem.code
        raise
    finally:
        level = logging.WARNING if method.role == "administrator" else logging.INFO
        log.log(level, "control.audited", extra={"deed": method.audit, "who": who.shown(), "outcome": outcome})
    return result
