"""Threads that nobody waits for go behind, alone."""

from __future__ import annotations

import os
import threading

from vnafs.local.turns import BEHIND, go_behind


def test_only_the_thread_that_goes_behind_makes_way() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[tuple[int, int]] = []

    def work() -> None:
        go_behind()
        seen.append((os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(max(before, BEHIND), os.SCHED_BATCH)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert os.sched_getscheduler(0) != os.SCHED_BATCH
