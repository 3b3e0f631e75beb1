"""The plain mirrors that are configured: each with rows, threads and troubles of its own.

Rows of a mirror that is configured no more stay until it is forgotten, so that one taken out for a while goes on where
it was. One that cannot be opened is shown with the reason and holds up no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NotFound, Refused, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.ids import Inode, TargetName, Version
from vnafs.domain.repositories import Repository
from vnafs.index import meta, mirrored
from vnafs.index.engine import Engine
from vnafs.targets.mirror import Mirror
from vnafs.upkeep.mirroring import STOP_SECONDS_MAX, Bytes, Mirroring, MirrorRules

log = logging.getLogger(__name__)

URL = "mirror.url"
"""Where the objects are of which the rows tell."""


@dataclasses.dataclass(frozen=True, slots=True)
class WantedMirror:
    """One mirror that is configured."""

    rules: MirrorRules
    open: Callable[[], Mirror]


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """What one mirror still has of erased files."""

    name: TargetName
    count: int | None
    """Names; None when the mirror cannot be opened, so that nobody knows."""
    keeps_removed: bool

    @property
    def said(self) -> str:
        """In words."""
        if self.count is None:
            return "it cannot be opened, so what it has of the files is not known"
        has = f"it has {self.count} names of the files still" if self.count else "it has none of the files"
        if self.keeps_removed:
            has += "; under names that were removed or renamed before the erasure it keeps what it had"
        return has


class Mirrors:
    """See the module. *open_rows* opens the rows in a folder, *every* gives all repositories."""

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        folder: str,
        namespace: Engine,
        *,
        open_rows: Callable[[str], Engine],
        every: Callable[[], Sequence[Repository]],
        local_path: Callable[[Inode, Version], str],
        bytes_of: Bytes,
        taking_room: Callable[[int], contextlib.AbstractContextManager[None]],
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._folder = folder
        self._namespace = namespace
        self._open_rows = open_rows
        self._every = every
        self._local_path = local_path
        self._bytes_of = bytes_of
        self._taking_room = taking_room
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._lock = threading.Lock()
        self._running: dict[TargetName, Mirroring] = {}
        self._broken: dict[TargetName, tuple[MirrorRules, str]] = {}
        self._hanging: list[Mirroring] = []
        """Asked to stop, and not ended yet: their rows stay open."""
        self._suspended = ""

    # -- life ----------------------------------------------------------------------------------------------------

    def follow(self, wanted: Mapping[TargetName, WantedMirror]) -> None:
        """Run those that are configured, and no others."""
        with self._lock:
            if self._suspended:
                return
            for name, running in list(self._running.items()):
                if name not in wanted or wanted[name].rules != running.rules:
                    del self._running[name]
                    self._end(running)
            self._broken.clear()
            for name, one in wanted.items():
                if name not in self._running:
                    try:
                        self._running[name] = self._started(name, one)
                    except (VnaError, OSError) as problem:
                        log.error("mirror.not_opened", extra={"target": name, "why": str(problem)})  # noqa: TRY400 - shown
                        self._broken[name] = (one.rules, str(problem))

    def _started(self, name: TargetName, wanted: WantedMirror) -> Mirroring:
        folder = os.path.join(self._folder, name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        rows = self._open_rows(os.path.join(folder, "rows"))
        try:
            _note_place(rows, name, wanted.rules.url)
            made = Mirroring(
                rows,
                self._namespace,
                wanted.open(),
                wanted.rules,
                os.path.join(folder, "staged"),
                local_path=self._local_path,
                bytes_of=self._bytes_of,
                taking_room=self._taking_room,
                clock=self._clock,
                faults=self._faults,
                fatal=self._fatal,
            )
        except BaseException:
            rows.close()
            raise
        made.start()
        return made

    def _end(self, running: Mirroring, seconds_max: float = STOP_SECONDS_MAX) -> bool:
        """Needs the lock. Whether it ended; else it ends with the process."""
        running.ask_to_stop()
        if not running.join(seconds_max):
            self._hanging.append(running)
            return False
        running.mirror.close()
        running.rows.close()
        return True

    def suspend(self, why: str) -> None:
        """The archive went on elsewhere: what is mirrored now is not what is true. Until the next start."""
        with self._lock:
            self._suspended = why
            for running in self._running.values():
                running.ask_to_stop()

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> bool:
        """End all; False when something hangs and is given up with the process."""
        until = time.monotonic() + seconds_max
        with self._lock:
            for running in self._running.values():
                running.ask_to_stop()
            ended = [self._end(running, max(0.0, until - time.monotonic())) for running in self._running.values()]
            self._running.clear()
            return all(ended) and all(hanging.join(0.0) for hanging in self._hanging)

    def forget(self, name: TargetName) -> None:
        """Remove the rows of a mirror that is configured no more; its objects stay. Raises Refused."""
        with self._lock:
            if name in self._running or any(hanging.name == name for hanging in self._hanging):
                raise Refused(what=f"Forgetting mirror {name}", why="it still runs")
            shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)

    # -- asked ---------------------------------------------------------------------------------------------------

    def test(self, name: TargetName) -> None:
        """Look at the place now, and forget the back-off. Raises what the mirror raises, NotFound."""
        with self._lock:
            running = self._running.get(name)
            broken = self._broken.get(name)
        if running is None:
            if broken is not None:
                raise Refused(what=f"Mirror {name}", why=broken[1])
            raise NotFound(what=f"mirror {name}")
        running.mirror.probe(known=running.is_begun)
        running.hurry()

    def left(self, files: Collection[Inode]) -> list[Left]:
        """How many names of erased files each mirror still has, as far as its rows say."""
        found = []
        with self._lock:
            for name, one in self._running.items():
                with one.rows.read() as reader:
                    count = sum(len(mirrored.names_of(reader, inode)) for inode in files)
                found.append(Left(name, count, keeps_removed=one.rules.keeps_removed))
            found += [Left(name, None, keeps_removed=rules.keeps_removed) for name, (rules, _) in self._broken.items()]
        return found

    def status(self) -> list[dict[str, Any]]:
        """How each does."""
        repositories = self._every()
        with self._lock:
            running, broken = dict(self._running), dict(self._broken)
            suspended = self._suspended
            rows = []
            for name, one in running.items():
                standing = dataclasses.asdict(one.standing())
                if suspended:
                    standing |= {"reachable": False, "why": suspended}
                rows.append(
                    {
                        "name": name,
                        "url": one.rules.url,
                        **standing,
                        "removals": "keep" if one.rules.keeps_removed else "follow",
                        "left_out": one.left_out(repositories),
                        "in_plain": one.in_plain(repositories),
                    }
                )
        for name, (rules, why) in broken.items():
            rows.append({"name": name, "url": rules.url, "reachable": False, "why": why})
        return sorted(rows, key=lambda row: str(row["name"]))


def _note_place(rows: Engine, name: TargetName, url: str) -> None:
    """Raises Refused when the rows tell of another place."""
    with rows.write() as tx:
        known = meta.get_bytes(tx, URL) or url.encode()
        meta.set_bytes(tx, URL, known)
    if known != url.encode():
        why = f"its objects are at {known.decode()}; remove it with `vna mirror remove` and add it again"
        raise Refused(what=f"Mirror {name} at another place", why=why)
