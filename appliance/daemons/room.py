"""How much room targets have, looked at now and then, so that statfs of a share can say it.

A directory says it itself; object stores have no end. `look` may wait for as long as a dead NFS server does, so it
belongs in a thread that nobody waits for: meanwhile all count as they were last seen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from vnafs.domain.errors import ConfigurationInvalid
from vnafs.local.space import Room
from vnafs.targets.address import DirectoryAddress, parse_address

log = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
"""Between two looks."""

Urls = Callable[[], Sequence[str]]
"""Where the archive's targets are now. Raises ConfigurationInvalid while somebody writes that down."""


class TargetRoom:
    """The room on each target, as last seen."""

    def __init__(self, urls: Urls) -> None:
        self._urls = urls
        self._known: dict[str, Room] = {}

    def look(self) -> list[Room | None] | None:
        """All of them, None for one without an end or of which nothing is known; None: nobody knows which there are."""
        try:
            urls = self._urls()
        except ConfigurationInvalid as problem:
            log.warning("room.configuration", extra={"why": str(problem)})
            return None
        self._known = {url: room for url, room in self._known.items() if url in urls}
        for url in urls:
            address = parse_address(url)
            room = _room(address.path) if isinstance(address, DirectoryAddress) else None
            if room is not None:
                self._known[url] = room
        return [self._known.get(url) for url in urls]


def _room(path: str) -> Room | None:
    try:
        found = os.statvfs(path)
    except OSError as error:
        log.info("room.unknown", extra={"errno": error.errno})
        return None
    size = found.f_frsize
    return Room(found.f_blocks * size, found.f_bavail * size, found.f_files, found.f_favail)
