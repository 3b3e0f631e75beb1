"""FORMAT.md's second part, executed: manifests are taken apart by the document's own tables and rules.

Nothing of the reader is used here, only the writer that is under test; M-4, M-6 and M-10 to M-12 ask a reader to
refuse or to stop, and there the product and the one-file extractor answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import stat

import pytest
import zstandard

from tests.semantics.test_format import DOCUMENT, Field, assert_constants, table, xxh3
from tests.semantics.trees import HandClock
from vnafs.content import manifest
from vnafs.domain import errors
from vnafs.domain.actors import at_mount
from vnafs.domain.clock import Instant
from vnafs.domain.events import Event, EventKind
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import (
    ROOT,
    ContentNumber,
    Inode,
    PackId,
    PackNumber,
    PieceNumber,
    RepositoryId,
    Sha256,
    Span,
    Version,
)
from vnafs.domain.recipes import Codec, PieceKind
from vnafs.domain.repositories import Repository
from vnafs.domain.retention import Retention, RetentionMode
from vnafs.index import (
    audits,
    contents,
    entries,
    erasing,
    erasures,
    feeds,
    holds,
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
    xattrs,
)
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.erasures import Erased, Erasure, Stage
from vnafs.index.holds import Hold
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.past import PastName, PastVersion
from vnafs.index.queue import DUE_NEVER
from vnafs.index.signers import Reason, Signer
from vnafs.upkeep.changes import META_NAMES, NAMESPACE_TABLES, STORE_TABLES
from vnafs.upkeep.ledger import Ledger
from vnafs.upkeep.record import Record

PART = DOCUMENT.split("\n# Manifests, version 1\n")[1]
HEADER = table("Manifest header")
RUN = table("Runs and snapshots")
ENTRY, INODE, PAST_NAME, PAST_VERSION, RETENTION, HOLD, ERASURE_ROW, ERASED_ROW = (
    table("The namespace", nth) for nth in range(8)
)
CONTENT, PACK, PIECE, PROTECTION, FROZEN, SIGNER = (table("The store", nth) for nth in range(6))

ARCHIVE = bytes(range(16))
CONFIGURATION = 'version = 1\nmount = "/mnt"\n'
REPOSITORY, FOLDER, FILE, LINK, DEVICE, OPEN, ORPHAN, REOPENED, EMPTY, GONE = (
    Inode(number) for number in range(100, 110)
)
NOT_UTF8 = b"caf\xe9 \xff\xfe"
ERASURE = Erasure(900, Stage.OVER, RepositoryId(REPOSITORY), 7000, 8000, 2, "asked for")
ERASED = Erased(Inode(120), Version(3), Sha256(b"x" * 32), 44)
HERE, OTHER = PackId(b"h" * 16), PackId(b"o" * 16)


def digest(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).digest())


# -- an archive that writes manifests ----------------------------------------------------------------------------


class Archive:
    """An index with one of everything, and what records it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.namespace, self.store = MemoryEngine(), MemoryEngine()
        self.record = Record(
            Ledger(str(folder / "manifests"), self.store),
            self.store,
            self.namespace,
            archive=ARCHIVE,
            fold=lambda: None,
            configuration=lambda: CONFIGURATION,
            kept=lambda _: True,
            clock=HandClock(),
            faults=NoFaults(),
        )
        self._cookies = itertools.count(16)
        with self.namespace.write() as tx:
            meta.set_bytes(tx, meta.ARCHIVE_ID, ARCHIVE)
            meta.set_int(tx, meta.EPOCH, 3)
            meta.set_int(tx, meta.INODE_RANGE, 1000)
            meta.set_int(tx, meta.COOKIE_RANGE, 5000)
            repositories.put(tx, Repository(RepositoryId(REPOSITORY), "archive", retention_class=4))
        self.put(ROOT, stat.S_IFDIR | 0o755)

    def put(self, inode: Inode, mode: int, names=(), **values) -> None:
        """Store an inode and its names, with events, as the tree does."""
        row = InodeRow(mode, 7, 8, len(names), 0, 0, 11, -12, 13, 14, RepositoryId(REPOSITORY), ROOT, 0, Version(1),
                       FileState.OPEN, NOT_QUEUED)  # fmt: skip
        with self.namespace.write() as tx:
            inodes.put(tx, inode, row._replace(**values))
            for parent, name in names:
                entries.put(tx, parent, name, entries.Entry(inode, next(self._cookies), mode >> 12))
                feeds.append(tx, Event(EventKind.CREATED, inode, Version(1), parent, name))
            feeds.append(tx, Event(EventKind.ATTRIBUTES, inode, Version(1)))

    def unname(self, inode: Inode, parent: Inode, name: bytes) -> None:
        with self.namespace.write() as tx:
            found = entries.find(tx, parent, name)
            entries.delete(tx, parent, name, found)
            inodes.delete(tx, inode)
            feeds.append(tx, Event(EventKind.UNNAMED, inode, Version(1), parent, name))
            feeds.append(tx, Event(EventKind.REMOVED, inode, Version(1)))

    def put_pack(self, number: int, identity: PackId, data: bytes, leans_on: tuple[PackNumber, ...] = ()) -> None:
        with self.store.write() as tx:
            content = contents.Content(
                ContentNumber(number), digest(data), len(data), RepositoryId(REPOSITORY), PackNumber(number),
                Span(300 + number, 120), leans_on,
            )  # fmt: skip
            contents.add(tx, content)
            pieces.add(
                tx,
                PieceNumber(number),
                pieces.Piece(PackNumber(number), 256, 40, 44, Codec.ZSTD, PieceKind.CHUNK, digest(b"piece")),
            )
            packs.put(
                tx,
                packs.Pack(PackNumber(number), identity, digest(identity), 9000 + number, RepositoryId(REPOSITORY), 4,
                           Instant(77), ContentNumber(number), 1, True, leans_on, PieceNumber(number), 1),
            )  # fmt: skip

    def fill(self) -> None:
        """One of everything."""
        self.put_pack(1, OTHER, b"kept while open")
        self.put_pack(2, HERE, b"bytes", (PackNumber(1),))
        self.put(REPOSITORY, stat.S_IFDIR | 0o750, [(ROOT, b"archive")])
        self.put(FOLDER, stat.S_IFDIR | 0o700, [(REPOSITORY, NOT_UTF8)], parent=REPOSITORY)
        sealed = Seal(digest(b"bytes"), Fingerprint(5, 21, 22))
        names = [(FOLDER, b"file"), (REPOSITORY, b"another name")]
        self.put(FILE, stat.S_IFREG | 0o640, names, size_bytes=5, seal=sealed, state=FileState.STUB, has_xattrs=True)
        self.put(LINK, stat.S_IFLNK | 0o777, [(FOLDER, b"link")])
        self.put(DEVICE, stat.S_IFCHR | 0o600, [(FOLDER, b"null")], rdev=os.makedev(1, 3))
        self.put(OPEN, stat.S_IFREG | 0o600, [(FOLDER, b"open")])
        self.put(ORPHAN, stat.S_IFREG | 0o600)
        self.put(
            REOPENED, stat.S_IFREG | 0o600, due=DUE_NEVER, size_bytes=5, version=Version(2), before=digest(b"bytes")
        )
        self.put(EMPTY, stat.S_IFREG | 0o600, due=Instant(1234))
        over = InodeRow(stat.S_IFREG | 0o640, 7, 8, 1, 5, 0, 11, -12, 13, 14, RepositoryId(REPOSITORY), FOLDER, 0,
                        Version(2), FileState.PACKED, NOT_QUEUED, True, sealed)  # fmt: skip
        with self.namespace.write() as tx:
            past.put_version(tx, PastVersion(GONE, Version(2), 1000, 2000, over, is_last=True), is_new=True)
            past.put_name(tx, RepositoryId(REPOSITORY), PastName(FOLDER, b"gone", GONE, 8, 1500, 2000))
            entries.put(tx, FOLDER, b"moved", entries.Entry(FILE, next(self._cookies), 8, 3000))
            xattrs.put(tx, GONE, b"user.x", b"kept")
            feeds.append(tx, Event(EventKind.NAMED, FILE, Version(1), FOLDER, b"moved"))
            feeds.append(tx, Event(EventKind.UNNAMED, GONE, Version(2), FOLDER, b"gone", 2000))
            feeds.append(tx, Event(EventKind.REMOVED, GONE, Version(2)))
            retentions.put(tx, FILE, Retention(RetentionMode.COMPLIANCE, 9000, 4000, at_mount(1001)))
            holds.put(tx, Hold(FOLDER, "case 7", RepositoryId(REPOSITORY), Inode(150), 5000, "a letter", True))
            noted = audits.add(tx, {"action": "held", "inode": FOLDER})
            feeds.append(tx, Event(EventKind.RETENTION, FILE, Version(1)))
            feeds.append(tx, Event(EventKind.RETENTION, FOLDER, Version(0), detail=noted))
            meta.set_int(tx, meta.RETENTION_TIME, 6000)
            erasures.put(tx, ERASURE)
            erasures.add(tx, ERASURE.number, ERASED)
            feeds.append(tx, Event(EventKind.ERASED, ERASED.inode, Version(1), detail=ERASURE.number))
            xattrs.put(tx, FILE, b"user.x", b"\0\xff")
            tx.put(keys.symlink(LINK), b"../target")
            feeds.append(tx, Event(EventKind.XATTRS, FILE, Version(1)))
            feeds.append(tx, Event(EventKind.XATTRS, LINK, Version(1)))
        frozen = [
            protections.Frozen(Version(n), digest(data), Instant(500 + n), Fingerprint(n, -n, n))
            for n, data in ((6, b"kept while open"), (7, b"never arrived"))
        ]
        with self.store.write() as tx:
            erasing.empty(tx, PackNumber(7), PackId(b"e" * 16), ERASURE.number)
            signers.put(tx, Signer(b"p" * 32, Instant(6000), Reason.RESTORED, until=Instant(7000), told=True))
            protections.put(
                tx, protections.Protection(OPEN, RepositoryId(REPOSITORY), Version(8), Instant(400), *frozen)
            )

    def objects(self, kind: str) -> list[Object]:
        """What was written, in order of name."""
        return [
            Object(str(path.relative_to(self.folder)), path.read_bytes())
            for path in sorted(self.folder.rglob(f"*.{kind}"))
        ]


# -- the document as a parser --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Object:
    """A manifest object taken apart by the tables."""

    name: str
    data: bytes

    def number(self, field: str) -> int:
        return HEADER[field].number_in(self.data)

    def held(self, field: str) -> bytes:
        return HEADER[field].bytes_in(self.data)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    @property
    def body(self) -> bytes:
        return self.data[384:]

    @property
    def rows(self) -> list[tuple[int, bytes, bytes]]:
        return rows_in(zstandard.ZstdDecompressor().decompress(self.body))


def rows_in(plain: bytes) -> list[tuple[int, bytes, bytes]]:
    found, at = [], 0

    def take() -> bytes:
        nonlocal at
        length, groups = 0, itertools.count()
        while True:
            byte = plain[at]
            length |= (byte & 0x7F) << 7 * next(groups)
            at += 1
            if not byte & 0x80:
                break
        at += length
        return plain[at - length : at]

    while at < len(plain):
        operation = plain[at]
        at += 1
        key = take()
        found.append((operation, key, take() if operation in {1, 4} else b""))
    return found


def applied(rows, to: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """Rows brought into one map, as the table of operations says."""
    state = {} if to is None else to
    for operation, key, value in rows:
        if operation == 1:
            state[key] = value
        elif operation == 2:
            state.pop(key, None)
        elif operation == 3:
            for gone in [found for found in state if found.startswith(key)]:
                del state[gone]
    return state


def state_of(archive: Archive) -> dict[bytes, bytes]:
    """What is to be read, by M-9 and M-10."""
    snapshot = archive.objects("snapshot")[-1]
    runs = {run.name: run for run in archive.objects("run")}
    state: dict[bytes, bytes] = {}
    for operation, _, value in snapshot.rows:
        if operation == 4:
            text = RUN["sha256"].bytes_in(value).hex()
            applied(runs[f"manifests/runs/{text[:2]}/{text}.run"].rows, state)
    begin = int(applied(snapshot.rows)[b"afrom"])
    for segment in archive.objects("segment"):
        if segment.number("number") > begin:
            applied(segment.rows, state)
    return {key: value for key, value in state.items() if key[:1] != b"a"}


def number(fields: dict[str, Field], name: str, row: bytes, *, signed: bool = False) -> int:
    """Of a row: big-endian."""
    return int.from_bytes(fields[name].bytes_in(row), "big", signed=signed)


def rest(fields: dict[str, Field], name: str, row: bytes) -> bytes:
    return row[fields[name].offset :]


def eight(value: int) -> bytes:
    return value.to_bytes(8, "big")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    """Recorded as it was made, with a snapshot of half of it."""
    made = Archive(tmp_path_factory.mktemp("ledger"))
    made.record.step()
    made.fill()
    made.record.step()
    made.record.snapshot()
    made.put(Inode(200), stat.S_IFREG, [(FOLDER, b"short-lived")])
    made.record.step()
    made.unname(Inode(200), FOLDER, b"short-lived")
    made.record.step()
    return made


@pytest.fixture(scope="module")
def state(archive) -> dict[bytes, bytes]:
    return state_of(archive)


@pytest.fixture(scope="module")
def segment(archive) -> Object:
    return archive.objects("segment")[-1]


# -- objects -----------------------------------------------------------------------------------------------------


def test_m1_objects_have_the_names_of_the_table(archive):
    listed = dict(re.findall(r"^\| (\w+) \| `(manifests/\S+)` \|", PART, re.MULTILINE))
    assert manifest.segment_name(0x0123456789ABCDEF) == listed["segment"]
    assert manifest.snapshot_name(0x0123456789ABCDEF) == listed["snapshot"]
    shown = re.escape(listed["run"]).replace("abcdef…", "ab[0-9a-f]{62}")
    assert re.fullmatch(shown, manifest.run_name(Sha256(b"\xab" * 32)))
    for run in archive.objects("run"):
        assert run.name == f"manifests/runs/{run.sha256.hex()[:2]}/{run.sha256.hex()}.run"
    for kind in ("segment", "snapshot"):
        for found in archive.objects(kind):
            assert found.name == f"manifests/{kind}s/{found.number('number'):016x}.{kind}"


def test_m2_segments_are_numbered_without_gaps(archive, tmp_path):
    numbers = [found.number("number") for found in archive.objects("segment")]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    other = Archive(tmp_path)
    other.record.step()
    assert [found.number("number") for found in other.objects("segment")] == [1]
    # Exclusive creation is a promise of targets (tests/contract) and of sending (tests/model/test_manifest_model.py).


def test_m3_every_field_of_the_header_is_where_the_table_says(archive):
    kinds = {"segment": 1, "run": 2, "snapshot": 3}
    assert sum(field.length_bytes for field in HEADER.values()) == 384
    for kind, value in kinds.items():
        for found in archive.objects(kind):
            assert_constants(HEADER, found.data)
            assert found.number("kind") == value
            assert found.held("archive_id") == ARCHIVE
            assert found.number("guard") == xxh3(found.data[:376])
            assert found.number("body_stored_bytes") == len(found.body)
            assert found.held("body_sha256") == hashlib.sha256(found.body).digest()
            is_run = kind == "run"
            assert found.number("epoch") == (0 if is_run else 3)
            assert (found.number("created_ns") == 0) is is_run
            assert (found.number("number") == 0) is is_run


def test_m3_any_changed_byte_is_reported(segment):
    for at in range(len(segment.data)):
        broken = bytearray(segment.data)
        broken[at] ^= 0x40
        with pytest.raises(errors.Damaged):  # a flipped bit is never taken for another program's
            list(manifest.decode(bytes(broken))[1])
    for cut in (0, 100, 384, len(segment.data) - 1):
        with pytest.raises(errors.Damaged):
            manifest.decode(segment.data[:cut])


def guarded(data: bytes, name: str, value: int) -> bytes:
    """The same object with another value in its header, and a right guard."""
    field = HEADER[name]
    head = bytearray(data[:384])
    head[field.offset : field.offset + field.length_bytes] = value.to_bytes(field.length_bytes, "little")
    head[376:] = xxh3(bytes(head[:376])).to_bytes(8, "little")
    return bytes(head) + data[384:]


def test_m4_what_a_reader_cannot_know_is_refused_by_name(segment):
    for name, value in (("format_version", 2), ("flags", 1 << 16), ("flags", 1 << 31), ("kind", 4), ("encryption", 2)):
        with pytest.raises(errors.FormatUnknown):
            manifest.decode(guarded(segment.data, name, value))
    assert list(manifest.decode(guarded(segment.data, "flags", 0xFFFF))[1]) == list(manifest.decode(segment.data)[1])


def test_m5_the_body_is_one_frame_that_states_its_size(archive):
    for kind in ("segment", "run", "snapshot"):
        for found in archive.objects(kind):
            assert zstandard.frame_content_size(found.body) == found.number("body_raw_bytes")
            assert 0 < found.number("body_raw_bytes") <= 268_435_456


# -- rows --------------------------------------------------------------------------------------------------------


def test_m6_rows_are_as_the_document_says_and_nothing_else_is_taken(segment):
    header = manifest.decode_header(segment.data)
    long = b"v" * 70_000
    rows = [
        manifest.Row(manifest.Operation.PUT, b"nX", long),
        manifest.Row(manifest.Operation.DELETE, b"nY" * 100),
        manifest.Row(manifest.Operation.DELETE_PREFIX, b"n"),
        manifest.Row(manifest.Operation.RUN, b"sC", b""),
    ]
    written = Object("", manifest.encode(header, rows))
    assert written.rows == [(1, b"nX", long), (2, b"nY" * 100, b""), (3, b"n", b""), (4, b"sC", b"")]
    for plain, refusal in ((b"\x05\x01n", errors.FormatUnknown), (b"\x01\x05n", errors.Damaged),
                           (b"\x02\xff\xff\xff\xff\xff\x01", errors.Damaged)):  # fmt: skip
        with pytest.raises(refusal):
            list(manifest.decode(with_body(segment.data, plain))[1])


def with_body(data: bytes, plain: bytes) -> bytes:
    """The same object around other rows."""
    body = zstandard.ZstdCompressor(write_content_size=True).compress(plain)
    data = guarded(data[:384], "body_stored_bytes", len(body))
    data = guarded(data, "body_raw_bytes", len(plain))
    return guarded(data, "body_sha256", int.from_bytes(hashlib.sha256(body).digest(), "little")) + body


def test_m7_rows_may_be_applied_twice_and_older_ones_before_newer_ones(archive, state):
    segments = [found.rows for found in archive.objects("segment")]
    once = applied(itertools.chain(*segments))
    assert applied(itertools.chain(*segments, *segments)) == once
    assert applied(itertools.chain(segments[0], segments[1], segments[0], *segments)) == once
    assert applied(itertools.chain(*segments), dict(state)).items() >= state.items()


# -- runs, snapshots, what to read -------------------------------------------------------------------------------


def test_m8_runs_hold_every_row_once_and_equal_ones_are_one_object(archive, tmp_path):
    snapshot = archive.objects("snapshot")[-1]
    named = [(key, value) for operation, key, value in snapshot.rows if operation == 4]
    runs = {run.sha256: run for run in archive.objects("run")}
    held = []
    for key, value in named:
        run = runs[RUN["sha256"].bytes_in(value)]
        assert run.rows[0][1] == key
        assert RUN["rows"].number_in(value) == len(run.rows)
        assert RUN["size_bytes"].number_in(value) == len(run.data)
        assert {operation for operation, _, _ in run.rows} == {1}
        held += [key for _, key, _ in run.rows]
    assert held == sorted(set(held))
    before = {run.name for run in archive.objects("run")}
    other = Archive(tmp_path)
    other.fill()
    other.record.step()
    first = {run.name for run in other.objects("run")}
    other.record.snapshot()
    assert {run.name for run in other.objects("run")} == first
    assert before


def test_m9_a_snapshot_is_complete_with_its_segments(archive, state):
    snapshot = archive.objects("snapshot")[-1]
    begin = int(applied(snapshot.rows)[b"afrom"])
    assert begin < snapshot.number("number")
    assert snapshot.held("previous") == next(
        found.sha256 for found in archive.objects("segment") if found.number("number") == snapshot.number("number")
    )
    expected = {}
    for which, engine, tables in ((b"n", archive.namespace, NAMESPACE_TABLES), (b"s", archive.store, STORE_TABLES)):
        with engine.read() as reader:
            for key, value in reader.scan(b"\0", b"\xff"):
                if key[:1] in tables or (which == b"n" and key in map(keys.meta, META_NAMES)):
                    expected[which + key] = bytes(value)
    assert state == expected


def test_m10_each_segment_names_the_one_before_it(archive):
    segments = archive.objects("segment")
    for before, after in itertools.pairwise(segments):
        assert after.held("previous") == before.sha256


def test_m11_only_the_first_segment_of_a_life_follows_none(tmp_path):
    made = Archive(tmp_path)
    made.record.step()
    (first,) = made.objects("segment")
    assert first.held("previous") == bytes(32)
    assert applied(made.objects("snapshot")[0].rows)[b"afrom"] == b"0"
    # Where a reader meets one elsewhere: tests/unit/extract/test_vna_extract.py.


def test_m12_a_change_that_goes_on_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("vnafs.upkeep.record.ROWS_BYTES_MAX", 600)
    made = Archive(tmp_path)
    made.record.step()
    made.fill()
    made.record.step()
    more = [found.number("more") for found in made.objects("segment")]
    assert more[0] == 0
    assert more[1:] == [1] * (len(more) - 2) + [0]
    assert len(more) > 4


def test_m13_a_complete_segment_tells_the_configuration_and_what_is_small(archive):
    for found in archive.objects("segment"):
        assert not found.number("more")
        assert (1, b"aconfiguration", CONFIGURATION.encode()) in found.rows
        assert {(3, b"nR", b""), (3, b"sE", b""), (3, b"sS", b""), (3, b"sW", b"")} <= set(found.rows)
        assert {b"nM" + name.encode() for name in META_NAMES} <= {key for _, key, _ in found.rows}


# -- the maps ----------------------------------------------------------------------------------------------------


def names_in(state: dict[bytes, bytes], folder: int) -> dict[bytes, int]:
    """Entries of a directory, by the tables."""
    prefix = b"nE" + eight(folder)
    return {key[10:]: number(ENTRY, "inode", value) for key, value in state.items() if key.startswith(prefix)}


def test_the_document_lists_every_table_that_is_carried(state):
    listed = set(re.findall(r"^\| `([ns][A-Z])`", PART, re.MULTILINE))
    assert listed == {f"n{t.decode()}" for t in (*NAMESPACE_TABLES, b"M")} | {f"s{t.decode()}" for t in STORE_TABLES}
    assert {key[:2].decode() for key in state} == listed


def test_m14_names_lead_to_inodes_and_everything_is_where_the_tables_say(state):
    assert names_in(state, 1) == {b"archive": REPOSITORY}
    assert names_in(state, REPOSITORY) == {NOT_UTF8: FOLDER, b"another name": FILE}
    assert names_in(state, FOLDER) == {b"file": FILE, b"link": LINK, b"null": DEVICE, b"open": OPEN, b"moved": FILE}
    entry = state[b"nE" + eight(FOLDER) + b"file"]
    assert number(ENTRY, "version_and_type", entry) == 16 + 8
    assert int.from_bytes(rest(ENTRY, "cookie", entry), "big") >= 16
    assert state[b"nL" + eight(LINK)] == b"../target"
    assert state[b"nX" + eight(FILE) + b"user.x"] == b"\0\xff"
    assert state[b"nMarchive_id"] == ARCHIVE
    assert [state[b"nM" + name] for name in (b"epoch", b"inode_range_end", b"cookie_range_end")] == [
        eight(3),
        eight(1000),
        eight(5000),
    ]
    repository = state[b"nR" + eight(REPOSITORY)]
    assert repository[0] == 1
    assert json.loads(repository[1:]) == {
        "name": "archive",
        "acknowledgement": "durable",
        "copies_min": 1,
        "retention_class": 4,
        "encrypted": False,
        "recall_bytes_per_day": 0,
        "recall_requests_per_day": 0,
        "quota_bytes": 0,
        "quota_files": 0,
        "versions_kept_seconds": 2_592_000,
        "tripwire": "alert",
        "tripwire_per_minute": 5000,
    }


def test_m20_intervals_are_where_the_tables_say(state):
    (key,) = [key for key in state if key.startswith(b"nA")]
    assert key == b"nA" + eight(FOLDER) + b"gone\0" + eight(2000)
    assert_constants(PAST_NAME, state[key])
    name = {field: number(PAST_NAME, field, state[key]) for field in PAST_NAME}
    assert name == {"version": 1, "type": 8, "inode": GONE, "since_ns": 1500}
    version = state[b"nV" + eight(GONE) + eight(2)]
    assert_constants(PAST_VERSION, version)
    fields = {field: number(PAST_VERSION, field, version) for field in PAST_VERSION if field != "inode"}
    assert fields == {"version": 1, "flags": 1, "since_ns": 1000, "ended_ns": 2000}
    moved = state[b"nE" + eight(FOLDER) + b"moved"]
    assert number(ENTRY, "version_and_type", moved) == 32 + 8
    assert int.from_bytes(moved[9:17], "big") == 3000
    assert int.from_bytes(moved[17:], "big") >= 16


def test_m22_retention_and_holds_are_where_the_tables_say(state):
    retention = state[b"nW" + eight(FILE)]
    assert_constants(RETENTION, retention)
    fields = {field: number(RETENTION, field, retention) for field in RETENTION}
    assert fields == {"version": 2, "mode": 2, "until_ns": 9000, "since_ns": 4000, "by": 2, "uid": 1001}
    hold = state[b"nH" + eight(FOLDER) + b"case 7"]
    assert_constants(HOLD, hold)
    fields = {field: number(HOLD, field, hold) for field in HOLD if field != "reason"}
    assert fields == {"version": 1, "flags": 1, "repository": REPOSITORY, "before": 150, "since_ns": 5000}
    assert rest(HOLD, "reason", hold) == b"a letter"
    assert json.loads(state[b"nY" + eight(1)]) == {"action": "held", "inode": FOLDER}
    assert state[b"nMretention_time"] == eight(6000)


def test_m23_erasures_are_where_the_tables_say(state):
    erasure = state[b"nS" + eight(900)]
    assert_constants(ERASURE_ROW, erasure)
    fields = {field: number(ERASURE_ROW, field, erasure) for field in ERASURE_ROW if field != "reason"}
    assert fields == {
        "version": 1, "stage": 3, "repository": REPOSITORY, "since_ns": 7000, "touched_ns": 8000, "files": 2,
    }  # fmt: skip
    assert rest(ERASURE_ROW, "reason", erasure) == b"asked for"
    erased = state[b"nT" + eight(900) + eight(120) + eight(3)]
    assert_constants(ERASED_ROW, erased)
    assert number(ERASED_ROW, "size_bytes", erased) == 44
    assert rest(ERASED_ROW, "sha256", erased) == b"x" * 32
    assert state[b"sE" + eight(7) + eight(900)] == b"\x01" + b"e" * 16


def test_m24_every_snapshot_and_segment_tells_every_public_key_that_ever_signed(archive, state):
    signer = state[b"sS" + b"p" * 32]
    assert_constants(SIGNER, signer)
    fields = {field: number(SIGNER, field, signer) for field in SIGNER}
    assert fields == {"version": 1, "flags": 1, "reason": 2, "since_ns": 6000, "until_ns": 7000}
    newest = archive.objects("segment")[-1]
    assert (1, b"sS" + b"p" * 32, signer) in newest.rows
    archive.record.snapshot()
    assert any((1, b"sS" + b"p" * 32, signer) in run.rows for run in archive.objects("run"))


def test_m21_a_past_version_has_its_bytes_and_attributes(state):
    row = rest(PAST_VERSION, "inode", state[b"nV" + eight(GONE) + eight(2)])
    assert_constants(INODE, row)
    assert number(INODE, "state", row) == 3
    assert row[101:133] == digest(b"bytes")
    assert state[b"nX" + eight(GONE) + b"user.x"] == b"kept"
    assert b"nI" + eight(GONE) not in state


def test_m14_every_field_of_an_inode_is_where_the_table_says(state):
    row = state[b"nI" + eight(FILE)]
    assert_constants(INODE, row)
    values = {name: number(INODE, name, row, signed=name.endswith("_ns")) for name in INODE if name != "rest"}
    expected = {
        "version": 1,
        "state": 5,
        "flags": 3,
        "mode": stat.S_IFREG | 0o640,
        "uid": 7,
        "gid": 8,
        "nlink": 2,
        "size_bytes": 5,
        "blocks": 0,
        "atime_ns": 11,
        "mtime_ns": -12,
        "ctime_ns": 13,
        "birth_ns": 14,
        "repository": REPOSITORY,
        "parent": 1,
        "cookie": 0,
        "bytes_version": 1,
    }
    assert {name: values[name] for name in expected} == expected
    assert rest(INODE, "rest", row) == digest(b"bytes") + eight(21) + eight(22)
    device = state[b"nI" + eight(DEVICE)]
    assert number(INODE, "flags", device) == 4
    assert rest(INODE, "rest", device) == eight(os.makedev(1, 3))
    assert number(INODE, "nlink", state[b"nI" + eight(ORPHAN)]) == 0
    states = dict(re.findall(r"(\d): (open|sealed|packed|replicated|stub)", PART))
    assert {int(value): name for value, name in states.items()} == {it.value: it.label for it in FileState}


def content_of(state: dict[bytes, bytes], sha256: bytes, repository: int) -> bytes | None:
    """The content that counts, by M-15 and M-16."""
    for key, row in state.items():
        if key[:2] == b"sC" and CONTENT["sha256"].bytes_in(row) == sha256:
            needs = [CONTENT["home"].bytes_in(row), *leans_on(CONTENT, row)]
            if number(CONTENT, "repository", row) == repository and all(b"sK" + pack in state for pack in needs):
                return row
    return None


def leans_on(fields: dict[str, Field], row: bytes) -> list[bytes]:
    tail = rest(fields, "leans_on", row)
    return [tail[at : at + 8] for at in range(0, len(tail), 8)]


def test_m15_a_sealed_file_leads_to_its_content(state):
    row = state[b"nI" + eight(FILE)]
    assert number(INODE, "flags", row) & 2
    content = content_of(state, rest(INODE, "rest", row)[:32], number(INODE, "repository", row))
    assert content is not None
    assert_constants(CONTENT, content)
    assert number(CONTENT, "size_bytes", content) == 5
    assert leans_on(CONTENT, content) == [eight(1)]


def test_m16_a_content_counts_while_its_packs_are_there(archive, tmp_path):
    made = Archive(tmp_path)
    made.fill()
    made.record.step()
    with made.store.write() as tx:
        packs.remove(tx, packs.get(tx, PackNumber(1)))
    made.record.step()
    state = state_of(made)
    assert b"sC" + eight(2) in state
    assert content_of(state, digest(b"bytes"), REPOSITORY) is None
    pack = state[b"sK" + eight(2)]
    assert_constants(PACK, pack)
    expected = {
        "size_bytes": 9002,
        "repository": REPOSITORY,
        "retention_class": 4,
        "closed_ns": 77,
        "contents_first": 2,
        "contents_count": 1,
        "pieces_first": 2,
        "pieces_count": 1,
    }
    assert {name: number(PACK, name, pack) for name in expected} == expected
    assert PACK["sha256"].bytes_in(pack) == digest(HERE)
    assert leans_on(PACK, pack) == [eight(1)]


def test_m17_a_file_that_stayed_open_has_its_youngest_copy_that_counts(state):
    row = state[b"sW" + eight(OPEN)]
    assert_constants(PROTECTION, row)
    expected = {"repository": REPOSITORY, "bytes_version": 8, "since_ns": 400, "copies": 3}
    assert {name: number(PROTECTION, name, row) for name in expected} == expected
    size = sum(field.length_bytes for field in FROZEN.values())
    tail = rest(PROTECTION, "rest", row)
    older, younger = tail[:size], tail[size:]
    assert len(younger) == size
    for copy, version in ((older, 6), (younger, 7)):
        assert_constants(FROZEN, copy)
        assert number(FROZEN, "bytes_version", copy) == version
        assert number(FROZEN, "taken_ns", copy) == 500 + version
        assert number(FROZEN, "size_bytes", copy) == version
        assert number(FROZEN, "mtime_ns", copy, signed=True) == -version
        assert number(FROZEN, "ctime_ns", copy) == version
    found = [content_of(state, FROZEN["sha256"].bytes_in(copy), REPOSITORY) for copy in (younger, older)]
    assert found[0] is None
    assert number(CONTENT, "size_bytes", found[1]) == len(b"kept while open")


def test_m17_a_file_that_was_opened_again_has_its_version_before(state):
    row = state[b"nI" + eight(REOPENED)]
    assert number(INODE, "flags", row) == 8
    assert number(INODE, "due", row, signed=True) == (1 << 63) - 1
    kept = rest(INODE, "rest", row)
    assert len(kept) == 32 + 16
    assert content_of(state, kept[:32], REPOSITORY) is not None


def test_m19_an_empty_file_that_is_closed_says_so(state):
    row = state[b"nI" + eight(EMPTY)]
    assert number(INODE, "flags", row) == number(INODE, "size_bytes", row) == 0
    assert number(INODE, "due", row, signed=True) not in {-1, (1 << 63) - 1}
    assert number(INODE, "due", state[b"nI" + eight(OPEN)], signed=True) == -1


def test_m18_from_a_name_to_the_recipe_record(state):
    inode = names_in(state, names_in(state, names_in(state, 1)[b"archive"])[NOT_UTF8])[b"file"]
    row = state[b"nI" + eight(inode)]
    content = content_of(state, rest(INODE, "rest", row)[:32], number(INODE, "repository", row))
    pack = state[b"sK" + CONTENT["home"].bytes_in(content)]
    assert PACK["pack_id"].bytes_in(pack) == HERE
    assert (number(CONTENT, "recipe_offset", content), number(CONTENT, "recipe_bytes", content)) == (302, 120)
    piece = state[b"sP" + eight(2)]
    assert_constants(PIECE, piece)
    expected = {"pack": 2, "offset": 256, "stored_bytes": 40, "raw_bytes": 44, "codec": 1, "kind": 5}
    assert {name: number(PIECE, name, piece) for name in expected} == expected
    assert PIECE["sha256"].bytes_in(piece) == digest(b"piece")


def test_every_promise_of_the_document_is_executed():
    promised = set(re.findall(r"\*\*M-(\d+)\*\*", DOCUMENT))
    executed = {match[1] for name in globals() if (match := re.match(r"test_m(\d+)_", name))}
    assert promised == executed
