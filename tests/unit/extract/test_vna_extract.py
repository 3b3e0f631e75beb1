"""The one-file extractor: which manifests it follows, which names it writes, what it reads."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
import xxhash

from tests import studies
from vnafs.content import codecs
from vnafs.content.bases import Bases
from vnafs.content.encoder import Encoder, NoAttempts
from vnafs.content.manifest import (
    NO_PREVIOUS,
    Header,
    Kind,
    Operation,
    Row,
    Run,
    encode,
    run_name,
    run_row,
    segment_name,
    snapshot_name,
)
from vnafs.content.packfile import FileHints, PackHeader, PackWriter
from vnafs.content.splitters import split
from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version, new_pack_id, pack_object_name
from vnafs.domain.recipes import Codec, PieceKind, Recipe
from vnafs.extract import vna_extract
from vnafs.extract.vna_extract import Console, Damaged, Index, Manifests, Out, Refused, Unreachable, Wanted

ARCHIVE = b"a" * 16


class Objects(dict):
    """A target in memory, which counts what is read."""

    read_bytes = 0
    requests = 0

    def list(self, prefix):
        return ((name, len(self[name])) for name in sorted(self) if name.startswith(prefix))

    def read(self, name, offset, length):
        if name not in self:
            raise vna_extract.Missing(name)
        self.requests += 1
        self.read_bytes += len(self[name][offset : offset + length])
        return self[name][offset : offset + length]


def digest(data):
    return Sha256(hashlib.sha256(data).digest())


@pytest.fixture
def index(tmp_path):
    made = Index(str(tmp_path / "index"))
    yield made
    made.db.close()


@pytest.fixture
def console():
    return Console(io.BytesIO(), io.StringIO(), as_json=True)


# -- which manifests are followed --------------------------------------------------------------------------------


@dataclasses.dataclass
class Life:
    """Writes manifests whose rows are single keys."""

    objects: Objects = dataclasses.field(default_factory=Objects)
    number: int = 0
    previous: Sha256 = NO_PREVIOUS

    def segment(self, *keys, more=False, previous=None, archive=ARCHIVE):
        self.number += 1
        header = Header(Kind.SEGMENT, archive, 1, self.number, Instant(self.number), previous or self.previous, more)
        data = encode(header, [Row(Operation.PUT, b"nX" + key, b"segment") for key in keys])
        self.objects[segment_name(self.number)] = data
        self.previous = digest(data)
        return self

    def snapshot(self, *keys, begin=None):
        """Of these keys, completed by a segment."""
        begin = self.number if begin is None else begin
        self.segment(b"with-snapshot")
        rows = [Row(Operation.PUT, b"nX" + key, b"run") for key in keys]
        run = encode(Header(Kind.RUN, ARCHIVE), rows)
        self.objects[run_name(digest(run))] = run
        about = [Row(Operation.PUT, b"afrom", b"%d" % begin)]
        named = [run_row(Run(rows[0].key, len(rows), len(run), digest(run)))] if rows else []
        header = Header(Kind.SNAPSHOT, ARCHIVE, 1, self.number, Instant(self.number), self.previous)
        self.objects[snapshot_name(self.number)] = encode(header, about + named)
        return self

    def damage(self, name):
        data = bytearray(self.objects[name])
        data[-1] ^= 1
        self.objects[name] = bytes(data)


def loaded(life, index, console):
    """The keys that are there after loading, and the number of the last segment; None when nothing could be."""
    manifests = Manifests(life.objects, None, index, console)
    if not manifests.load():
        assert list(index.rows(b"n")) == []
        return None
    return {key for key, _ in index.rows(b"nX")} - {b"with-snapshot"}, manifests.number


def test_a_snapshot_and_what_followed_it(index, console):
    life = Life().snapshot(b"a", b"b").segment(b"c").segment(b"d")
    assert loaded(life, index, console) == ({b"a", b"b", b"c", b"d"}, 3)
    assert console.worst == 0


def test_a_segment_without_the_one_before_it_tells_nothing(index, console):
    life = Life().snapshot(b"a").segment(b"c").segment(b"d").segment(b"e")
    del life.objects[segment_name(3)]
    assert loaded(life, index, console) == ({b"a", b"c"}, 2)
    assert console.worst == 4


@pytest.mark.parametrize("forged", [{"previous": Sha256(b"x" * 32)}, {"archive": b"b" * 16}])
def test_a_segment_that_does_not_follow_ends_the_reading(forged, index, console):
    life = Life().snapshot(b"a").segment(b"c").segment(b"d", **forged).segment(b"e")
    assert loaded(life, index, console) == ({b"a", b"c"}, 2)
    assert console.worst == 4


def test_a_segment_that_follows_none_belongs_to_another_life(index, console):
    life = Life().snapshot(b"a").segment(b"c")
    life.previous = NO_PREVIOUS
    life.segment(b"unknown")
    assert loaded(life, index, console) == ({b"a", b"c"}, 2)
    life.objects.pop(segment_name(3))
    life.number, life.previous = 2, NO_PREVIOUS
    life.snapshot(b"new")
    index.db.execute("DELETE FROM rows")
    assert loaded(life, index, console) == ({b"new"}, 3)


def test_half_of_a_change_does_not_count(index, console):
    life = Life().snapshot(b"a").segment(b"c").segment(b"half", more=True)
    assert loaded(life, index, console) == ({b"a", b"c"}, 2)
    assert console.worst == 0, "the rest may be on its way"
    life.segment(b"rest")
    index.db.execute("DELETE FROM rows")
    assert loaded(life, index, console) == ({b"a", b"c", b"half", b"rest"}, 4)


def test_an_older_snapshot_serves_when_the_newest_cannot(index, console):
    life = Life().snapshot(b"a").segment(b"c").snapshot(b"a", b"c", b"fuzzy").segment(b"d")
    life.damage(snapshot_name(3))
    assert loaded(life, index, console) == ({b"a", b"c", b"d"}, 4)
    assert console.worst == 4


def test_a_damaged_run_or_a_missing_segment_of_a_snapshot_makes_it_useless(index, console):
    life = Life().snapshot(b"a").segment(b"c").snapshot(b"other run")
    run = next(name for name in reversed(life.objects) if name.startswith("manifests/runs"))
    life.damage(run)
    assert loaded(life, index, console) == ({b"a", b"c"}, 3)
    del life.objects[segment_name(1)]
    index.db.execute("DELETE FROM rows")
    assert loaded(life, index, console) is None


def test_an_encrypted_or_later_object_is_refused_not_passed_over(index, console, monkeypatch):
    life = Life().snapshot(b"a")
    data = bytearray(life.objects[snapshot_name(1)])
    data[136] = 9
    data[376:384] = xxhash.xxh3_64_intdigest(bytes(data[:376])).to_bytes(8, "little")
    life.objects[snapshot_name(1)] = bytes(data)
    with pytest.raises(Refused, match="was made with encryption 9; use a newer vna-extract"):
        Manifests(life.objects, None, index, console).load()


def test_rows_are_put_and_removed_by_key_and_by_prefix(index):
    put = [Row(Operation.PUT, b"n" + key, key) for key in (b"a", b"ab", b"a\xff\xff", b"b", b"\xff\xffz")]
    index.apply([*put, Row(Operation.DELETE_PREFIX, b"na", b"")])
    assert [key for key, _ in index.rows(b"n")] == [b"b", b"\xff\xffz"]
    index.apply([Row(Operation.DELETE, b"nb", b""), Row(Operation.DELETE, b"ngone", b"")])
    assert [key for key, _ in index.rows(b"n\xff\xff")] == [b"z"]
    with pytest.raises(Refused):
        index.apply([Row(Operation.PUT, b"q", b"")])


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"", b"/a", b"a//b", b"..", b"a/../b", b"a/..", b"./a", b"a/.", b"a\0b", b"a/"])
def test_a_path_that_could_lead_elsewhere_is_refused(path, tmp_path):
    with pytest.raises(Damaged):
        vna_extract.components(path)
    out = Out(str(tmp_path / "out"), owner=False)
    with pytest.raises(Damaged):
        out.write(vna_extract.Item(path, "file"), [b"evil"])
    out.close()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("path", [b"a", b"a/...", b"..a/b..", b"a/ /\xff\n", b"-rf/~"])
def test_any_other_byte_is_a_name(path):
    assert b"/".join(vna_extract.components(path)) == path


def test_a_folder_nested_deeper_than_what_is_kept_open_is_written_and_linked(tmp_path):
    out = Out(str(tmp_path / "out"), owner=False)
    deep = b"/".join(b"%d" % n for n in range(300))
    item = vna_extract.Item(deep + b"/file", "file", mode=0o644)
    out.write(item, [b"deep"])
    out.link(item.path, b"other/" + deep + b"/link")
    assert out.holds(dataclasses.replace(item, size=4, sha256=digest(b"deep")))
    out.close()
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_what_is_wanted_is_told_by_whole_names():
    wanted = Wanted(b"archive", (b"archive", b"study"))
    assert wanted.takes(b"archive/study/x")
    assert not wanted.takes(b"archive/study-two/x")
    assert wanted.enters(b"archive")
    assert not wanted.takes(b"archive")
    assert not wanted.enters(b"other/study")


def test_a_name_is_shown_on_one_line():
    assert vna_extract.shown("Ünï/\n\x1b[2J".encode() + b"\xff") == "Ünï/\\n\\x1b[2J\\xff"


# -- packs -------------------------------------------------------------------------------------------------------


def a_pack(folder, objects, files):
    """Put a pack of these files, (path, inode, version, data), on a target."""
    identity = new_pack_id()
    header = PackHeader(identity, ARCHIVE, RepositoryId(7), 0, Instant(len(objects)))
    writer = PackWriter(str(folder / identity.hex()), header, repository_name="archive")
    for path, inode, version, data in files:
        encoded = codecs.encode(data, PieceKind.BYTES)
        piece = writer.append_piece(
            encoded.data, raw_bytes=len(data), codec=encoded.codec, kind=PieceKind.BYTES, sha256=digest(data)
        )
        hints = FileHints(path, Inode(inode), Version(version), 0o100644, mtime_ns=version, ctime_ns=version)
        writer.append_content(Recipe(digest(data), len(data), (piece,)), hints)
    writer.close()
    objects[pack_object_name(identity)] = (folder / identity.hex()).read_bytes()
    return identity


def extract(objects, tmp_path, monkeypatch, *words):
    """Run the command line on a target in memory; the exit code and what is there then."""
    monkeypatch.setattr(vna_extract, "open_target", lambda url: objects)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=io.BytesIO(), flush=lambda: None))
    code = vna_extract.main(["memory", str(tmp_path / "out"), *words])
    found = {}
    for folder, _, names in os.walk(tmp_path / "out"):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, tmp_path / "out")] = file.read()
    return code, found


def images(tmp_path, objects):
    """A pack of the files of two image codecs and both flags; the files by name."""
    encoder = Encoder(level=1, seconds_per_gigabyte_max=20.0, attempts=NoAttempts(), processor_seconds=float)
    files = {
        "r/ct": studies.real_dicom_file("693_UNCR.dcm"),
        "r/colour": studies.real_dicom_file("examples_rgb_color.dcm"),
        "r/planes": studies.a_native_colour_image(planes=True),
        "r/odd": studies.a_native_colour_image(rows=101, columns=103),
    }
    identity = new_pack_id()
    writer = PackWriter(
        str(tmp_path / identity.hex()),
        PackHeader(identity, ARCHIVE, RepositoryId(7), 0, Instant(1)),
        repository_name="r",
    )
    stored = []
    for number, (name, data) in enumerate(files.items()):
        refs = []
        for cut in split(data):
            raw = data[cut.offset : cut.offset + cut.length_bytes]
            one = encoder.encode(raw, cut.kind, cut.raster)
            refs.append(
                writer.append_piece(one.data, raw_bytes=len(raw), codec=one.codec, kind=cut.kind, sha256=digest(raw))
            )
            stored.append((one, raw))
        hints = FileHints(name.encode(), Inode(number), Version(1), 0o100644)
        writer.append_content(Recipe(digest(data), len(data), tuple(refs)), hints)
    writer.close()
    objects[pack_object_name(identity)] = (tmp_path / identity.hex()).read_bytes()
    return files, [(one.data, int(one.codec), raw) for one, raw in stored if one.codec >= vna_extract.HTJ2K]


def test_images_come_back_bit_for_bit(tmp_path, monkeypatch):
    objects = Objects()
    files, found = images(tmp_path, objects)
    assert {codec for _, codec, _ in found} == {3, 4}
    assert extract(objects, tmp_path, monkeypatch) == (0, files)


def test_images_without_their_library_are_refused_with_its_name_and_the_rest_comes(tmp_path, monkeypatch, capsys):
    objects = Objects()
    files, _ = images(tmp_path, objects)
    a_pack(tmp_path, objects, [(b"r/other", 77, 1, b"other")])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "imagecodecs", None)
        assert extract(objects, tmp_path, without) == (3, {"r/other": b"other"})
    assert "imagecodecs" in capsys.readouterr().err
    assert extract(objects, tmp_path, monkeypatch, "--resume") == (0, files | {"r/other": b"other"})


def test_a_rotten_image_and_one_of_another_size_are_damaged_before_a_decoder_is_asked(tmp_path, monkeypatch):
    _, found = images(tmp_path, Objects())

    def never(*_):
        raise AssertionError("a decoder was asked")

    monkeypatch.setitem(sys.modules, "imagecodecs", SimpleNamespace(htj2k_decode=never, jpegxl_decode=never))
    for stored, codec, raw in found:
        for at in [*range(22), 28, 32, len(stored) // 2, len(stored) - 1]:
            rotten = bytearray(stored)
            rotten[at] ^= 0x10
            with pytest.raises(Damaged):
                vna_extract.read_image(memoryview(bytes(rotten)), codec, len(raw), "it")
        for length in (0, len(raw) - 1, len(raw) + 1):
            with pytest.raises(Damaged):
                vna_extract.read_image(memoryview(stored), codec, length, "it")
        with pytest.raises(Damaged):
            vna_extract.read_image(memoryview(stored)[:20], codec, len(raw), "it")
        for other, _, raw_of_other in found:
            mixed = stored[8:20] + other[20:]
            lying = xxhash.xxh3_64_digest(mixed)[::-1] + mixed
            if len(raw_of_other) != len(raw):
                with pytest.raises(Damaged):
                    vna_extract.read_image(memoryview(lying), codec, len(raw), "it")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library prints what it catches
def test_a_hostile_image_is_damaged_or_of_its_length(tmp_path):
    _, found = images(tmp_path, Objects())
    for stored, codec, raw in found:
        assert vna_extract.read_image(memoryview(stored), codec, len(raw), "it") == raw
        for at in range(8, len(stored), len(stored) // 50):
            hostile = bytearray(stored)
            hostile[at] ^= 0x10
            hostile[:8] = xxhash.xxh3_64_digest(bytes(hostile[8:]))[::-1]
            with contextlib.suppress(Damaged):
                assert len(vna_extract.read_image(memoryview(bytes(hostile)), codec, len(raw), "it")) == len(raw)


def headers(tmp_path, objects):
    """A pack of a study whose headers lean on one; the files by name, and its id."""
    files = {f"r/{number}": item.data for number, item in enumerate(studies.real_ct_study()[:5])}
    identity = new_pack_id()
    writer = PackWriter(
        str(tmp_path / identity.hex()),
        PackHeader(identity, ARCHIVE, RepositoryId(7), 0, Instant(1)),
        repository_name="r",
    )
    bases, leaning = Bases(), []
    for number, (name, data) in enumerate(files.items()):
        refs = []
        for cut in split(data):
            raw = data[cut.offset : cut.offset + cut.length_bytes]
            leant = bases.lean(raw) if cut.kind is PieceKind.DICOM_HEADER else None
            one = leant or codecs.encode(raw, cut.kind)
            refs.append(
                writer.append_piece(one.data, raw_bytes=len(raw), codec=one.codec, kind=cut.kind, sha256=digest(raw))
            )
            bases.add(refs[-1], raw)
        leaning += [ref for ref in refs if ref.codec == vna_extract.ZSTD_AFTER_BASE]
        hints = FileHints(name.encode(), Inode(number), Version(1), 0o100644)
        writer.append_content(Recipe(digest(data), len(data), tuple(refs)), hints)
    writer.close()
    objects[pack_object_name(identity)] = (tmp_path / identity.hex()).read_bytes()
    assert len(leaning) == 4
    return files, leaning


def test_headers_that_lean_on_another_one_come_back_bit_for_bit(tmp_path, monkeypatch):
    objects = Objects()
    files, _ = headers(tmp_path, objects)
    assert extract(objects, tmp_path, monkeypatch) == (0, files)


def test_one_file_whose_header_leans_is_read_without_the_rest_of_its_pack(tmp_path, monkeypatch):
    objects = Objects()
    files, _ = headers(tmp_path, objects)
    asked = []
    read = objects.read
    monkeypatch.setattr(objects, "read", lambda name, at, length: asked.append((at, length)) or read(name, at, length))
    assert extract(objects, tmp_path, monkeypatch, "--path", "r/3") == (0, {"r/3": files["r/3"]})
    assert len({at for at, _ in asked}) == len(asked)
    assert all(length < 70_000 for _, length in asked)


def test_a_header_whose_base_rotted_or_that_leads_astray_is_damaged_and_the_rest_comes(tmp_path, monkeypatch):
    for n, where in enumerate((0, 3, 8, 11, 15, 16, 20, 22, 30, None)):
        objects = Objects()
        files, leaning = headers(tmp_path, objects)
        (name,) = objects
        last = leaning[-1]
        broken = bytearray(objects[name])
        if where is None:
            broken[256 + 200] ^= 0x10  # the first header, which is the base
        else:
            broken[last.offset + where] ^= 0x10
        objects[name] = bytes(broken)
        out = tmp_path / str(n)
        out.mkdir()
        code, found = extract(objects, out, monkeypatch)
        assert code == 4
        expected = {} if where is None else {key: data for key, data in files.items() if key != "r/4"}
        assert found == expected


def test_a_forged_path_is_reported_and_everything_else_comes(tmp_path, monkeypatch):
    objects = Objects()
    a_pack(tmp_path, objects, [(b"../../evil", 1, 1, b"evil"), (b"r/good", 2, 1, b"good"), (b"r/../up", 3, 1, b"up")])
    assert extract(objects, tmp_path, monkeypatch) == (4, {"r/good": b"good"})
    assert not (tmp_path.parent / "evil").exists()


def test_the_newest_version_has_the_name_and_the_others_have_their_numbers(tmp_path, monkeypatch):
    objects = Objects()
    for version in (1, 2, 3):
        a_pack(tmp_path, objects, [(b"r/file", 5, version, b"version %d" % version)])
    assert extract(objects, tmp_path, monkeypatch) == (0, {"r/file": b"version 3"})
    code, found = extract(objects, tmp_path, monkeypatch, "--all-versions", "--resume")
    assert (code, found) == (
        0,
        {"r/file": b"version 3", "r/file.~v1~": b"version 1", "r/file.~v2~": b"version 2"},
    )


def test_a_path_that_was_a_file_and_a_folder_gives_both(tmp_path, monkeypatch):
    objects = Objects()
    a_pack(tmp_path, objects, [(b"r/x", 5, 1, b"file"), (b"r/x!", 7, 1, b"between"), (b"r/x/y", 6, 1, b"below")])
    assert extract(objects, tmp_path, monkeypatch) == (
        0,
        {"r/x.~file~": b"file", "r/x!": b"between", "r/x/y": b"below"},
    )


def test_a_pack_that_cannot_be_listed_is_damage_and_the_others_are_read(tmp_path, monkeypatch):
    objects = Objects()
    gone = a_pack(tmp_path, objects, [(b"r/gone", 5, 1, b"gone")])
    a_pack(tmp_path, objects, [(b"r/there", 6, 1, b"there")])
    objects[pack_object_name(gone)] = objects[pack_object_name(gone)][:-1]
    assert extract(objects, tmp_path, monkeypatch) == (4, {"r/there": b"there"})


def test_bytes_that_are_in_two_packs_survive_the_loss_of_one(tmp_path, monkeypatch):
    objects = Objects()
    bad = a_pack(tmp_path, objects, [(b"r/one", 5, 1, os.urandom(50_000))])
    data = codecs.decode(objects[pack_object_name(bad)][256:50_256], Codec.NONE, 50_000)
    a_pack(tmp_path, objects, [(b"r/two", 6, 1, data)])
    broken = bytearray(objects[pack_object_name(bad)])
    broken[1000] ^= 1
    objects[pack_object_name(bad)] = bytes(broken)
    assert extract(objects, tmp_path, monkeypatch) == (0, {"r/one": data, "r/two": data})


def test_little_is_read_where_little_is_wanted_and_much_in_few_requests(tmp_path, monkeypatch):
    objects = Objects()
    files = [(b"r/%04d" % n, n, 1, os.urandom(40_000)) for n in range(300)]
    a_pack(tmp_path, objects, files)
    total = sum(map(len, objects.values()))
    code, found = extract(objects, tmp_path, monkeypatch, "--path", "r/0123")
    assert (code, found) == (0, {"r/0123": files[123][3]})
    assert objects.read_bytes < 300_000
    objects.read_bytes = objects.requests = 0
    code, found = extract(objects, tmp_path, monkeypatch, "--resume")
    assert code == 0
    assert found == {path.decode(): data for path, _, _, data in files}
    assert objects.requests < 12
    assert objects.read_bytes < total + 200_000


def test_a_full_disk_ends_it_with_advice_and_without_half_a_file(tmp_path, monkeypatch, capsys):
    objects = Objects()
    a_pack(tmp_path, objects, [(b"r/one", 5, 1, b"one")])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    assert extract(objects, tmp_path, monkeypatch) == (1, {})
    assert "go on with --resume" in capsys.readouterr().err


def test_a_target_that_fails_for_a_while_is_asked_again():
    class Failing(Objects):
        failures = 2

        def read(self, name, offset, length):
            self.failures -= 1
            if self.failures >= 0:
                raise Unreachable("for a while")
            return super().read(name, offset, length)

        def list(self, prefix):
            for name, size in super().list(prefix):
                yield name, size
                if self.failures > 0:
                    self.failures -= 1
                    raise Unreachable("in the middle")

    waits = []
    failing = Failing(a=b"1", b=b"2")
    target = vna_extract.Patient(failing, waits.append)
    assert target.read("a", 0, 10) == b"1"
    assert waits == [0.5, 1.0]
    failing.failures = 2
    assert list(target.list("")) == [("a", 1), ("b", 1)]
    failing.failures = 100
    with pytest.raises(Unreachable):
        target.read("a", 0, 10)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "s3:///prefix", "s3://bucket/?secret=x", "azure://account", "file://host/path", "file:///"]
)
def test_a_url_that_is_none_is_wrong_usage(url):
    with pytest.raises(vna_extract.Usage):
        vna_extract.open_target(url)


def test_azure_endpoints_are_understood_as_vnafs_does():
    assert vna_extract._account_url("acc", "") == "https://acc.blob.core.windows.net"
    assert vna_extract._account_url("acc", "http://127.0.0.1:1") == "http://127.0.0.1:1/acc"
    assert vna_extract._account_url("acc", "http://azurite:1") == "http://azurite:1/acc"
    assert vna_extract._account_url("acc", "https://acc.example.org") == "https://acc.example.org"


def test_json_has_exact_names():
    assert vna_extract.exact("path", "ä".encode()) == {"path": "ä"}
    assert json.dumps(vna_extract.exact("path", b"\xff")) == '{"path_base64": "/w=="}'
