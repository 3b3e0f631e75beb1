"""Whose turn it is on the processor: threads that nobody waits for let others go first.

It knows no work. Linux schedules threads one by one, so a process may have both kinds. Any thread, for itself.
"""

from __future__ import annotations

import contextlib
import os

BEHIND = 10
"""On the nice scale (sched(7)): a tenth of the time of each thread that is not behind, all of what these leave."""


def go_behind() -> None:
    """From now on the calling thread makes way for whoever answers clients; it cannot come back.

    Where the system refuses, it stays where it is.
    """
    with contextlib.suppress(OSError):
        here = os.getpriority(os.PRIO_PROCESS, 0)  # of Linux, 0 is the thread (setpriority(2), "C library/kernel")
        os.setpriority(os.PRIO_PROCESS, 0, max(here, BEHIND))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # it never interrupts whoever runs when it wakes
