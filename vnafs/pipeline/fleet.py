"""The fleet: a replicator for each target that is configured, and which targets count.

The configuration says which targets there are, the store which ones packs were brought to; a target that is in the
store and not in the configuration cannot be reached now and still counts, until it is retired. Any thread.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping

from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import ConfigurationInvalid, NotFound, Refused
from vnafs.domain.ids import TargetName
from vnafs.index import copies, packs, recount, targets
from vnafs.index.engine import Engine
from vnafs.pipeline.replicate import Replicator, backfill
from vnafs.pipeline.settings import Destination
from vnafs.targets.port import Target


class Fleet:
    """*made* gives a replicator for a target, *begin* starts it if it is time to; *changed*: other targets count."""

    def __init__(
        self,
        store: Engine,
        *,
        made: Callable[[targets.TargetRow, Destination], Replicator],
        begin: Callable[[Replicator], None],
        changed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._store = store
        self._made = made
        self._begin = begin
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._replicators: dict[int, Replicator] = {}
        self._hanging: list[Replicator] = []
        """Of targets that are configured no more, and that did not end when they were asked to."""

    def every(self) -> list[Replicator]:
        """Every target's transfers."""
        with self._lock:
            return list(self._replicators.values())

    def sources(self) -> Mapping[int, Target]:
        """Targets to read from, those that answer first: a reader must not wait for one that is known to be down."""
        found = sorted(self.every(), key=lambda replicator: not replicator.health.reachable)
        return {replicator.number: replicator.target for replicator in found}

    def follow(self, wanted: Mapping[TargetName, Destination]) -> None:
        """Follow the configuration: new targets are back-filled, those that are missing cannot be reached now.

        A missing one still counts: only `retire` ends that, and it looks first. Raises ConfigurationInvalid when a
        name points to another place than the one its copies are at.
        """
        now = self._clock.now()
        with self._store.write() as tx:
            known = {row.name: row for row in targets.every(tx) if not row.removed}
            number = max((row.number for row in targets.every(tx)), default=0)
            for name, destination in wanted.items():
                if name not in known:
                    number += 1
                    known[name] = targets.TargetRow(number, name, destination.url)
                    targets.put(tx, known[name])
                elif known[name].url != destination.url:
                    raise ConfigurationInvalid(
                        file="vnafs.toml",
                        key=f"target {name}: url",
                        value=destination.url,
                        why=f"its copies are at {known[name].url}",
                        fix="Write that URL again, and add the other place as a target with another name",
                    )
        for name, row in known.items():
            with self._lock:
                running = self._replicators.get(row.number)
            if name not in wanted and running is not None:
                with self._lock:
                    del self._replicators[row.number]
                self._end(running)
            elif name in wanted and running is None:
                backfill(self._store, row.number, now=now)
                replicator = self._made(row, wanted[name])
                with self._lock:
                    self._replicators[row.number] = replicator
                self._begin(replicator)
        self._changed()

    def retire(self, name: TargetName) -> None:
        """Let a target count no more. Raises NotFound, or Refused when it alone holds some pack verified."""
        with self._store.write() as tx:
            row = next((row for row in targets.current(tx).values() if row.name == name), None)
            if row is None:
                raise NotFound(what=f"target {name}")
            others = targets.current(tx).keys() - {row.number}
            alone = 0
            for pack in packs.every(tx):
                held = {c.target for c in copies.of_pack(tx, pack.number) if c.state is CopyState.VERIFIED}
                alone += row.number in held and not held & others
            if alone:
                raise Refused(
                    what=f"Removing target {name}",
                    why=f"{alone} packs have their only verified copy there; add another target and wait for it first",
                )
            targets.put(tx, dataclasses.replace(row, removed=True))
            recount.correct_held(tx)
        with self._lock:
            running = self._replicators.pop(row.number, None)
        if running is not None:
            self._end(running)
        self._changed()

    def _end(self, replicator: Replicator) -> None:
        if not replicator.stop():
            with self._lock:
                self._hanging.append(replicator)

    def join(self, seconds_max: float) -> bool:
        """Wait for the end of all that were asked to stop, former ones too; whether that came."""
        until = time.monotonic() + seconds_max
        with self._lock:
            leaving = [*self._replicators.values(), *self._hanging]
        return all(replicator.join(max(0.0, until - time.monotonic())) for replicator in leaving)
