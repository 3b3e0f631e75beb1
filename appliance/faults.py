"""Fault points driven from the command line of a daemon, for tests that kill it at a named place.

`--fault pack.closed=kill` ends the process by SIGKILL the first time the point is reached, `=kill:5` the fifth time,
`=delay:0.5` waits at each.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from vnafs.domain.errors import RequestInvalid
from vnafs.domain.faults import POINTS, RARE_POINTS, Faults, NoFaults


class ScriptedFaults:
    """One action at one point."""

    def __init__(self, point: str, action: str, argument: float) -> None:
        self._point = point
        self._action = action
        self._argument = argument
        self._reached = 0
        self._lock = threading.Lock()

    def reach(self, point: str) -> None:
        """See Faults."""
        if point != self._point:
            return
        if self._action == "delay":
            time.sleep(self._argument)
            return
        with self._lock:
            self._reached += 1
            if self._reached >= self._argument:
                os.kill(os.getpid(), signal.SIGKILL)


def faults_from(text: str | None) -> Faults:
    """The faults that `--fault` asks for. Raises RequestInvalid."""
    if text is None:
        return NoFaults()
    point, _, rest = text.partition("=")
    action, _, argument = rest.partition(":")
    known = (*POINTS, *RARE_POINTS)
    if point not in known or action not in {"kill", "delay"}:
        raise RequestInvalid(method=f"--fault {text}", why=f"write POINT=kill[:COUNT]; points are {', '.join(known)}")
    return ScriptedFaults(point, action, float(argument or 1))
