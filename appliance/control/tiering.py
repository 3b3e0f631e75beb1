"""What tierd answers about copies: status, what is pending, eviction, verification, targets.

Everything here reads rows or calls tiering; nothing is decided here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Emit, Method
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import Damaged, NotFound, TargetError
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import Inode, PackNumber, TargetName, Version, pack_object_name
from vnafs.index import contents, copies, packs, targets
from vnafs.index.engine import Engine
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.runner import Tiering
from vnafs.targets.verifying import verify

COUNT_MAX = 1_000_000
"""Counting stops here: a status answers in a moment at any size."""
IN_WORK = (FileState.OPEN, FileState.SEALED, FileState.PACKED)


class TieringControl:
    """Methods over one Tiering."""

    def __init__(
        self,
        tiering: Tiering,
        store: Engine,
        namespace: Engine,
        *,
        reload: Callable[[], None],
        clock: Clock,
        quiet_seconds: float,
    ) -> None:
        self._tiering = tiering
        self._store = store
        self._namespace = Namespace(namespace)
        self._reload = reload
        self._clock = clock
        self._quiet_seconds = quiet_seconds

    def methods(self) -> list[Method]:
        """Their declarations."""
        return [
            Method("tiering.status", self.status, role="viewer"),
            Method("tiering.pending", self.pending, role="viewer"),
            Method("tiering.flush", self.flush),
            Method("tiering.evict", self.evict, audit="tiering:files:evicted"),
            Method("tiering.verify", self.verify, audit="tiering:copies:verified"),
            Method("tiering.lost", self.lost, role="viewer"),
            Method("tiering.copies", self.copies, role="viewer"),
            Method("targets.reload", self.reload, role="administrator", audit="targets:configuration:reloaded"),
            Method("targets.status", self.targets, role="viewer"),
            Method("targets.test", self.test, role="administrator", audit="targets:target:tested"),
            Method("targets.retire", self.retire, role="administrator", audit="targets:target:retired"),
        ]

    # -- how it goes -------------------------------------------------------------------------------------------

    def status(self, _: Mapping[str, Any], __: Emit) -> dict[str, Any]:
        """Counts by state, what waits, how targets do."""
        counts = {state.label: self._namespace.count(state, limit=COUNT_MAX) for state in IN_WORK}
        counts["replicated"] = self._namespace.count(FileState.REPLICATED, limit=COUNT_MAX)
        return {
            "files": counts,
            "oldest_unprotected_seconds": self._oldest_seconds(),
            "stalled": self._tiering.stalled,
            "targets": self.targets({}, __),
        }

    def _oldest_seconds(self) -> float:
        oldest = min(
            (row.due for state in IN_WORK for row in self._namespace.waiting(state, limit=1)),
            default=None,
        )
        if oldest is None:
            return 0.0
        return max(0.0, (self._clock.now() - oldest) / NANOSECONDS + self._quiet_seconds)

    def pending(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """What keeps "every file is sealed and has *copies* copies" from being true, after a barrier."""
        wanted = int(params["copies"])
        waiting = {
            state.label: self._namespace.count(state, limit=COUNT_MAX) for state in (FileState.OPEN, FileState.SEALED)
        }
        lacking = lacking_bytes = 0
        with self._store.read() as reader:
            current = targets.current(reader)
            for pack in packs.every(reader):
                held = copies.verified_on(reader, (pack.number, *pack.leans_on))
                if sum(1 for number in held if number in current) < wanted:
                    lacking += 1
                    lacking_bytes += pack.size_bytes
        return {
            "open": waiting["open"],
            "sealed": waiting["sealed"],
            "packs": lacking,
            "pack_bytes": lacking_bytes,
            "targets": len(current),
            "done": not (waiting["open"] or waiting["sealed"] or lacking),
        }

    def flush(self, _: Mapping[str, Any], __: Emit) -> None:
        """Close packs that are still open now instead of when they are full or old."""
        self._tiering.packer.close_aged(everything=True)

    # -- files -------------------------------------------------------------------------------------------------

    def evict(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Evict inodes; refusals are listed with their reasons."""
        inodes = [Inode(inode) for inode in params["inodes"]]
        decisions = self._tiering.evictor.evict_many(inodes)
        refused = [
            {"inode": inode, "why": decision.why}
            for inode, decision in zip(inodes, decisions, strict=True)
            if not decision.yes
        ]
        return {"evicted": len(inodes) - len(refused), "refused": refused}

    def copies(self, params: Mapping[str, Any], _: Emit) -> list[dict[str, Any]]:
        """The verified copies of one file."""
        facts = self._namespace.facts(Inode(params["inode"]))
        return [{"target": copy.target, "verified": copy.verified} for copy in self._tiering.copies_of(facts)]

    def lost(self, params: Mapping[str, Any], _: Emit) -> list[dict[str, Any]]:
        """Acknowledged files without a verified copy: what would be lost with the local disk. In pages."""
        limit = int(params.get("limit", 1000))
        found = []
        for candidate in itertools.islice(self._unprotected(params.get("after")), limit):
            described = self._namespace.described(candidate.inode)
            size_bytes, mtime_ns = self._tiering.local_size(described.facts)
            found.append(
                {
                    "inode": candidate.inode,
                    "path": wire.text(described.path),
                    "size_bytes": size_bytes,
                    "mtime_ns": mtime_ns,
                    "state": candidate.state.label,
                    "after": [candidate.state.value, candidate.due, candidate.inode, candidate.version],
                }
            )
        return found

    def _unprotected(self, after: list[int] | None) -> Iterator[Candidate]:
        last = (
            None
            if after is None
            else Candidate(Inode(after[2]), Version(after[3]), FileState(after[0]), Instant(after[1]))
        )
        for state in IN_WORK:
            if last is not None and state < last.state:
                continue
            here = last if last is not None and last.state is state else None
            while batch := self._namespace.every(state, limit=256, after=here):
                for candidate in batch:
                    here = candidate
                    try:
                        facts = self._namespace.facts(candidate.inode)
                    except NotFound:
                        continue
                    if self._tiering.local_size(facts)[0] and not self._tiering.copies_of(facts):
                        yield candidate

    # -- verification --------------------------------------------------------------------------------------------

    def verify(self, params: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
        """Read the copies of some files, or of all packs, again and compare; damage is queued to be mended."""
        wanted = self._packs_of(params.get("inodes"))
        damaged: list[dict[str, Any]] = []
        unreachable: list[dict[str, Any]] = []
        checked = 0
        for done, pack in enumerate(wanted, 1):
            with self._store.read() as reader:
                held = [c for c in copies.of_pack(reader, pack.number) if c.state is CopyState.VERIFIED]
            for replicator in self._tiering.replicators():
                copy = next((c for c in held if c.target == replicator.number), None)
                if copy is None:
                    continue
                where = {"pack": pack.id.hex(), "target": replicator.name}
                try:
                    how = verify(
                        replicator.target,
                        pack_object_name(pack.id),
                        pack.size_bytes,
                        pack.sha256,
                        replicator.capabilities(),
                    )
                except (Damaged, NotFound) as problem:
                    damaged.append({**where, "why": str(problem)})
                    replicator.damaged(pack.number)
                except TargetError as problem:
                    if problem.code == "ObjectMissing":
                        damaged.append({**where, "why": str(problem)})
                        replicator.damaged(pack.number)
                    else:
                        unreachable.append({**where, "why": str(problem)})
                else:
                    checked += 1
                    replicator.reverified(pack.number, how)
            emit({"done": done, "total": len(wanted)})
        return {"checked": checked, "damaged": damaged, "unreachable": unreachable}

    def _packs_of(self, inodes: list[int] | None) -> list[packs.Pack]:
        with self._store.read() as reader:
            if inodes is None:
                return list(packs.every(reader))
            numbers: set[PackNumber] = set()
            for inode in inodes:
                facts = self._namespace.facts(Inode(inode))
                content = None
                if facts.sha256 is not None:
                    content = contents.find(reader, facts.sha256, facts.repository)
                if content is not None:
                    numbers.update(content.packs())
            return [pack for number in sorted(numbers) if (pack := packs.get(reader, number)) is not None]

    # -- targets -------------------------------------------------------------------------------------------------

    def reload(self, _: Mapping[str, Any], __: Emit) -> None:
        """Follow the targets of the configuration file as it is now."""
        self._reload()

    def targets(self, _: Mapping[str, Any], __: Emit) -> list[dict[str, Any]]:
        """Every target: how it does and what waits for it."""
        rows = []
        with self._store.read() as reader:
            known = targets.current(reader)
            for replicator in self._tiering.replicators():
                row = known[replicator.number]
                rows.append(
                    {
                        "name": row.name,
                        "url": row.url,
                        "reachable": replicator.health.reachable,
                        "why": replicator.health.why,
                        "packs_waiting": sum(
                            1 for _ in itertools.islice(copies.transfers(reader, replicator.number), COUNT_MAX)
                        ),
                        "capabilities": None
                        if row.capabilities is None
                        else {name: getattr(row.capabilities, name) for name in row.capabilities.__slots__},
                    }
                )
        return rows

    def test(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Probe one target now and remember what it can do. Raises what the target raises."""
        for replicator in self._tiering.replicators():
            if replicator.name == params["name"]:
                found = replicator.probe_again()
                replicator.hurry()
                return {name: getattr(found, name) for name in found.__slots__}
        raise NotFound(what=f"target {params['name']}")

    def retire(self, params: Mapping[str, Any], _: Emit) -> None:
        """Let a target count no more; refused while it alone holds some pack. Raises Refused, NotFound."""
        self._tiering.retire(TargetName(params["name"]))
