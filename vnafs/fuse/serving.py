"""What both engines share of serving a mount: options, tasks that live and end together, upkeep of the tree.

It knows no protocol. Trio, one thread.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable

import trio

from vnafs.domain.errors import NoSpace, TooManyOpen, VnaError
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.admission import Admission
from vnafs.fuse.syncing import Syncing

_LOG = logging.getLogger(__name__)

UPKEEP_STEPS_MAX = 32
"""In one turn, so that upkeep never takes more than a part of the loop's time."""


@dataclasses.dataclass(frozen=True, slots=True)
class MountOptions:
    """How the tree is mounted; the defaults suit one machine."""

    allow_other: bool | None = None
    """Other users may enter; None: when we run as root, who needs no configuration for it."""
    cache_seconds: float = 3600.0
    """How long the kernel may keep names and attributes that it was not told to forget."""
    requests_max: int = 512
    """Requests in work at once, waiting ones included."""
    recalls_waiting_max: int = 384
    """Requests that may wait for a recall at once; the next one gets EAGAIN, so that others still find a turn."""
    reap_seconds: float = 1.0
    """How often local bytes of removed files are given back to the disk, and what failed is tried again."""
    admission: Admission = dataclasses.field(default_factory=Admission)
    """Who may make bytes come back."""
    backings_max: int = 16384
    """Inodes whose local file the kernel reads and writes itself at one time; kernel engine, 0 for none."""
    poll_seconds: float = 0.0
    """How long the kernel engine looks for the next request before it sleeps. A wake-up costs more than a request, but
    where processors are shared with those who ask, looking takes their time."""


def allows_other(options: MountOptions) -> bool:
    """Whether other users may enter."""
    return os.geteuid() == 0 if options.allow_other is None else options.allow_other


async def together(main: Callable[[], Awaitable[None]], *others: Callable[[], Awaitable[None]]) -> None:
    """Run all until *main* returns or one of them raises. Raises the VnaError that ended it, not a group of one."""
    ended: VnaError | None = None
    try:
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(other)
            await main()
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        ended = _only_error(group)
        if ended is None:
            raise
    if ended is not None:
        raise ended


def _only_error(group: ExceptionGroup[Exception]) -> VnaError | None:
    """The error in a group, however deep, when there is one and it is ours."""
    errors: dict[int, Exception] = {}
    groups = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, ExceptionGroup):
                groups.append(error)
            else:
                errors[id(error)] = error  # several tasks may raise the one that ended the tree
    [error, *more] = errors.values()
    return error if isinstance(error, VnaError) and not more else None


async def keep_up(filesystem: Filesystem, syncing: Syncing, every_seconds: float) -> None:
    """Give local bytes back to the disk and try again what it refused, for ever.

    Raises why the tree failed once it did: a tree that refuses every change must end to be started again.
    """
    while True:
        await trio.sleep(every_seconds)
        if filesystem.failure is not None:
            raise filesystem.failure
        try:
            for _ in range(UPKEEP_STEPS_MAX):
                if not filesystem.upkeep():
                    break
                await trio.lowlevel.checkpoint()
            if filesystem.drops_pending:
                await syncing.until(filesystem.engine.position)
                while filesystem.reap():
                    await trio.lowlevel.checkpoint()
            await syncing.removals()
        except (NoSpace, TooManyOpen) as refused:
            _LOG.warning("fuse.upkeep_postponed", extra={"why": str(refused)})
