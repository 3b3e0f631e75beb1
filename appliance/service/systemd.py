"""What a service manager is told and keeps: sd_notify(3) and sd_listen_fds(3), which are a datagram and two variables.

systemd keeps descriptors for a service that dies or is restarted, and gives them to the next one. Knows nothing of what
they are. One thread. A manager that does not listen holds up nobody for longer than SEND_SECONDS_MAX.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

FIRST = 3
"""SD_LISTEN_FDS_START: what is given begins here."""
GIVEN_MAX = 64
SEND_SECONDS_MAX = 5.0
_VARIABLES = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ServiceManager:
    """Whoever started us, if it listens."""

    def __init__(self, address: str = "", given: Mapping[str, int] | None = None) -> None:
        """*address* is where it listens, "" for nowhere; *given* are descriptors by name, ours from now on."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.given = dict(given or {})

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def ready(self) -> None:
        """The service answers."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """The service ends."""
        self._tell("STOPPING=1")

    def keep(self, name: str, descriptor: int) -> None:
        """Keep a copy of it for the next process, whatever becomes of it."""
        self._tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def forget(self, name: str) -> None:
        """Keep none of that name any more."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def drop_given(self) -> None:
        """Close what was given, and have it forgotten."""
        for name, descriptor in self.given.items():
            os.close(descriptor)
            self.forget(name)
        self.given = {}

    def _tell(self, words: str, *descriptors: int) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(SEND_SECONDS_MAX)
                end.connect(self._address)
                socket.send_fds(end, [words.encode()], list(descriptors))
        except OSError as error:
            log.warning("service.not_told", extra={"what": words.partition("=")[0], "why": str(error)})


def manager_of(environ: Mapping[str, str]) -> tuple[ServiceManager, dict[str, str]]:
    """Whoever started this process, and the environment for processes that it starts in turn.

    Of what is given under one name only the last is kept; what has no name that we know is the caller's to close.
    """
    rest = {name: value for name, value in environ.items() if name not in _VARIABLES}
    count = environ.get("LISTEN_FDS", "0") if environ.get("LISTEN_PID") == str(os.getpid()) else "0"
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    given: dict[str, int] = {}
    for number in range(min(int(count), GIVEN_MAX) if count.isascii() and count.isdigit() else 0):
        descriptor = FIRST + number
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:
            continue  # it said more than it gave
        name = names[number] if number < len(names) else "unknown"
        if name in given:
            os.close(given[name])
        given[name] = descriptor
    return ServiceManager(environ.get("NOTIFY_SOCKET", ""), given), rest
