"""What rows become on the machine that has them back: files without local bytes, copies that nobody has verified yet.

Works on environments that `vnafs.upkeep.restore` has filled; asks no target. One thread; memory is bounded by a batch.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable, Iterator

from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import (
    ROOT,
    ContentNumber,
    Inode,
    ObjectName,
    PackNumber,
    RepositoryId,
    Sha256,
    pack_object_name,
)
from vnafs.domain.recipes import EMPTY
from vnafs.index import (
    condemned,
    contents,
    copies,
    counts,
    entries,
    inodes,
    keys,
    meta,
    packs,
    past,
    pieces,
    protections,
    repositories,
    retentions,
    signers,
    targets,
    unreadable,
)
from vnafs.index.counts import Count
from vnafs.index.engine import Engine, Reader, Transaction, in_batches, prefix_stop
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.queue import DUE_NEVER

ROWS_AT_ONCE = 50_000
"""In one transaction: rows by hash lie anywhere, so fewer transactions write fewer pages (20 000: a tenth slower)."""
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
    """Files of which the target has no bytes; they are there as stubs that cannot be read."""
    older_bytes: int = 0
    """Files that came back as they were at an earlier moment: the target does not have their newest bytes."""
    packs: int = 0
    packs_missing: int = 0
    on_their_way: set[Inode] = dataclasses.field(default_factory=set)
    """Of the files without their newest bytes, those that were recorded before they had copies."""


def settle_store(
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
            copies.put_uncounted(tx, copies.PackCopy(found.number, TARGET_NUMBER, CopyState.UPLOADED))
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


def settle_namespace(
    namespace: Engine, store: Engine, missing: set[PackNumber], report: Report, progress: Progress
) -> None:
    """Each file becomes a stub of the youngest bytes that a pack has; what each repository uses is counted."""
    done = 0
    used: dict[RepositoryId, Count] = {}
    for batch in in_batches(namespace, keys.INODES, ROWS_AT_ONCE):
        with store.write() as kept, namespace.write() as tx:
            for key, value in batch:
                row = _settle_inode(tx, kept, Inode(keys.number_of(key)), inodes.decode(value), missing, report)
                if row is not None:
                    counts.tally(used, row.repository, inodes.bytes_used(row))
        done += len(batch)
        progress("settling files", done, None)
    with namespace.write() as tx:
        for number, count in used.items():
            counts.put(tx, counts.used(number), count)


def settle_past(namespace: Engine, store: Engine, progress: Progress) -> None:
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
                    if found.row.state is FileState.SEALED:  # its pack came sooner than the tree heard of it
                        row = found.row._replace(state=FileState.PACKED)
                        past.put_version(tx, found._replace(row=row), is_new=False)
        done += len(batch)
        progress("settling kept versions", done, None)
    _each(namespace, keys.PAST_NAMES, _settle_past_name, "past names", progress)


def settle_retention(namespace: Engine, progress: Progress) -> None:
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
) -> InodeRow | None:
    """The row as it is from now on; None of an inode that is no more."""
    if not row.nlink and number != ROOT:
        inodes.delete(tx, number)
        retentions.forget(tx, number)
        last = past.last_version(tx, number)
        if last is None or not last.is_last:
            for name, _ in list(tx.scan(keys.xattrs(number), prefix_stop(keys.xattrs(number)))):
                tx.delete(name)
        return None
    if not stat.S_ISREG(row.mode):
        return row
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
    row = row._replace(state=FileState.STUB, due=NOT_QUEUED, blocks=0, seal=seal, is_suspect=False)
    inodes.put(tx, number, row)
    return row


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


def settle_signers(tx: Transaction, *, trusted: bool) -> None:
    """Public keys of receipts that anybody who can write to the target could have put there are marked for good."""
    for signer in signers.every(tx):
        if not (trusted or signer.told):
            signers.put(tx, dataclasses.replace(signer, told=True))


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
