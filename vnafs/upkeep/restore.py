"""Restore: rebuild both environments from the manifests on one target, and nothing else.

The newest snapshot whose segments follow each other is loaded, then every segment after it that still does; what
cannot be followed is reported and not used. Rows that derive from others are made anew. Every file becomes a stub;
copies count as uploaded until they have been verified again. Nothing on the target is changed.

One thread; memory is bounded by a run or a segment. What is half built by a crash is not an archive: it has no
configuration file yet, and restore begins again in an empty folder.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import string
from collections.abc import Callable, Iterator, Mapping

from vnafs.content import manifest
from vnafs.content.manifest import ABOUT, NAMESPACE, STORE, Operation, Row
from vnafs.domain.clock import Clock
from vnafs.domain.errors import Damaged, FormatUnknown, NotFound
from vnafs.domain.ids import (
    Inode,
    ObjectName,
    TargetName,
)
from vnafs.index import (
    entries,
    keys,
    meta,
    recount,
    repositories,
    rollbacks,
    targets,
)
from vnafs.index.engine import Engine, Transaction, prefix_stop
from vnafs.targets.port import Target
from vnafs.upkeep.heads import head_of
from vnafs.upkeep.ledger import Position, Sent, digest_of, set_position, set_sent
from vnafs.upkeep.plan import UNUSABLE, Plan, Source
from vnafs.upkeep.restored import (
    ROWS_AT_ONCE,
    TARGET_NUMBER,
    Progress,
    Report,
    settle_namespace,
    settle_past,
    settle_retention,
    settle_signers,
    settle_store,
)

log = logging.getLogger(__name__)

CONFIGURATION = ABOUT + b"configuration"


def rebuild(
    target: Target,
    url: str,
    namespace: Engine,
    store: Engine,
    *,
    name: Callable[[str], TargetName],
    clock: Clock,
    progress: Progress,
    secrets: manifest.Keys | None = None,
) -> Report:
    """Fill two empty environments; *name* says what the target is called, given the archive's configuration.

    *secrets* are the keys of an encrypted archive. Raises NotFound, and what the target raises.
    """
    report = load(target, {NAMESPACE: namespace, STORE: store}, progress, secrets)
    there = _packs_there(target, progress)
    missing = settle_store(
        store, there, report, targets.TargetRow(TARGET_NUMBER, name(report.configuration), url), clock, progress
    )
    settle_namespace(namespace, store, missing, report, progress)
    settle_past(namespace, store, progress)
    settle_retention(namespace, progress)
    with store.write() as tx:
        # the next segment follows whatever is there, and begins with a snapshot
        set_position(tx, Position(number=report.head))
        set_sent(tx, TARGET_NUMBER, Sent(number=report.head))
        recount.correct(tx)
        settle_signers(tx, trusted=secrets is not None)
    epoch = head_of(target, report.archive).epoch  # also of what could not be used
    with namespace.write() as tx:
        for repository in repositories.every(tx):
            if repository.rolling_to_ns:  # goes on from the top: what is right already is found to be so
                top = Inode(repository.id)
                rollbacks.put_folder(tx, repository.id, rollbacks.Folder(top, top))
        meta.set_int(tx, meta.EPOCH, max(epoch, meta.get_int(tx, meta.EPOCH) or 0) + 1)
        meta.remove(tx, meta.SUPERSEDED)
    for engine in (namespace, store):
        engine.sync(engine.position)
    return report


def configuration(target: Target, secrets: manifest.Keys | None = None) -> str:
    """The archive's configuration as it was recorded last, found without loading anything; empty where there is none.

    Raises NotFound, and what the target raises.
    """
    source = Source(target, secrets)
    plan = source.plan()
    for number in reversed(plan.segments):
        with contextlib.suppress(*UNUSABLE):
            _, rows = source.read(manifest.segment_name(number))
            for row in rows:
                if row.operation is Operation.PUT and row.key == CONFIGURATION:
                    return _text(row.value)
    return ""


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def load(
    target: Target, engines: Mapping[bytes, Engine], progress: Progress, secrets: manifest.Keys | None = None
) -> Report:
    """Bring what the manifests carry into *engines*, by map. Raises NotFound, and what the target raises."""
    source = Source(target, secrets)
    problems: list[str] = []
    below: int | None = None
    while True:
        progress("looking for manifests", 0, None)
        try:
            plan = source.plan(below=below)
        except NotFound as nothing:
            if not problems:
                raise
            raise NotFound(what="; ".join(["A usable manifest", *problems])) from nothing
        problems += [problem for problem in plan.problems if problem not in problems]
        try:
            return _load_plan(source, plan, engines, problems, progress)
        except UNUSABLE as problem:
            log.warning("restore.snapshot", extra={"number": plan.header.number, "why": str(problem)})
            problems.append(f"snapshot {plan.header.number} cannot be used: {problem}")
            below = plan.header.number
        for engine in engines.values():
            _clear(engine)


def _clear(engine: Engine) -> None:
    """Nothing is left of what was loaded but named values, which older ones overwrite."""
    for letter in string.ascii_uppercase.replace("M", ""):
        table, found = letter.encode(), True
        while found:
            with engine.write() as tx:
                batch = [bytes(key) for key, _ in itertools.islice(tx.scan(table, prefix_stop(table)), ROWS_AT_ONCE)]
                for key in batch:
                    tx.delete(key)
            found = bool(batch)


def _load_plan(
    source: Source, plan: Plan, engines: Mapping[bytes, Engine], problems: list[str], progress: Progress
) -> Report:
    report = Report(archive=plan.header.archive, head=plan.head, problems=problems)
    report.number = plan.segments[-1] if plan.segments else plan.header.number
    report.recorded_ns = plan.header.created
    total = sum(run.rows for run in plan.runs)
    done = 0
    for run in plan.runs:
        data = source.get(manifest.run_name(run.sha256))
        if digest_of(data) != run.sha256:
            raise Damaged(what=f"{manifest.run_name(run.sha256)}")
        _, rows = source.decode(data)
        _apply(engines, rows, report, fresh=True)
        done += run.rows
        progress("loading the snapshot", done, total)
    for count, number in enumerate(plan.segments, 1):
        header, rows = source.read(manifest.segment_name(number))
        _apply(engines, rows, report, fresh=False)
        report.recorded_ns = header.created
        progress("replaying segments", count, len(plan.segments))
    return report


def _apply(engines: Mapping[bytes, Engine], rows: Iterator[Row], report: Report, *, fresh: bool) -> None:
    """*fresh*: no row is of a key that was there before."""
    for which, group in itertools.groupby(rows, lambda row: row.key[:1]):
        if which == ABOUT:
            for row in group:
                if row.key == CONFIGURATION:
                    report.configuration = _text(row.value)
            continue
        engine = engines.get(which)
        if engine is None:
            raise FormatUnknown(what="the map of a manifest row", found=which, known=NAMESPACE + STORE)
        while batch := list(itertools.islice(group, ROWS_AT_ONCE)):
            with engine.write() as tx:
                for operation, key, value in batch:
                    if which == NAMESPACE and key[1:2] == keys.ENTRIES:
                        _apply_name(tx, operation, key[1:], value, fresh=fresh)
                    elif operation is Operation.PUT:
                        tx.put(key[1:], value)
                    elif operation is Operation.DELETE:
                        tx.delete(key[1:])
                    else:
                        for found, _ in list(tx.scan(key[1:], prefix_stop(key[1:]))):
                            tx.delete(found)


def _apply_name(tx: Transaction, operation: Operation, key: bytes, value: bytes, *, fresh: bool) -> None:
    """An E row, and with it the K row of its place in the listing."""
    parent, name = keys.entry_of(key)
    before = None if fresh else entries.find(tx, parent, name)
    if before is not None:
        entries.delete(tx, parent, name, before)
    if operation is Operation.PUT:
        entries.put(tx, parent, name, entries.decode(value))


def _packs_there(target: Target, progress: Progress) -> set[ObjectName]:
    found: set[ObjectName] = set()
    for name in target.list("packs/"):
        found.add(name)
        if len(found) % 1000 == 0:
            progress("listing packs", len(found), None)
    return found
