"""A pack gives back what was put into it or says that it is damaged; nothing in between."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import resource

import pytest
import xxhash

from tests import studies
from vnafs.content import catalogue, codecs, packfile, recipe
from vnafs.content.facts import Facts
from vnafs.content.packfile import FileHints, PackHeader, PackReader, PackWriter
from vnafs.content.splitters import examine
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, Version, new_pack_id
from vnafs.domain.recipes import Codec, PieceKind, PieceRef, Recipe

ODD_NAME = bytes(set(range(1, 256)) - {ord("/")})[:255]


def a_header(pack: PackId | None = None) -> PackHeader:
    return PackHeader(pack or new_pack_id(), b"A" * 16, RepositoryId(77), 3, Instant(1_760_000_000_000_000_000))


def a_writer(tmp_path, pack: PackId | None = None) -> PackWriter:
    header = a_header(pack)
    return PackWriter(str(tmp_path / f"{header.pack.hex()}.pack"), header, repository_name="radiology")


def put(writer: PackWriter, data: bytes, hints: FileHints | None = None) -> tuple[Recipe, Span]:
    refs = []
    for cut in examine(data).cuts:
        raw = data[cut.offset : cut.offset + cut.length_bytes]
        encoded = codecs.encode(raw, cut.kind)
        digest = Sha256(hashlib.sha256(raw).digest())
        refs.append(
            writer.append_piece(encoded.data, raw_bytes=len(raw), codec=encoded.codec, kind=cut.kind, sha256=digest)
        )
    made = Recipe(Sha256(hashlib.sha256(data).digest()), len(data), tuple(refs))
    return made, writer.append_content(made, hints)


def reader_of(data: bytes, pack: PackId, log: list[Span] | None = None) -> PackReader:
    def fetch(span: Span) -> bytes:
        if log is not None:
            log.append(span)
        assert span.length is not None
        return data[span.offset : span.offset + span.length]

    return PackReader(fetch, len(data), pack)


def hints(path: bytes = b"ct/one.dcm", **more: object) -> FileHints:
    return dataclasses.replace(
        FileHints(
            path, Inode(5), Version(1), 0o100640, 1000, 100, 1_700_000_000_000_000_001, 2, {b"user.a": b"\0\xff"}
        ),
        **more,
    )


def a_pack(tmp_path, contents: list[bytes]) -> tuple[bytes, packfile.ClosedPack, list[Span]]:
    writer = a_writer(tmp_path)
    spans = [put(writer, data, hints(b"file %d" % number))[1] for number, data in enumerate(contents)]
    closed = writer.close()
    return (tmp_path / f"{closed.id.hex()}.pack").read_bytes(), closed, spans


CONTENTS = [
    studies.real_dicom_file("CT_small.dcm"),
    studies.real_dicom_file("emri_small_RLE.dcm"),
    studies.a_pdf(pages=3),
    b"",
    b"x",
]


def test_what_is_put_into_a_pack_comes_back(tmp_path):
    data, closed, spans = a_pack(tmp_path, CONTENTS)
    assert (closed.size_bytes, closed.sha256) == (len(data), hashlib.sha256(data).digest())
    reader = reader_of(data, closed.id)
    for content, span in zip(CONTENTS, spans, strict=True):
        assert b"".join(packfile.rebuild(reader.recipe(span), reader.piece)) == content


def test_a_catalogue_tells_everything_a_pack_holds(tmp_path):
    writer = a_writer(tmp_path)
    facts = Facts({"PatientName": "Müller^Jürgen", "Rows": "512"})
    given = hints(ODD_NAME, dicom=facts, mtime_ns=-5)
    made, span = put(writer, CONTENTS[0], given)
    writer.append_file(made.sha256, hints("naïve/名前.dcm".encode()))
    closed = writer.close()
    data = (tmp_path / f"{closed.id.hex()}.pack").read_bytes()
    found = reader_of(data, closed.id).catalogue()
    assert found.header == a_header(closed.id)
    assert found.repository_name == "radiology"
    assert found.pieces == made.pieces
    assert found.recipes == (catalogue.RecipeEntry(made.sha256, made.size_bytes, span),)
    assert [entry.hints for entry in found.files] == [given, hints("naïve/名前.dcm".encode())]
    assert reader_of(data, closed.id).header() == found.header


def test_one_fetch_lists_a_usual_pack(tmp_path):
    writer = a_writer(tmp_path)
    for item in studies.synthetic_ct_study(slices=64):
        put(writer, item.data, hints(item.name.encode(), dicom=examine(item.data).facts))
    closed = writer.close()
    data = (tmp_path / f"{closed.id.hex()}.pack").read_bytes()
    log: list[Span] = []
    assert len(reader_of(data, closed.id, log).catalogue().files) == 64
    assert len(log) == 1


def test_two_fetches_list_a_pack_with_a_large_catalogue(tmp_path):
    random_ = random.Random(1)
    writer = a_writer(tmp_path)
    for number in range(900):
        put(writer, b"%d" % number, hints(random_.randbytes(200).replace(b"\0", b"").replace(b"/", b"")))
    closed = writer.close()
    data = (tmp_path / f"{closed.id.hex()}.pack").read_bytes()
    log: list[Span] = []
    assert len(reader_of(data, closed.id, log).catalogue().files) == 900
    assert len(log) == 2


def test_a_recipe_may_lean_on_other_packs(tmp_path):
    first, second = a_writer(tmp_path), a_writer(tmp_path)
    one, _ = put(first, b"1" * 5000)
    two, _ = put(second, b"2" * 5000)
    whole = Sha256(hashlib.sha256(b"1" * 5000 + b"2" * 5000 + b"1" * 5000).digest())
    span = second.append_content(Recipe(whole, 15_000, (*one.pieces, *two.pieces, *one.pieces)))
    packs = {}
    for writer in (first, second):
        closed = writer.close()
        packs[closed.id] = reader_of((tmp_path / f"{closed.id.hex()}.pack").read_bytes(), closed.id)
    found = packs[second.id].recipe(span)
    assert found.packs() == {first.id, second.id}
    content = b"".join(packfile.rebuild(found, lambda ref: packs[ref.pack].piece(ref)))
    assert hashlib.sha256(content).digest() == whole


def test_the_size_is_known_before_closing_and_never_too_small(tmp_path):
    writer = a_writer(tmp_path)
    for number in range(300):
        put(writer, os.urandom(2000), hints(b"%d" % number))
    bound = writer.size_bytes
    closed = writer.close()
    assert closed.size_bytes <= bound
    assert bound < 1.3 * closed.size_bytes


def test_an_aborted_pack_leaves_nothing(tmp_path):
    writer = a_writer(tmp_path)
    put(writer, CONTENTS[0])
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_a_pack_never_replaces_a_file(tmp_path):
    writer = a_writer(tmp_path)
    with pytest.raises(errors.StorageFailed):
        a_writer(tmp_path, writer.id)
    writer.abort()


def test_a_full_disk_is_told_as_no_space_and_the_pack_can_be_given_up(tmp_path):
    full = open("/dev/full", "wb", buffering=packfile.WRITE_BUFFER_BYTES)  # noqa: SIM115 - abort closes it
    writer = PackWriter(str(tmp_path / "pack"), a_header(), repository_name="", file=full)
    with pytest.raises(errors.NoSpace):
        put(writer, os.urandom(900_000))
    with pytest.raises(errors.NoSpace):
        writer.close()
    writer.abort()
    assert full.closed


def test_a_content_is_recorded_once_and_must_add_up(tmp_path):
    writer = a_writer(tmp_path)
    made, _ = put(writer, b"once")
    with pytest.raises(errors.InvalidArgument):
        writer.append_content(made)
    with pytest.raises(errors.InvalidArgument):
        writer.append_content(Recipe(Sha256(bytes(32)), 5, made.pieces))
    writer.abort()


def test_extended_attributes_that_are_too_large_are_left_out_and_it_says_so():
    line = catalogue.file_line(Sha256(bytes(32)), hints(xattrs={b"user.big": bytes(catalogue.LINE_BYTES_MAX)}))
    assert json.loads(line)["incomplete"] is True
    assert len(line) < 1000


# -- damage --------------------------------------------------------------------------------------------------


def everything(data: bytes, pack: PackId, spans: list[Span]) -> list[bytes]:
    reader = reader_of(data, pack)
    reader.header()
    found = reader.catalogue()
    assert len(found.recipes) == len(spans)
    return [b"".join(packfile.rebuild(reader.recipe(span), reader.piece)) for span in spans]


def test_a_flipped_bit_is_found_or_harmless_wherever_it_is(tmp_path):
    contents = [studies.real_dicom_file("MR_small.dcm"), b"some text " * 300, b"x"]
    data, closed, spans = a_pack(tmp_path, contents)
    found = 0
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << (at % 8)
        try:
            assert everything(bytes(broken), closed.id, spans) == contents
        except (errors.Damaged, errors.FormatUnknown):
            found += 1
    # a few bits of a zstd frame carry nothing; everything else is noticed
    assert found > len(data) - 50


def test_a_truncated_pack_is_damaged(tmp_path):
    data, closed, spans = a_pack(tmp_path, [b"some text " * 50])
    for size in range(len(data)):
        with pytest.raises(errors.Damaged):
            everything(data[:size], closed.id, spans)


def test_garbage_is_damaged_and_takes_no_memory():
    random_ = random.Random(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2000):
        data = random_.randbytes(random_.randrange(1000))
        for act in (
            packfile.decode_header,
            lambda d: packfile.decode_footer(d + packfile.END_MAGIC, len(d) + 8),
            lambda d: recipe.decode_recipe(d, PackId(bytes(16))),
            lambda d: recipe.decode_recipe(recipe.MAGIC + d, PackId(bytes(16))),
            lambda d: catalogue.read_catalogue(d, len(d), PackId(bytes(16))),
        ):
            with pytest.raises((errors.Damaged, errors.FormatUnknown)):
                act(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def guarded(body: bytes) -> bytes:
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


@pytest.mark.parametrize(
    "change",
    [
        {"raw_bytes": 0},
        {"raw_bytes": 1 << 31},
        {"stored_bytes": 1 << 31},
        {"stored_bytes": 0},
        {"offset": (1 << 63) + 1},
    ],
    ids=str,
)
def test_a_well_guarded_lie_in_a_recipe_is_refused(change):
    pack = new_pack_id()
    honest = PieceRef(pack, 256, 10, 10, Codec.NONE, PieceKind.BYTES, Sha256(bytes(32)))
    lie = dataclasses.replace(honest, **change)
    record = recipe.encode_recipe(Recipe(Sha256(bytes(32)), lie.raw_bytes, (lie,)), pack)
    with pytest.raises(errors.Damaged):
        recipe.decode_recipe(record, pack)


def test_a_codec_of_a_later_format_is_named_and_a_kind_of_one_is_only_bytes():
    pack = new_pack_id()
    honest = PieceRef(pack, 256, 10, 10, Codec.NONE, PieceKind.PIXELS, Sha256(bytes(32)))
    record = bytearray(recipe.encode_recipe(Recipe(Sha256(bytes(32)), 10, (honest,)), pack)[:-8])
    record[56 + 13] = 200
    assert recipe.decode_recipe(guarded(bytes(record)), pack).pieces[0].kind is PieceKind.BYTES
    record[56 + 12] = 200
    with pytest.raises(errors.FormatUnknown):
        recipe.decode_recipe(guarded(bytes(record)), pack)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"kind":"file"}',
        b'{"kind":"piece","offset":-1}',
        b'{"kind":"recipe","offset":1e400,"length":1,"size":1,"sha256":""}',
        b'{"kind":"recipe","offset":' + b"9" * 5000 + b"}",
        b'{"kind":"pack","pack":"zz"}',
        b"\xff\xfe",
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_a_crafted_catalogue_is_damaged_and_nothing_worse(line):
    header = a_header()
    lines = [catalogue.pack_line(header, "r"), line + b"\n"]
    with pytest.raises(errors.Damaged):
        catalogue.read_catalogue(catalogue.pressed(lines), sum(map(len, lines)), header.pack)


def test_lines_and_keys_of_later_formats_are_passed_over():
    header = a_header()
    lines = [catalogue.pack_line(header, "r")[:-2] + b',"later":1}\n', b'{"kind":"later"}\n']
    found = catalogue.read_catalogue(catalogue.pressed(lines), sum(map(len, lines)), header.pack)
    assert found.header == header


def test_the_last_bytes_of_a_wrongly_rebuilt_content_are_never_given(tmp_path):
    data, closed, spans = a_pack(tmp_path, [CONTENTS[0]])
    reader = reader_of(data, closed.id)
    good = reader.recipe(spans[0])
    swapped = dataclasses.replace(good, pieces=tuple(reversed(good.pieces)))
    given = []
    with pytest.raises(errors.Damaged):
        given.extend(packfile.rebuild(swapped, reader.piece))
    assert sum(map(len, given)) < good.size_bytes


def test_a_source_that_gives_too_few_bytes_is_damage(tmp_path):
    data, closed, spans = a_pack(tmp_path, CONTENTS)
    reader = PackReader(lambda span: data[span.offset :][: (span.length or 1) - 1], len(data), closed.id)
    for act in (reader.header, reader.catalogue, lambda: reader.recipe(spans[0])):
        with pytest.raises(errors.Damaged):
            act()
