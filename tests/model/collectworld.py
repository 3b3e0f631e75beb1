"""An archive that removes what nobody needs, with manifests: see `pipelineworld`."""

from __future__ import annotations

from collections.abc import Callable

from tests.model.test_manifest_model import Recorded
from vnafs.domain.ids import Inode, TargetName, Version
from vnafs.index import condemned
from vnafs.index.condemned import Removal, Stage
from vnafs.index.contents import Content
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.repack import Repacker
from vnafs.upkeep.collect import LOOK_SECONDS, Collector, CollectSettings

AFTER_SECONDS = 500.0
YOUNG_SECONDS = 50.0


class Repacks(Repacker):
    """One thread packs and records here: a pack that waits to be recorded would wait for itself."""

    record: Callable[[], bool]

    def repack(self, content: Content, inode: Inode, version: Version) -> None:
        super().repack(content, inode, version)
        while self.record():
            pass


class Collecting(Recorded):
    """Time passes in minutes here, not in days."""

    after_seconds = AFTER_SECONDS
    live_percent_min = 60.0
    storage_seconds_min = 0.0

    def begin(self) -> None:
        super().begin()
        tiering = self.tiering
        repacker = Repacks(self._store, Namespace(self._namespace), tiering.recaller, tiering.packer, self.fate)
        repacker.record = tiering._recorder.record_next
        self.collector = Collector(
            self._store,
            self._namespace,
            CollectSettings(self.after_seconds, self.live_percent_min, YOUNG_SECONDS),
            shelf=tiering.shelf,
            repacker=repacker,
            fold=self.fs.fold,
            covers=self.manifests.covers,
            leads=self.manifests.leads,
            storage_seconds_min=lambda: {one.number: self.storage_seconds_min for one in tiering.replicators()},
            may_pack=tiering.may_pack,
            kick=tiering.kick,
            gone=tiering.contents_gone,
            clock=self.clock,
            faults=self.fate,
            fatal=_raise,
        )

    def expire(self) -> None:
        """What was kept for long enough is over, and the store hears of it."""
        while self.fs.upkeep():
            pass
        for _ in range(50):
            self.tiering.tend()

    def collect(self, seconds: float = AFTER_SECONDS + YOUNG_SECONDS + LOOK_SECONDS) -> None:
        """Let so much time pass, with everything that goes on in it."""
        passed = 0.0
        while passed < seconds:
            self.expire()
            while self.collector.step():
                pass
            for _ in range(10):
                self.tiering.step()
            self.manifests.step()
            self.clock.advance(61)
            passed += 61

    def stages(self) -> dict[Stage, int]:
        """How many packs are condemned, and why."""
        found = dict.fromkeys(Stage, 0)
        with self.reading() as reader:
            for stage in Stage:
                found[stage] = sum(1 for _ in condemned.in_stage(reader, stage))
        return found

    def removals_open(self) -> int:
        """Objects that a target still has to remove."""
        with self.reading() as reader:
            rows = list(condemned.in_stage(reader, Stage.REMOVED))
        numbers = [replicator.number for replicator in self.tiering.replicators()]
        return sum(
            number not in row.asked or row.asked[number].removal is not Removal.GONE
            for _, row in rows
            for number in numbers
        )

    def object_count(self, target: TargetName) -> int:
        """Packs on a target."""
        return len(self.stored(target))


def _raise(problem: BaseException) -> None:
    raise problem
