"""A shorter way to the next request for pyfuse3, whose own passes through trio's scheduler twice for each one.

While requests keep coming, a `poll` says so and the next is taken at once; a client that waits for one answer before
it asks again is caught by polling for some microseconds more. Otherwise one task waits in the loop and the others
are parked, the one that worked last on top: only as many ever work, and own a request buffer, as are needed at once.

pyfuse3 has no hook for this, so its wait function is replaced by name; should a later release not have it, nothing
is replaced and only speed is lost. Trio, one thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from types import ModuleType

import trio
from trio.lowlevel import Abort, Task

_LOG = logging.getLogger(__name__)

HOOK = "_wait_fuse_readable"
REQUESTS_PER_TURN_MAX = 32
"""After so many without a pause, everything else that is ready runs once."""
_DEVICE = "/dev/fuse"


class Readiness:
    """Decides which of pyfuse3's tasks reads the next request, and when."""

    def __init__(self, descriptor: int, spin_seconds: float) -> None:
        self._descriptor = descriptor
        self._spin_seconds = spin_seconds
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        self._poll = poller.poll
        self._seen: set[Task] = set()
        self._parked: list[Task] = []
        self._is_watched = False
        self._streak = 0

    async def wait(self) -> bool:
        """True once a request can be read without blocking, False when none will come.

        Whoever gets True reads before anything else runs.
        """
        task = trio.lowlevel.current_task()
        is_new = task not in self._seen
        if is_new:
            self._seen.add(task)
        elif await self._soon():
            return True
        if self._is_watched:
            # pyfuse3 starts tasks ahead of need: new ones go below those that have a buffer
            self._parked.insert(0 if is_new else len(self._parked), task)
            await trio.lowlevel.wait_task_rescheduled(lambda _: self._leave(task))
        self._is_watched = True
        try:
            while True:
                await trio.lowlevel.wait_readable(self._descriptor)
                if self._poll(0):  # a task that came by meanwhile may have been faster
                    return True
        except trio.ClosedResourceError:
            return False
        finally:
            self._is_watched = False
            if self._parked:
                self._is_watched = True
                trio.lowlevel.reschedule(self._parked.pop())

    async def _soon(self) -> bool:
        self._streak += 1
        if self._streak >= REQUESTS_PER_TURN_MAX:
            self._streak = 0
            await trio.lowlevel.checkpoint()
        poll, clock = self._poll, time.perf_counter
        until = clock() + self._spin_seconds
        while True:
            if poll(0):
                return True
            if clock() > until:
                return False

    def _leave(self, task: Task) -> Abort:
        if task not in self._parked:
            return Abort.FAILED  # it was just called to watch
        self._parked.remove(task)
        return Abort.SUCCEEDED


def session_descriptor() -> int | None:
    """The descriptor of the mount's session; None unless there is exactly one."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == _DEVICE:
                found.append(int(name))
    return found[0] if len(found) == 1 else None


@contextlib.contextmanager
def shortcut(engine: ModuleType, spin_seconds: float) -> Iterator[None]:
    """While in the block, *engine* (pyfuse3, after init) waits the shorter way."""
    original: Callable[[], Awaitable[bool]] | None = getattr(engine, HOOK, None)
    descriptor = session_descriptor()
    if original is None or descriptor is None:
        _LOG.warning("fuse.no_shortcut")
        yield
        return
    setattr(engine, HOOK, Readiness(descriptor, spin_seconds).wait)
    try:
        yield
    finally:
        setattr(engine, HOOK, original)
