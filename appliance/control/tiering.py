"""What tierd answers about copies: status, what is pending, eviction, verification, targets.

Everything here reads rows or calls tiering; nothing is decided here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from appliance.control import quarantine, wire
from appliance.control.erasure import shown as erasure_shown
from appliance.control.server import Emit, Method
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import ConfigurationInvalid, Damaged, NotFound, Refused, TargetError
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import Inode, PackNumber, RepositoryId, TargetName, Version, pack_object_name
from vnafs.index import contents, copies, counts, drills, packs, targets
from vnafs.index.engine import Engine
from vnafs.pipeline.held import lacking, stubs_without_copy, unreadable_stubs
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.protect import copy_as_of
from vnafs.pipeline.runner import Tiering
from vnafs.targets.verifying import verify
from vnafs.upkeep.collect import Collector
from vnafs.upkeep.manifests import Manifests
from vnafs.upkeep.pending import pending
from vnafs.upkeep.renewal import Renewal
from vnafs.upkeep.scrub import Scrub
from vnafs.upkeep.signing import Signing

COUNT_MAX = 1_000_000
"""Counting stops here: a status answers in a moment at any size."""
IN_WORK = (FileState.OPEN, FileState.SEALED, FileState.PACKED)


class TieringControl:
    """Methods over one Tiering."""

    def __init__(  # noqa: PLR0913 - what it answers about, each named where it is wired
        self,
        tiering: Tiering,
        manifests: Manifests,
        scrub: Scrub,
        collector: Collector,
        renewal: Renewal,
        signing: Signing,
        store: Engine,
        namespace: Engine,
        *,
        reload: Callable[[], None],
        clock: Clock,
        quiet_seconds: float,
    ) -> None:
        self._tiering = tiering
        self._manifests = manifests
        self._scrub = scrub
        self._collector = collector
        self._renewal = renewal
        self._signing = signing
        self._store = store
        self._namespace_rows = namespace
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
            Method("tiering.rehydrating", self.rehydrating, role="viewer"),
            Method("tiering.copy_as_of", self.copy_as_of, role="viewer"),
            Method("keys.list", self.keys, role="administrator"),
            Method("keys.rotate", self.rotate_key, role="administrator", audit="keys:repository:rotated"),
            Method("keys.renew", self.renew_keys, role="administrator", audit="keys:archive:renewed"),
            Method("drill.held", self.drill_held, role="administrator", audit="drill:archive:held"),
            Method("targets.reload", self.reload, role="administrator", audit="targets:configuration:reloaded"),
            Method("targets.status", self.targets, role="viewer"),
            Method("targets.test", self.test, role="administrator", audit="targets:target:tested"),
            Method("targets.retire", self.retire, role="administrator", audit="targets:target:retired"),
        ]

    # -- how it goes -------------------------------------------------------------------------------------------

    def status(self, _: Mapping[str, Any], __: Emit) -> dict[str, Any]:
        """Counts by state, what waits, how targets do."""
        states = (*IN_WORK, FileState.REPLICATED)
        with self._store.read() as reader:
            kept, stored = counts.get(reader, counts.CONTENTS), counts.get(reader, counts.PACKS)
            held = drills.every(reader)
        return {
            "files": {state.label: self._namespace.count(state, limit=COUNT_MAX) for state in states},
            "versions_to_pack": self._namespace.count_unpacked(limit=COUNT_MAX),
            "contents": kept.rows,
            "content_bytes": kept.size_bytes,
            "packs": stored.rows,
            "pack_bytes": stored.size_bytes,
            "oldest_unprotected_seconds": self._oldest_seconds(),
            "staying_open": dataclasses.asdict(self._tiering.protector.standing),
            "stalled": self._tiering.stalled,
            "recalled_today": self._recalled_today(),
            "manifests": self._manifests_shown(),
            "locks": {name: dataclasses.asdict(row) for name, row in list(self._renewal.progress.items())},
            "scrub": dataclasses.asdict(self._scrub.findings),
            "quarantine": quarantine.summary(self._tiering.quarantine),
            "collected": dataclasses.asdict(self._collector.collected),
            "erasures": self._erasures(),
            "drills": held,
            "targets": self.targets({}, __),
        }

    def _recalled_today(self) -> list[dict[str, Any]]:
        """Of repositories that have a budget."""
        return [
            {"repository": row.name, **dataclasses.asdict(self._tiering.budgets.used(row.id))}
            for row in self._namespace.repositories()
            if row.recall_bytes_per_day or row.recall_requests_per_day
        ]

    def _erasures(self) -> dict[str, Any]:
        """How many are pending, and what the oldest waits for."""
        found = pending(self._namespace_rows, self._store)
        if found is None:
            return {"pending": 0, "oldest": None}
        return {
            "pending": found.count,
            "oldest": {
                **erasure_shown(found.oldest),
                "frozen": found.is_frozen,
                "packs_left": found.packs_left,
                "targets": [
                    {"name": one.target, "why": one.why, "locked_until_ns": one.until} for one in found.targets
                ],
            },
        }

    def _manifests_shown(self) -> dict[str, Any]:
        here = self._manifests.ledger.position()
        return {
            "number": here.number,
            "snapshot": here.snapshot,
            "superseded": self._manifests.rival,
            "why": self._manifests.why,
            "targets": {
                row.name: {"number": row.sent.number, "snapshot": row.sent.snapshot, "why": row.why}
                for row in self._manifests.progress()
            },
        }

    def _oldest_seconds(self) -> float:
        """Of closed files as their rows say, of those that stay open as they were last looked at."""
        standing = self._tiering.protector.standing
        return max(self._oldest_closed_seconds(), standing.without_copy_oldest_seconds, standing.copy_oldest_seconds)

    def _oldest_closed_seconds(self) -> float:
        oldest = min(
            (row.due for state in IN_WORK for row in self._namespace.waiting(state, limit=1)),
            default=None,
        )
        if oldest is None:
            return 0.0
        return max(0.0, (self._clock.now() - oldest) / NANOSECONDS + self._quiet_seconds)

    def pending(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """What keeps "every file is sealed and has *copies* copies" from being true, after a barrier.

        The same of versions that are over and still to be packed.
        """
        wanted = int(params["copies"])
        waiting = {
            state.label: self._namespace.count(state, limit=COUNT_MAX) for state in (FileState.OPEN, FileState.SEALED)
        }
        waiting["sealed"] += self._namespace.count_unpacked(limit=COUNT_MAX)
        with self._store.read() as reader:
            current = targets.current(reader)
            lacks = lacking(reader, wanted)
        without_bytes = sum(1 for _ in itertools.islice(unreadable_stubs(self._store, self._namespace), COUNT_MAX))
        return {
            "open": waiting["open"],
            "sealed": waiting["sealed"],
            "packs": lacks.rows,
            "pack_bytes": lacks.size_bytes,
            "targets": len(current),
            "without_bytes": without_bytes,
            "suspects": self._tiering.protector.standing.suspects,
            "done": not (waiting["open"] or waiting["sealed"] or lacks.rows or without_bytes),
        }

    def flush(self, _: Mapping[str, Any], __: Emit) -> None:
        """Close packs that are still open, and record manifests, now instead of when it is time."""
        self._tiering.packer.close_aged(everything=True)
        self._manifests.hurry()

    # -- drills ------------------------------------------------------------------------------------------------

    def drill_held(self, params: Mapping[str, Any], _: Emit) -> None:
        """Remember what a drill came to."""
        with self._store.write() as tx:
            drills.add(tx, params["drill"])

    # -- keys --------------------------------------------------------------------------------------------------

    def _keys(self) -> Keys:
        if self._tiering.keys is None:
            raise Refused(what="This", why="the archive is not encrypted")
        return self._tiering.keys

    def keys(self, _: Mapping[str, Any], __: Emit) -> dict[str, Any]:
        """The keyring, without anything secret."""
        ring = self._keys().keyring
        return {
            "number": ring.number,
            "created_ns": ring.created,
            "targets": self._keys().brought(),
            "secrets": [slot.takes for slot in ring.slots],
            "keys": [
                {"id": key.id.hex(), "repository": key.repository, "created_ns": key.created} for key in ring.keys
            ],
        }

    def rotate_key(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Another key for what a repository (0: the manifests) writes from now on."""
        key = self._keys().rotate(RepositoryId(int(params["repository"])))
        self._tiering.packer.close_aged(everything=True)
        return {"id": key.id.hex()}

    def renew_keys(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Other secrets, another root key, and another key for each repository. The socket is the owner's alone."""
        master, recovery = bytes.fromhex(params["master"]), bytes.fromhex(params["recovery"])
        self._keys().renew(master=master, recovery=recovery)
        self._signing.key()  # notes that receipts have another key from now on
        self._tiering.packer.close_aged(everything=True)
        self._manifests.hurry()
        return self.keys({}, _)

    # -- files -------------------------------------------------------------------------------------------------

    def evict(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Evict inodes; refusals are listed with their reasons. `wait_seconds`: see `Evictor.evict_many`."""
        inodes = [Inode(inode) for inode in params["inodes"]]
        wait_seconds = float(params.get("wait_seconds", 0.0))
        decisions = self._tiering.evictor.evict_many(inodes, wait_seconds=wait_seconds)
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

    def rehydrating(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any] | None:
        """Since when bytes of one file are on their way back from an archive class; None when none are."""
        found = [thaw for pack in self._packs_of([params["inode"]]) if (thaw := self._tiering.thaws.of(pack.number))]
        if not found:
            return None
        return {"since": min(thaw.since for thaw in found), "until": max(thaw.until for thaw in found)}

    def copy_as_of(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any] | None:
        """The youngest verified copy of a file that stays open, as it was at some moment; None without one."""
        found = copy_as_of(self._store, Inode(params["inode"]))
        if found is None:
            return None
        return {
            "as_of": found.frozen.taken,
            "version": found.frozen.version,
            "sha256": found.frozen.sha256.hex(),
            "copies": [{"target": copy.target, "verified": copy.verified} for copy in found.copies],
        }

    def lost(self, params: Mapping[str, Any], _: Emit) -> list[dict[str, Any]]:
        """Acknowledged files without a verified copy: what would be lost with the local disk. In pages."""
        limit = int(params.get("limit", 1000))
        found = []
        for candidate in itertools.islice(self._unprotected(params.get("after")), limit):
            described = self._namespace.described(candidate.inode)
            size_bytes, mtime_ns = self._tiering.local_size(described.facts)
            older = copy_as_of(self._store, candidate.inode)
            found.append(
                {
                    "inode": candidate.inode,
                    "path": wire.text(described.path),
                    "size_bytes": size_bytes,
                    "mtime_ns": mtime_ns,
                    "state": candidate.state.label,
                    "is_suspect": described.facts.is_suspect,
                    "copy_as_of": None if older is None else older.frozen.taken,
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
        listed = last.inode if last is not None and last.state is FileState.STUB else Inode(0)
        for inode, version in sorted(set(stubs_without_copy(self._store, self._namespace))):
            if inode > listed:
                yield Candidate(inode, version, FileState.STUB, Instant(0))

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
                        "why": replicator.why or self._why_not_locked(replicator.name),
                        "packs_waiting": counts.get(reader, counts.waiting(replicator.number)).rows,
                        "removals_queued": counts.get(reader, counts.removing(replicator.number)).rows,
                        "packs_verified": counts.get(reader, counts.verified(replicator.number)).rows,
                        "capabilities": None
                        if row.capabilities is None
                        else {name: getattr(row.capabilities, name) for name in row.capabilities.__slots__},
                    }
                )
        return rows

    def _why_not_locked(self, name: TargetName) -> str:
        row = self._renewal.progress.get(name)
        return f"locks are not renewed: {row.why}" if row is not None and row.why else ""

    def test(self, params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Probe one target and its daily credential now; remember what it can do. Raises what the target raises."""
        for replicator in self._tiering.replicators():
            if replicator.name == params["name"]:
                found, powers = replicator.probe_again(), replicator.target.powers()
                replicator.hurry()
                if replicator.lock is not None and not found.object_lock:
                    raise ConfigurationInvalid(
                        file="vnafs.toml",
                        key=f"target {replicator.name}: lock_seconds",
                        value=str(replicator.lock.seconds),
                        why="the bucket has no Object Lock, or the credential may not ask "
                        "(s3:GetBucketObjectLockConfiguration)",
                        fix="Set it to 0, or use a bucket with Object Lock, and start again",
                    )
                return {
                    **dataclasses.asdict(found),
                    "credential": dataclasses.asdict(powers),
                    "warnings": powers.warnings(locks=found.object_lock, versioning=found.versioning),
                }
        raise NotFound(what=f"target {params['name']}")

    def retire(self, params: Mapping[str, Any], _: Emit) -> None:
        """Let a target count no more; refused while it alone holds some pack. Raises Refused, NotFound."""
        self._tiering.retire(TargetName(params["name"]))
