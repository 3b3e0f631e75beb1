"""What mount answers about rollbacks: what one would do, doing it, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Asker, Emit, Method
from appliance.control.tree import Run
from vnafs.domain.errors import Refused
from vnafs.domain.ids import RepositoryId
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.rollback import Preview

EMIT_SECONDS = 0.5
PAUSE_SECONDS = 0.05
"""When a step could do nothing: the kernel is still being told of the last ones."""


def rollback_methods(filesystem: Filesystem, run: Run, *, sleep: Callable[[float], None] = time.sleep) -> list[Method]:
    """Their declarations; *run* runs work where the tree may be touched, each time a bounded piece."""
    rollbacks, repositories = filesystem.rollbacks, filesystem.repositories

    def preview(params: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
        number = run(lambda: repositories.named(str(params["name"]))).id
        found = Preview()
        steps = rollbacks.preview(number, int(params["to_ns"]), found)
        told = time.monotonic()
        while run(lambda: next(steps, steps)) is not steps:
            if time.monotonic() - told > EMIT_SECONDS:
                told = time.monotonic()
                emit({"done": found.counts.total()})
        return {
            "counts": {outcome.value: count for outcome, count in found.counts.items()},
            "samples": {
                outcome.value: [wire.text(path) for path in paths] for outcome, paths in found.samples.items() if paths
            },
        }

    def rollback(params: Mapping[str, Any], emit: Asker) -> dict[str, Any]:
        number = run(lambda: repositories.named(str(params["name"]))).id
        run(lambda: rollbacks.begin(number, int(params["to_ns"]), emit.who))
        told = time.monotonic()
        while _is_under_way(number):
            if not run(rollbacks.step) and _is_under_way(number):
                if filesystem.failure is not None:
                    raise Refused(what="Going on with the rollback", why=str(filesystem.failure))
                sleep(PAUSE_SECONDS)
            if time.monotonic() - told > EMIT_SECONDS:
                told = time.monotonic()
                emit({"done": sum(run(lambda: rollbacks.counts(number)).values())})
        since = run(lambda: repositories.get(number)).rolling_since_ns
        return {"counts": run(lambda: rollbacks.counts(number)), "since_ns": since}

    def _is_under_way(number: RepositoryId) -> bool:
        return bool(run(lambda: repositories.get(number)).rolling_to_ns)

    return [
        Method("rollback.preview", preview, role="operator"),
        Method("rollback.run", rollback, role="administrator", audit="repository:tree:rolled_back"),
    ]
