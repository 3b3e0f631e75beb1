"""Restore: rebuild both environments from the manifests on one target, and nothing else.

The newest snapshot whose segments follow each other is loaded, then every segment after it that still does; what
cannot be followed is reported and not used. Rows that derive from others are made anew. Every file becomes a stub;
copies count as uploaded until they have been verified again. Nothing on the target is changed.

One thread; memory is bounded by a run or a segment. What is half built by a crash is not an archive: it has no
configuration file yet, and restore begins again in an empty folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import stat
import string
from collections.abc import Callable, Iterator, Mapping

from vnafs.content import keyring, manifest
from vnafs.content.keyring import Unlocked
from vnafs.content.manifest import ABOUT, NAMESPACE, STORE, Header, Kind, Operation, Row, Run
from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import Damaged, FormatUnknown, KeyMissing, NotFound, ObjectMissing
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import (
    ROOT,
    ContentNumber,
    Inode,
    ObjectName,
    PackNumber,
    RepositoryId,
    Sha256,
    TargetName,
    pack_object_name,
)
from vnafs.domain.recipes import EMPTY
from vnafs.index import (
    condemned,
    contents,
    copies,
    entries,
    inodes,
    keys,
    meta,
    packs,
    past,
    pieces,
    protections,
    recount,
    repositories,
    retentions,
    rollbacks,
    targets,
    unreadable,
)
from vnafs.index.engine import Engine, Reader, Transaction, in_batches, prefix_stop
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER
from vnafs.targets.port import Target
from vnafs.upkeep.heads import head_of
from vnafs.upkeep.ledger import Position, Sent, digest_of, set_position, set_sent

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 20_000
"""In one transaction."""
OBJECT_BYTES_MAX = 300 * 1024 * 1024
TARGET_NUMBER = 1
"""Of the target restored from, the only one at first."""
UNKNOWN = Sha256(bytes(32))
"""Stands for the bytes of a file that was never sealed: no content has it."""

UNUSABLE = (Damaged, FormatUnknown, KeyMissing, ObjectMissing)
"""What keeps one object from being used, and not the others."""

CONFIGURATION = ABOUT + b"configuration"

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
    """Files of which the target has no bytes; they are there as stubs that cannot be read."""
    older_bytes: int = 0
    """Files that came back as they were at an earlier moment: the target does not have their newest bytes."""
    packs: int = 0
    packs_missing: int = 0
    on_their_way: set[Inode] = dataclasses.field(default_factory=set)
    """Of the files without their newest bytes, those that were recorded before they had copies."""


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

    def __init__(self, target: Target, secrets: manifest.Keys | None) -> None:
        self._target = target
        self._secrets = secrets

    def read(self, name: ObjectName) -> tuple[Header, Iterator[Row]]:
        """What an object says. Raises as `get` and `decode` do."""
        return self.decode(self.get(name))

    def decode(self, data: bytes) -> tuple[Header, Iterator[Row]]:
        """See manifest.decode."""
        return manifest.decode(data, self._secrets)

    def get(self, name: ObjectName) -> bytes:
        """A whole object. Raises ObjectMissing, Damaged, TargetUnavailable, TargetRefused."""
        data = bytearray()
        for block in self._target.get(name):
            data += block
            if len(data) > OBJECT_BYTES_MAX:
                raise Damaged(what=f"Object {name} on target {self._target.name}")
        return bytes(data)

    def plan(self, archive: bytes | None = None, *, below: int | None = None) -> Plan:
        """What can be restored, the newest state first; *below* a snapshot's number, only from older ones.

        Raises NotFound when there is nothing.
        """
        problems: list[str] = []
        numbers = sorted(self._numbers(manifest.SNAPSHOTS), reverse=True)
        there = set(self._numbers(manifest.SEGMENTS))
        head = max(there, default=0)
        for number in numbers:
            if below is not None and number >= below:
                continue
            try:
                plan = self._plan_from(number, there, archive)
            except UNUSABLE as problem:
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
        header, rows = self.read(manifest.snapshot_name(number))
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
            header, _ = self.decode(data)
        except UNUSABLE as problem:
            log.warning("restore.segment", extra={"number": number, "why": str(problem)})
            return None
        usable = header.kind is Kind.SEGMENT and header.number == number and header.archive == archive
        return (data, header) if usable else None


def secrets_of(unlocked: Unlocked) -> manifest.Keys:
    """What reads the manifests of an archive whose keyring is open."""
    known = unlocked.every()
    latest = [key.id for key in unlocked.keyring.keys if key.repository == keyring.MANIFESTS][-1]
    return manifest.Keys(known[latest], known)


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
    missing = _settle_store(
        store, there, report, targets.TargetRow(TARGET_NUMBER, name(report.configuration), url), clock, progress
    )
    _settle_namespace(namespace, store, missing, report, progress)
    _settle_past(namespace, store, progress)
    _settle_retention(namespace, progress)
    with store.write() as tx:
        # the next segment follows whatever is there, and begins with a snapshot
        set_position(tx, Position(number=report.head))
        set_sent(tx, TARGET_NUMBER, Sent(number=report.head))
        recount.correct(tx)
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


# -- rows that derive from others --------------------------------------------------------------------------------


def _settle_store(
    store: Engine,
    there: set[ObjectName],
    report: Report,
    target: targets.TargetRow,
    clock: Clock,
    progress: Progress,
) -> set[PackNumber]:
    """Which packs the target does not have."""
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
        else:
            # another target may have it: its contents stay, and nothing new may rely on it until it was seen
            missing.add(found.number)
            condemned.put(tx, found.number, condemned.Condemned(found.id, found.sha256, found.size_bytes))
        copies.enqueue(tx, copies.Transfer(TARGET_NUMBER, clock.now(), found.number, 0))

    def leaning(tx: Transaction, key: bytes, _: bytes) -> None:
        found = packs.get(tx, PackNumber(keys.number_of(key)))
        if found is not None and not known.issuperset(found.leans_on):
            packs.put(tx, dataclasses.replace(found, leans_on=tuple(n for n in found.leans_on if n in known)))

    _each(store, keys.PACKS, pack, "packs", progress)
    _each(store, keys.PACKS, leaning, "packs", progress)
    report.packs, report.packs_missing = len(known), len(missing)

    def content(tx: Transaction, key: bytes, value: bytes) -> None:
        found = contents.decode(ContentNumber(keys.number_of(key)), value)
        if not known.issuperset(found.packs()):
            tx.delete(key)
        else:
            contents.make_findable(tx, found)

    _each(store, keys.CONTENTS, content, "contents", progress)

    def piece(tx: Transaction, key: bytes, value: bytes) -> None:
        found = pieces.decode(value)
        if found.pack not in known:
            tx.delete(key)
        else:
            contents.add_hash(tx, keys.Hashed.PIECE, found.sha256, keys.number_of(key))

    _each(store, keys.PIECES, piece, "pieces", progress)
    return missing


def _settle_namespace(
    namespace: Engine, store: Engine, missing: set[PackNumber], report: Report, progress: Progress
) -> None:
    done = 0
    for batch in in_batches(namespace, keys.INODES, ROWS_AT_ONCE):
        with store.write() as kept, namespace.write() as tx:
            for key, value in batch:
                _settle_inode(tx, kept, Inode(keys.number_of(key)), inodes.decode(value), missing, report)
        done += len(batch)
        progress("settling files", done, None)


def _settle_past(namespace: Engine, store: Engine, progress: Progress) -> None:
    """The rows that say when the past is over, and the uses of the contents it names."""
    done = 0
    for batch in in_batches(namespace, keys.PAST_VERSIONS, ROWS_AT_ONCE):
        with store.write() as kept, namespace.write() as tx:
            for key, value in batch:
                found = past.decode_version(key, value)
                past.add_endings(tx, found.row.repository, found.ended_ns, found.inode, key)
                seal = found.row.seal
                content = None if seal is None else contents.find(kept, seal.sha256, found.row.repository)
                if content is not None:
                    contents.add_use(kept, content.number, found.inode, found.version)
        done += len(batch)
        progress("settling kept versions", done, None)
    _each(namespace, keys.PAST_NAMES, _settle_past_name, "past names", progress)


def _settle_retention(namespace: Engine, progress: Progress) -> None:
    """Which directories are not moved, because of files that were committed; who else may be is looked for at once."""
    with namespace.write() as tx:
        is_needed = any(rules.is_guarded for rules in repositories.every(tx))
        if is_needed:
            meta.set_bytes(tx, retentions.WALK, keys.ENTRIES)
    if is_needed:
        _each(namespace, keys.ENTRIES, _settle_retained_name, "retained names", progress)


def _settle_retained_name(tx: Transaction, key: bytes, value: bytes) -> None:
    inode, directory = entries.decode(value).inode, keys.entry_of(key)[0]
    found = retentions.find(tx, inode)
    named = inodes.find(tx, inode)
    if named is not None and named.is_file and named.nlink > 1:
        retentions.name_in(tx, inode, directory)
    while found is not None and directory != ROOT:
        row = inodes.find(tx, directory)
        if row is None or directory == Inode(row.repository):
            return
        if not retentions.raise_below(tx, directory, found.until_ns):
            return
        directory = row.parent


def _settle_past_name(tx: Transaction, key: bytes, value: bytes) -> None:
    found = past.decode_name(key, value)
    row = inodes.find(tx, found.parent)
    if row is None:
        above = past.last_version(tx, found.parent)
        row = None if above is None else above.row
    # of a directory that is not remembered itself: over at once
    repository = RepositoryId(0) if row is None else row.repository
    past.add_endings(tx, repository, found.ended_ns, found.inode, key)


def _settle_inode(
    tx: Transaction, store: Transaction, number: Inode, row: InodeRow, missing: set[PackNumber], report: Report
) -> None:
    if not row.nlink and number != ROOT:
        inodes.delete(tx, number)
        retentions.forget(tx, number)
        last = past.last_version(tx, number)
        if last is None or not last.is_last:
            for name, _ in list(tx.scan(keys.xattrs(number), prefix_stop(keys.xattrs(number)))):
                tx.delete(name)
        return
    if not stat.S_ISREG(row.mode):
        return
    report.files += 1
    newest = _newest(row)
    content = None if newest is None else contents.find(store, newest, row.repository)
    is_readable = newest == EMPTY or (content is not None and _is_whole(content, missing))  # EMPTY needs no pack
    if not is_readable:
        content, is_readable = _older(store, number, row, missing, content)
    sha256 = newest or UNKNOWN
    if content is not None:
        sha256 = content.sha256
        contents.add_use(store, content.number, number, row.version)
        row = row._replace(size_bytes=content.size_bytes)
    elif not is_readable:
        unreadable.put(store, number, row.version)
    report.without_bytes += not is_readable
    report.older_bytes += is_readable and sha256 != newest
    if (not is_readable or sha256 != newest) and row.state < FileState.REPLICATED:
        report.on_their_way.add(number)
    seal = row.seal
    if seal is None or seal.sha256 != sha256:
        seal = Seal(sha256, Fingerprint(row.size_bytes, row.mtime_ns, row.ctime_ns))
    inodes.put(tx, number, row._replace(state=FileState.STUB, due=NOT_QUEUED, blocks=0, seal=seal))


def _older(
    store: Reader, number: Inode, row: InodeRow, missing: set[PackNumber], newest: contents.Content | None
) -> tuple[contents.Content | None, bool]:
    """The youngest bytes of a file that the target has whole, and that it has; else what another target may have."""
    known = [] if newest is None else [newest]
    for sha256 in _earlier(store, number, row):
        found = contents.find(store, sha256, row.repository)
        if found is not None and _is_whole(found, missing):
            return found, True
        known += [] if found is None else [found]
    return next(iter(known), None), False


def _is_whole(content: contents.Content, missing: set[PackNumber]) -> bool:
    """Whether the target has every pack of it, as far as a listing says."""
    return content.home not in missing and missing.isdisjoint(content.leans_on)


def _newest(row: InodeRow) -> Sha256 | None:
    """The bytes that a file had when its row was recorded; None when the row does not know them."""
    if row.seal is not None:
        return row.seal.sha256
    is_closed = row.due not in {DUE_NEVER, NOT_QUEUED}
    return EMPTY if is_closed and not row.size_bytes else None


def _earlier(store: Reader, number: Inode, row: InodeRow) -> Iterator[Sha256]:
    """The bytes that a file had at earlier moments, the youngest first."""
    protection = protections.get(store, number)
    frozen = [] if protection is None else list(protection.copies())
    yield from (copy.sha256 for copy in frozen if copy.version >= row.version)
    if row.before is not None:
        yield row.before
    yield from (copy.sha256 for copy in frozen if copy.version < row.version)


def _each(
    engine: Engine,
    table: bytes,
    change: Callable[[Transaction, bytes, bytes], None],
    what: str,
    progress: Progress,
) -> None:
    """Go over a table's rows in batches, each read in a view of its own and changed in a transaction."""
    done = 0
    for batch in in_batches(engine, table, ROWS_AT_ONCE):
        with engine.write() as tx:
            for key, value in batch:
                change(tx, key, value)
        done += len(batch)
        progress(f"settling {what}", done, None)
