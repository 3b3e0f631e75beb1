"""Restore: rebuild both environments from the manifests on one target, and nothing else.

The newest snapshot whose segments follow each other is loaded, then every segment after it that still does; what
cannot be followed is reported and not used. Rows that derive from others are made anew. Every file becomes a stub;
copies count as uploaded until they have been verified again. Nothing on the target is changed.

One thread; memory is bounded by a run or a segment. What is half built by a crash is not an archive: it has no
configuration file yet, and restore begins again in an empty folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import stat
from collections.abc import Callable, Iterator, Mapping

from vnafs.content import manifest
from vnafs.content.manifest import ABOUT, NAMESPACE, STORE, Header, Kind, Operation, Row, Run
from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import Damaged, FormatUnknown, NotFound, ObjectMissing
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import ROOT, ContentNumber, Inode, ObjectName, PackNumber, Sha256, TargetName, pack_object_name
from vnafs.index import contents, copies, entries, inodes, keys, meta, packs, pieces, protections, recount, targets
from vnafs.index.engine import Engine, Reader, Transaction, prefix_stop
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.targets.port import Target
from vnafs.upkeep.ledger import Position, Sent, digest_of, set_position, set_sent

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 20_000
"""In one transaction."""
OBJECT_BYTES_MAX = 300 * 1024 * 1024
TARGET_NUMBER = 1
"""Of the target restored from, the only one at first."""
UNKNOWN = Sha256(bytes(32))
"""Stands for the bytes of a file that was never sealed: no content has it."""

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and of how much where that is known."""


@dataclasses.dataclass(slots=True)
class Report:
    """What became of a restore."""

    archive: bytes = b""
    """Its 16 bytes."""
    number: int = 0
    """Of the last segment used: everything recorded up to it is there."""
    recorded_ns: int = 0
    """When that was."""
    head: int = 0
    """The highest segment on the target; larger than *number* when some could not be used."""
    problems: list[str] = dataclasses.field(default_factory=list)
    configuration: str = ""
    files: int = 0
    without_bytes: int = 0
    """Files whose newest bytes the target does not have; they are there as stubs that cannot be read."""
    packs: int = 0
    packs_missing: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to load: a snapshot, and the segments that bring it to one state."""

    header: Header
    runs: tuple[Run, ...]
    segments: tuple[int, ...]
    digest: Sha256
    """Of the last of them."""
    head: int
    problems: tuple[str, ...]


class Source:
    """The manifests on one target, looked at with distrust."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get(self, name: ObjectName) -> bytes:
        """A whole object. Raises ObjectMissing, Damaged, TargetUnavailable, TargetRefused."""
        data = bytearray()
        for block in self._target.get(name):
            data += block
            if len(data) > OBJECT_BYTES_MAX:
                raise Damaged(what=f"Object {name} on target {self._target.name}")
        return bytes(data)

    def plan(self, archive: bytes | None = None) -> Plan:
        """What can be restored, the newest state first. Raises NotFound when there is nothing."""
        problems: list[str] = []
        numbers = sorted(self._numbers(manifest.SNAPSHOTS), reverse=True)
        there = set(self._numbers(manifest.SEGMENTS))
        head = max(there, default=0)
        for number in numbers:
            try:
                plan = self._plan_from(number, there, archive)
            except (Damaged, FormatUnknown, ObjectMissing) as problem:
                problems.append(f"snapshot {number} cannot be used: {problem}")
                continue
            if plan is not None:
                last = plan.segments[-1] if plan.segments else number
                if last < head:
                    problems.append(
                        f"segments {last + 1} to {head} are incomplete, damaged or forged; what they tell is not used"
                    )
                return dataclasses.replace(plan, head=head, problems=tuple(problems))
            problems.append(f"snapshot {number} cannot be used: segments that it needs are missing or do not follow")
        raise NotFound(what="A usable manifest" + "".join(f"; {problem}" for problem in problems))

    def _numbers(self, prefix: str) -> Iterator[int]:
        for name in self._target.list(prefix):
            number = manifest.number_in(name)
            if number is not None:
                yield number

    def _plan_from(self, number: int, there: set[int], archive: bytes | None) -> Plan | None:
        header, rows = manifest.decode(self.get(manifest.snapshot_name(number)))
        if header.kind is not Kind.SNAPSHOT or header.number != number or archive not in {None, header.archive}:
            raise Damaged(what=f"snapshot {number}")
        begin, runs = number, []
        for row in rows:
            if row.operation is Operation.RUN:
                runs.append(manifest.run_of(row))
            elif row.key == ABOUT + b"from":
                begin = int(row.value)
        digest: Sha256 | None = None
        whole: list[int] = []
        digest_whole = header.previous
        pending: list[int] = []
        for at in itertools.count(begin + 1):
            segment = self._segment(at, header.archive) if at in there else None
            if segment is None:
                break
            data, its = segment
            if digest is not None and its.previous != digest:
                break
            digest = digest_of(data)
            if at == number and digest != header.previous:
                return None
            pending.append(at)
            if not its.more:
                whole += pending
                pending.clear()
                digest_whole = digest
        if number > begin and (not whole or whole[-1] < number):
            return None
        return Plan(header, tuple(runs), tuple(whole), digest_whole, 0, ())

    def _segment(self, number: int, archive: bytes) -> tuple[bytes, Header] | None:
        try:
            data = self.get(manifest.segment_name(number))
            header, _ = manifest.decode(data)
        except (Damaged, FormatUnknown, ObjectMissing) as problem:
            log.warning("restore.segment", extra={"number": number, "why": str(problem)})
            return None
        usable = header.kind is Kind.SEGMENT and header.number == number and header.archive == archive
        return (data, header) if usable else None


def rebuild(
    target: Target,
    url: str,
    namespace: Engine,
    store: Engine,
    *,
    name: Callable[[str], TargetName],
    clock: Clock,
    progress: Progress,
) -> Report:
    """Fill two empty environments; *name* says what the target is called, given the archive's configuration.

    Raises NotFound, and what the target raises.
    """
    report = load(target, {NAMESPACE: namespace, STORE: store}, progress)
    there = _packs_there(target, progress)
    _settle_store(
        store, there, report, targets.TargetRow(TARGET_NUMBER, name(report.configuration), url), clock, progress
    )
    _settle_namespace(namespace, store, report, progress)
    with store.write() as tx:
        # the next segment follows whatever is there, and begins with a snapshot
        set_position(tx, Position(number=report.head))
        set_sent(tx, TARGET_NUMBER, Sent(number=report.head))
        recount.correct(tx)
    with namespace.write() as tx:
        meta.set_int(tx, meta.EPOCH, (meta.get_int(tx, meta.EPOCH) or 0) + 1)
        meta.remove(tx, meta.SUPERSEDED)
    for engine in (namespace, store):
        engine.sync(engine.position)
    return report


def load(target: Target, engines: Mapping[bytes, Engine], progress: Progress) -> Report:
    """Bring what the manifests carry into *engines*, by map. Raises NotFound, and what the target raises."""
    source = Source(target)
    progress("looking for manifests", 0, None)
    plan = source.plan()
    report = Report(archive=plan.header.archive, head=plan.head, problems=list(plan.problems))
    report.number = plan.segments[-1] if plan.segments else plan.header.number
    report.recorded_ns = plan.header.created
    total = sum(run.rows for run in plan.runs)
    done = 0
    for run in plan.runs:
        data = source.get(manifest.run_name(run.sha256))
        if digest_of(data) != run.sha256:
            raise Damaged(what=f"run {run.sha256.hex()} on target {target.name}")
        _, rows = manifest.decode(data)
        _apply(engines, rows, report, fresh=True)
        done += run.rows
        progress("loading the snapshot", done, total)
    for count, number in enumerate(plan.segments, 1):
        header, rows = manifest.decode(source.get(manifest.segment_name(number)))
        _apply(engines, rows, report, fresh=False)
        report.recorded_ns = header.created
        progress("replaying segments", count, len(plan.segments))
    return report


def _apply(engines: Mapping[bytes, Engine], rows: Iterator[Row], report: Report, *, fresh: bool) -> None:
    """*fresh*: no row is of a key that was there before."""
    for which, group in itertools.groupby(rows, lambda row: row.key[:1]):
        if which == ABOUT:
            for row in group:
                if row.key == ABOUT + b"configuration":
                    report.configuration = row.value.decode()
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


# -- rows that derive from others --------------------------------------------------------------------------------


def _settle_store(
    store: Engine,
    there: set[ObjectName],
    report: Report,
    target: targets.TargetRow,
    clock: Clock,
    progress: Progress,
) -> None:
    with store.write() as tx:
        targets.put(tx, target)
    missing: set[PackNumber] = set()
    known: set[PackNumber] = set()

    def pack(tx: Transaction, key: bytes, _: bytes) -> None:
        found = packs.get(tx, PackNumber(keys.number_of(key)))
        if found is None:
            return
        known.add(found.number)
        packs.put(tx, dataclasses.replace(found, local=False))
        if pack_object_name(found.id) in there:
            copies.put(tx, copies.PackCopy(found.number, TARGET_NUMBER, CopyState.UPLOADED))
            copies.enqueue(tx, copies.Transfer(TARGET_NUMBER, clock.now(), found.number, 0))
        else:
            missing.add(found.number)

    _each(store, keys.PACKS, pack, "packs", progress)
    report.packs, report.packs_missing = len(known), len(missing)

    def content(tx: Transaction, key: bytes, value: bytes) -> None:
        found = contents.decode(ContentNumber(keys.number_of(key)), value)
        if not known.issuperset(found.packs()) or not missing.isdisjoint(found.packs()):
            tx.delete(key)
        else:
            contents.make_findable(tx, found)

    _each(store, keys.CONTENTS, content, "contents", progress)

    def piece(tx: Transaction, key: bytes, value: bytes) -> None:
        found = pieces.decode(value)
        if found.pack not in known or found.pack in missing:
            tx.delete(key)
        else:
            contents.add_hash(tx, keys.Hashed.PIECE, found.sha256, keys.number_of(key))

    _each(store, keys.PIECES, piece, "pieces", progress)


def _settle_namespace(namespace: Engine, store: Engine, report: Report, progress: Progress) -> None:
    done = 0
    after = keys.inode(Inode(0))
    stop = prefix_stop(keys.INODES)
    while True:
        with namespace.read() as reader:
            batch = [(bytes(k), bytes(v)) for k, v in itertools.islice(reader.scan(after, stop), ROWS_AT_ONCE)]
        if not batch:
            return
        after = batch[-1][0] + b"\0"
        with store.write() as kept, namespace.write() as tx:
            for key, value in batch:
                _settle_inode(tx, kept, Inode(keys.number_of(key)), inodes.decode(value), report)
        done += len(batch)
        progress("settling files", done, None)


def _settle_inode(tx: Transaction, store: Transaction, number: Inode, row: InodeRow, report: Report) -> None:
    if not row.nlink and number != ROOT:
        inodes.delete(tx, number)
        for name, _ in list(tx.scan(keys.xattrs(number), prefix_stop(keys.xattrs(number)))):
            tx.delete(name)
        return
    if not stat.S_ISREG(row.mode):
        return
    report.files += 1
    seal = row.seal
    content = None if seal is None else contents.find(store, seal.sha256, row.repository)
    if content is None and seal is None:
        content = _protected(store, number, row)
    if content is None:
        report.without_bytes += 1
    else:
        contents.add_use(store, content.number, number, row.version)
        row = row._replace(size_bytes=content.size_bytes)
    if seal is None:
        sha256 = UNKNOWN if content is None else content.sha256
        seal = Seal(sha256, Fingerprint(row.size_bytes, row.mtime_ns, row.ctime_ns))
    inodes.put(tx, number, row._replace(state=FileState.STUB, due=NOT_QUEUED, blocks=0, seal=seal))


def _protected(store: Reader, number: Inode, row: InodeRow) -> contents.Content | None:
    """The last copy of a file that was open, if the target has one."""
    protection = protections.get(store, number)
    if protection is None:
        return None
    for copy in protection.copies():
        content = contents.find(store, copy.sha256, row.repository)
        if content is not None:
            return content
    return None


def _each(
    engine: Engine,
    table: bytes,
    change: Callable[[Transaction, bytes, bytes], None],
    what: str,
    progress: Progress,
) -> None:
    """Go over a table's rows in batches, each read in a view of its own and changed in a transaction."""
    after, stop, done = table, prefix_stop(table), 0
    while True:
        with engine.read() as reader:
            batch = [(bytes(k), bytes(v)) for k, v in itertools.islice(reader.scan(after, stop), ROWS_AT_ONCE)]
        if not batch:
            return
        after = batch[-1][0] + b"\0"
        with engine.write() as tx:
            for key, value in batch:
                change(tx, key, value)
        done += len(batch)
        progress(f"settling {what}", done, None)
