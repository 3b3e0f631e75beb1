"""FORMAT.md, executed: packs are taken apart by the document's own tables and by its own program.

Nothing of the pack reader is used here, only the writer that is under test; F-6 and F-9 ask the reader to refuse.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import imagecodecs
import pytest
import xxhash
import zstandard

from tests import studies
from vnafs.content import codecs, packfile, rasters
from vnafs.content.bases import Base, Bases
from vnafs.content.encoder import Encoder, NoAttempts
from vnafs.content.packfile import FileHints, PackHeader, PackReader, PackWriter
from vnafs.content.splitters import examine
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, Version, new_pack_id, pack_object_name
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind, PieceRef, Recipe

DOCUMENT_PATH = os.path.join(os.path.dirname(__file__), "..", "..", "FORMAT.md")
with open(DOCUMENT_PATH, encoding="utf-8") as _file:
    DOCUMENT = _file.read()

ARCHIVE = bytes(range(16))
CREATED = 1_760_000_000_123_456_789
ENCODER = Encoder(level=1, seconds_per_gigabyte_max=20.0, attempts=NoAttempts(), processor_seconds=float)
"""Time stands still, so that every way is within the budget."""
NOT_UTF8 = b"caf\xe9/\xff\xfe.dcm"


# -- the document as a parser --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    offset: int
    length_bytes: int
    name: str
    value: str

    def bytes_in(self, data: bytes) -> bytes:
        return data[self.offset : self.offset + self.length_bytes]

    def number_in(self, data: bytes) -> int:
        return int.from_bytes(self.bytes_in(data), "little")


def table(heading: str, nth: int = 0) -> dict[str, Field]:
    """The nth byte table of a section, by field name; offsets must follow each other without gaps."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = [block for block in re.split(r"\n\s*\n", section) if block.lstrip().startswith("| offset ")]
    fields = {}
    at = 0
    for row in tables[nth].strip().splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        field = Field(int(cells[0]), int(cells[1]), cells[2], cells[3])
        assert field.offset == at, f"{heading}: {field.name} leaves a gap"
        at += field.length_bytes
        fields[field.name] = field
    return fields


HEADER, FOOTER = table("Header"), table("Footer")
IMAGE, BASE = table("Images"), table("Bases")
RECORD, ENTRY = table("Recipe record", 0), table("Recipe record", 1)


def assert_constants(fields: dict[str, Field], data: bytes) -> None:
    """Fields whose value the document states have it."""
    for field in fields.values():
        if field.value.startswith("`"):
            assert field.bytes_in(data) == bytes.fromhex(field.value.strip("`")), field.name
        elif field.value.isdigit():
            assert field.number_in(data) == int(field.value), field.name


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


@dataclasses.dataclass(frozen=True)
class Pack:
    """A pack taken apart by the tables."""

    data: bytes

    @property
    def header(self) -> bytes:
        return self.data[:256]

    @property
    def footer(self) -> bytes:
        return self.data[-160:]

    def footer_number(self, name: str) -> int:
        return FOOTER[name].number_in(self.footer)

    @property
    def catalogue_stored(self) -> bytes:
        at = self.footer_number("catalogue_offset")
        return self.data[at : at + self.footer_number("catalogue_stored_bytes")]

    @property
    def lines(self) -> list[dict]:
        return [
            json.loads(line) for line in zstandard.ZstdDecompressor().decompress(self.catalogue_stored).splitlines()
        ]

    def lines_of(self, kind: str) -> list[dict]:
        return [line for line in self.lines if line["kind"] == kind]

    def record(self, line: dict) -> bytes:
        return self.data[line["offset"] : line["offset"] + line["length"]]


def entries(record: bytes) -> list[bytes]:
    size = sum(field.length_bytes for field in ENTRY.values())
    first = RECORD["body"].offset + 16 * RECORD["other_packs"].number_in(record)
    return [record[first + size * n : first + size * (n + 1)] for n in range(RECORD["pieces"].number_in(record))]


def raw_of(entry: bytes, pack: bytes) -> bytes:
    """A piece decoded as the codec table says."""
    at, length = ENTRY["offset"].number_in(entry), ENTRY["stored_bytes"].number_in(entry)
    stored, codec = pack[at : at + length], ENTRY["codec"].number_in(entry)
    if codec == 0:
        return stored
    if codec in (3, 4):
        return image_of(stored, codec)
    if codec == 5:
        return after_base(stored, pack)
    plain = zstandard.ZstdDecompressor().decompress(stored)
    if codec == 1:
        return plain
    half = (len(plain) + 1) // 2
    return bytes(plain[n // 2] if n % 2 == 0 else plain[half + n // 2] for n in range(len(plain)))


def after_base(stored: bytes, pack: bytes) -> bytes:
    """The raw bytes of a piece that leans on another one, as the document says."""
    head = {name: field.number_in(stored) for name, field in BASE.items() if name != "frame"}
    base = pack[head["offset"] : head["offset"] + head["stored_bytes"]]
    before = zstandard.ZstdDecompressor().decompress(base)
    assert (len(before), xxh3(before)) == (head["raw_bytes"], head["guard"])
    dictionary = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(stored[BASE["frame"].offset :])


def image_of(stored: bytes, codec: int) -> bytes:
    """The raw bytes of an image, a sample at a time, by another decoder than ours where there is one."""
    head = {name: field.number_in(stored) for name, field in IMAGE.items()}
    assert head["guard"] == xxh3(stored[8:])
    stream, tail = stored[20 : len(stored) - head["tail_bytes"]], stored[len(stored) - head["tail_bytes"] :]
    pixels = (imagecodecs.jpeg2k_decode if codec == 3 else imagecodecs.jpegxl_decode)(stream)
    assert pixels.shape[:2] == (head["rows"], head["columns"])
    assert pixels.dtype.str[1:] == f"u{head['sample_bytes']}"
    samples = pixels.reshape(-1, head["samples"]).tolist()
    ordered = [sample for pixel in samples for sample in pixel]
    if head["flags"] & 2:
        ordered = [pixel[plane] for plane in range(head["samples"]) for pixel in samples]
    if head["flags"] & 1:
        ordered = [sample ^ (1 << (8 * head["sample_bytes"] - 1)) for sample in ordered]
    return b"".join(sample.to_bytes(head["sample_bytes"], "little") for sample in ordered) + tail


# -- packs to take apart -------------------------------------------------------------------------------------


def write(folder, contents: dict[bytes, bytes], leaning: Recipe | None = None) -> tuple[Pack, list[Recipe], PackId]:
    header = PackHeader(new_pack_id(), ARCHIVE, RepositoryId(4711), 9, Instant(CREATED))
    writer = PackWriter(str(folder / f"{header.pack.hex()}.pack"), header, repository_name="radiology")
    recipes, bases = [], Bases()
    for number, (path, data) in enumerate(contents.items()):
        examined = examine(data)
        refs: list[PieceRef] = []
        for cut in examined.cuts:
            raw = data[cut.offset : cut.offset + cut.length_bytes]
            leant = bases.lean(raw) if cut.kind is PieceKind.DICOM_HEADER else None
            encoded = leant or ENCODER.encode(raw, cut.kind, cut.raster)
            digest = Sha256(hashlib.sha256(raw).digest())
            refs.append(
                writer.append_piece(encoded.data, raw_bytes=len(raw), codec=encoded.codec, kind=cut.kind, sha256=digest)
            )
            bases.add(refs[-1], raw)
        made = Recipe(Sha256(hashlib.sha256(data).digest()), len(data), tuple(refs))
        hints = FileHints(
            path, Inode(number), Version(1), 0o100644, 10, 20, 30, 40, {b"user.x": b"\xff"}, examined.facts
        )
        writer.append_content(made, hints)
        recipes.append(made)
    if leaning is not None:
        writer.append_content(leaning, FileHints(b"leaning.bin", Inode(99), Version(1)))
    closed = writer.close()
    with open(folder / f"{closed.id.hex()}.pack", "rb") as file:
        pack = Pack(file.read())
    assert hashlib.sha256(pack.data).digest() == closed.sha256
    return pack, recipes, closed.id


CONTENTS = {
    b"ct/one.dcm": studies.real_dicom_file("693_UNCR.dcm"),
    b"us/frames.dcm": studies.real_dicom_file("emri_small_RLE.dcm"),
    NOT_UTF8: studies.a_native_multiframe(frames=3, rows=64, columns=81),
    "документ.pdf".encode(): studies.a_pdf(pages=4),
    b"photo.jpg": studies.a_jpeg(size_bytes=70_000),
    b"empty": b"",
    b"odd": b"\x01\x00" * 40_000 + b"\x01",
    b"us/colour.dcm": studies.real_dicom_file("examples_rgb_color.dcm"),
    b"us/planes.dcm": studies.a_native_colour_image(planes=True),
    b"us/odd.dcm": studies.a_native_colour_image(rows=101, columns=103),
    b"ct/corrected.dcm": studies.with_corrected_header(studies.real_dicom_file("693_UNCR.dcm")),
    b"ct/again.dcm": studies.with_corrected_header(studies.real_dicom_file("693_UNCR.dcm"), seed=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(scope="module")
def written(folder) -> tuple[Pack, list[Recipe], PackId]:
    return write(folder, CONTENTS)


@pytest.fixture(scope="module")
def pack(written) -> Pack:
    return written[0]


def test_f1_the_parts_follow_each_other_without_gaps(pack):
    places = [(256, 0)]
    places += [(line["offset"], line["stored"]) for line in pack.lines_of("piece")]
    places += [(line["offset"], line["length"]) for line in pack.lines_of("recipe")]
    places.sort()
    for (offset, length), (after, _) in zip(
        places, [*places[1:], (pack.footer_number("catalogue_offset"), 0)], strict=True
    ):
        assert offset + length == after
    assert pack.footer_number("catalogue_offset") + len(pack.catalogue_stored) + 160 == len(pack.data)
    assert pack.footer_number("body_bytes") == pack.footer_number("catalogue_offset") - 256


def test_f1_bytes_that_were_written_are_never_changed(tmp_path):
    header = PackHeader(new_pack_id(), ARCHIVE, RepositoryId(1), 0, Instant(CREATED))
    path = tmp_path / "pack"
    writer = PackWriter(str(path), header, repository_name="r")
    for number in range(40):
        raw = number.to_bytes(2, "little") * 20_000
        writer.append_piece(
            raw, raw_bytes=40_000, codec=Codec.NONE, kind=PieceKind.BYTES, sha256=Sha256(hashlib.sha256(raw).digest())
        )
    before = path.read_bytes()
    writer.close()
    assert len(before) > 1_000_000
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize(("files", "fetches"), [(30, 1), (3000, 2)])
def test_f2_one_or_two_reads_list_a_pack(files, fetches, tmp_path):
    pack, _, identity = write(
        tmp_path, {os.urandom(30).replace(b"\0", b"x") + b"%d" % n: b"%d" % n for n in range(files)}
    )
    log: list[Span] = []

    def fetch(span: Span) -> bytes:
        log.append(span)
        return pack.data[span.offset : span.stop]

    assert len(PackReader(fetch, len(pack.data), identity).catalogue().files) == files
    assert len(log) == fetches
    assert log[0].length == min(65_536, len(pack.data))


def test_f3_the_object_name_is_the_id_and_nothing_else():
    identity = PackId(bytes.fromhex("ab" + "cd" * 15))
    assert pack_object_name(identity) == "packs/ab/ab" + "cd" * 15 + ".pack"


def test_f4_every_field_of_the_header_is_where_the_table_says(written):
    pack, _, identity = written
    assert_constants(HEADER, pack.header)
    assert sum(field.length_bytes for field in HEADER.values()) == 256
    assert HEADER["pack_id"].bytes_in(pack.header) == identity
    assert HEADER["archive_id"].bytes_in(pack.header) == ARCHIVE
    assert HEADER["repository_id"].number_in(pack.header) == 4711
    assert HEADER["retention_class"].number_in(pack.header) == 9
    assert HEADER["created_ns"].number_in(pack.header) == CREATED
    assert HEADER["guard"].number_in(pack.header) == xxh3(pack.header[:248])


def test_f5_the_envelope_of_an_unencrypted_pack_is_zero(pack):
    for name in ("encryption", "wrapped_key_bytes", "key_id", "reserved_4", "wrapped_key"):
        assert not any(HEADER[name].bytes_in(pack.header)), name


def changed(fields: dict[str, Field], data: bytes, name: str, number: int) -> bytes:
    """The same header with another value and a right guard."""
    field = fields[name]
    body = bytearray(data)
    body[field.offset : field.offset + field.length_bytes] = number.to_bytes(field.length_bytes, "little")
    body[248:] = xxh3(bytes(body[:248])).to_bytes(8, "little")
    return bytes(body)


def test_f6_what_a_reader_cannot_know_is_refused_by_name(pack):
    for name, number in (("format_version", 2), ("flags", 1 << 16), ("flags", 1 << 31), ("encryption", 2)):
        with pytest.raises(errors.FormatUnknown):
            packfile.decode_header(changed(HEADER, pack.header, name, number))
    later = pack.data[:-12] + b"\x02" + pack.data[-11:]
    with pytest.raises(errors.FormatUnknown):
        packfile.decode_footer(later, len(later))
    assert packfile.decode_header(changed(HEADER, pack.header, "flags", 0xFFFF)).repository == 4711


def test_f7_every_piece_decodes_to_its_length_and_hash(pack):
    seen = set()
    for line in pack.lines_of("recipe"):
        for entry in entries(pack.record(line)):
            raw = raw_of(entry, pack.data)
            assert len(raw) == ENTRY["raw_bytes"].number_in(entry) <= PIECE_BYTES_MAX
            assert hashlib.sha256(raw).digest() == ENTRY["sha256"].bytes_in(entry)
            assert 0 < ENTRY["stored_bytes"].number_in(entry) <= len(raw)
            seen.add(ENTRY["codec"].number_in(entry))
    assert seen == {0, 1, 2, 3, 4, 5}


def test_f8_every_frame_states_its_content_size(pack):
    frames = [(pack.catalogue_stored, pack.footer_number("catalogue_raw_bytes"))]
    frames += [
        (pack.data[line["offset"] : line["offset"] + line["stored"]], line["raw"])
        for line in pack.lines_of("piece")
        if line["codec"] in (1, 2)
    ]
    frames += [(stored_of(pack, line)[BASE["frame"].offset :], line["raw"]) for line in leaning_of(pack)]
    assert len(frames) > 3
    for frame, size in frames:
        assert zstandard.frame_content_size(frame) == size


def test_f9_the_tables_of_codecs_and_kinds_name_all_there_are():
    section = DOCUMENT.split("\n## Stored pieces\n")[1].split("\n## ")[0]
    listed = [
        {int(row.split("|")[1]) for row in block.splitlines()[2:]}
        for block in re.split(r"\n\s*\n", section)
        if block.lstrip().startswith(("| codec", "| kind"))
    ]
    assert listed == [set(Codec), set(PieceKind)]


def test_f9_an_unknown_kind_is_bytes_and_an_unknown_codec_is_refused(written):
    pack, recipes, identity = written
    line = next(line for line in pack.lines_of("recipe") if line["sha256"] == recipes[0].sha256.hex())
    record = bytearray(pack.record(line))
    first = record.index(entries(bytes(record))[0])

    def read() -> Recipe:
        record[-8:] = xxh3(bytes(record[:-8])).to_bytes(8, "little")
        return PackReader(lambda span: bytes(record)[: span.length], 1 << 30, identity).recipe(Span(0, len(record)))

    record[first + ENTRY["kind"].offset] = 250
    assert read().pieces[0].kind is PieceKind.BYTES
    record[first + ENTRY["codec"].offset] = 250
    with pytest.raises(errors.FormatUnknown):
        read()


def test_f10_pieces_joined_in_order_are_the_content(pack):
    contents = {hashlib.sha256(data).hexdigest(): data for data in CONTENTS.values()}
    lines = pack.lines_of("recipe")
    assert {line["sha256"] for line in lines} == set(contents)
    for line in lines:
        record = pack.record(line)
        assert_constants(RECORD, record)
        assert RECORD["record_bytes"].number_in(record) == len(record)
        assert RECORD["content_bytes"].number_in(record) == line["size"]
        assert RECORD["sha256"].bytes_in(record).hex() == line["sha256"]
        assert int.from_bytes(record[-8:], "little") == xxh3(record[:-8])
        assert b"".join(raw_of(entry, pack.data) for entry in entries(record)) == contents[line["sha256"]]


def leaning_on(one: Recipe, two: Recipe, joined: bytes) -> Recipe:
    return Recipe(Sha256(hashlib.sha256(joined).digest()), len(joined), (*one.pieces, *two.pieces))


def test_f11_a_recipe_names_other_packs_by_id(tmp_path):
    _, (one,), identity = write(tmp_path, {b"one": b"1" * 9000})
    _, (two,), other = write(tmp_path, {b"two": b"2" * 9000})
    pack, _, _ = write(tmp_path, {b"x": b"x"}, leaning_on(one, two, b"1" * 9000 + b"2" * 9000))
    (line,) = (line for line in pack.lines_of("recipe") if line["size"] == 18_000)
    record = pack.record(line)
    assert RECORD["other_packs"].number_in(record) == 2
    at = RECORD["body"].offset
    assert [record[at : at + 16], record[at + 16 : at + 32]] == [identity, other]
    assert [ENTRY["pack"].number_in(entry) for entry in entries(record)] == [1, 2]


def test_f12_the_catalogue_names_everything_in_the_body(written):
    pack, recipes, identity = written
    first = pack.lines[0]
    assert first == {
        "kind": "pack",
        "pack": identity.hex(),
        "archive": ARCHIVE.hex(),
        "repository": 4711,
        "repository_name": "radiology",
        "retention_class": 9,
        "created_ns": CREATED,
    }
    pieces = [
        (line["offset"], line["stored"], line["raw"], line["codec"], line["type"], line["sha256"])
        for line in pack.lines_of("piece")
    ]
    assert pieces == [
        (ref.offset, ref.stored_bytes, ref.raw_bytes, ref.codec, ref.kind, ref.sha256.hex())
        for made in recipes
        for ref in made.pieces
    ]
    counts = tuple(pack.footer_number(name) for name in ("pieces", "recipes", "files"))
    assert counts == tuple(len(pack.lines_of(kind)) for kind in ("piece", "recipe", "file"))


def test_f12_the_document_lists_every_key_that_is_written(pack):
    section = DOCUMENT.split("\n## Catalogue\n")[1].split("\n## ")[0]
    for line in pack.lines:
        row = next(row for row in section.splitlines() if row.startswith(f"| `{line['kind']}` |"))
        assert {f"`{key}`" for key in line if key != "kind"} <= set(re.findall(r"`\w+`", row))


def test_f13_paths_are_exact_whatever_their_bytes(pack):
    by_inode = {line["inode"]: line for line in pack.lines_of("file")}
    assert by_inode[0]["path"] == "ct/one.dcm"
    assert by_inode[3]["path"] == "документ.pdf"
    assert "path" not in by_inode[2]
    assert by_inode[2]["path_base64"] == "Y2Fm6S//" + "/i5kY20="
    assert by_inode[0]["dicom"]["Modality"] == "CT"
    assert by_inode[0]["xattrs"] == {"dXNlci54": "/w=="}


def test_f14_the_footer_is_found_from_the_end_and_every_field_is_where_the_table_says(written):
    pack, _, identity = written
    assert sum(field.length_bytes for field in FOOTER.values()) == 160
    assert_constants(FOOTER, pack.footer)
    assert FOOTER["pack_id"].bytes_in(pack.footer) == identity
    assert pack.data[-12:] == b"\x01\x00\xa0\x00VNAPKEND"


def test_f15_every_part_is_guarded(pack):
    assert pack.footer_number("guard") == xxh3(pack.footer[8:])
    assert pack.footer_number("catalogue_xxh3") == xxh3(pack.catalogue_stored)
    body_end = 256 + pack.footer_number("body_bytes")
    assert pack.footer_number("body_xxh3") == xxh3(pack.data[256:body_end])
    assert FOOTER["sha256"].bytes_in(pack.footer) == hashlib.sha256(pack.data[:-160]).digest()


def test_f16_the_program_in_the_document_gives_back_every_file(tmp_path):
    packs = tmp_path / "packs"
    packs.mkdir()
    _, (one,), _ = write(packs, {b"one": b"1" * 9000})
    _, recipes, _ = write(packs, CONTENTS)
    joined = b"1" * 9000 + CONTENTS[b"ct/one.dcm"]
    write(packs, {b"last": b"last"}, leaning_on(one, recipes[0], joined))
    program = DOCUMENT.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 68
    script = tmp_path / "extract.py"
    script.write_text(program, encoding="utf-8")
    out = tmp_path / "out"
    names = [str(packs / name) for name in os.listdir(packs)]
    subprocess.run([sys.executable, "-W", "error::SyntaxWarning", str(script), *names, str(out)], check=True)
    expected = CONTENTS | {b"one": b"1" * 9000, b"last": b"last", b"leaning.bin": joined}
    for path, data in expected.items():
        with open(os.path.join(os.fsencode(out), path), "rb") as file:
            assert file.read() == data, path


def images_of(pack: Pack) -> list[tuple[bytes, int, int]]:
    """Stored bytes, codec and raw length of each piece that is an image."""
    lines = [line for line in pack.lines_of("piece") if line["codec"] in (3, 4)]
    return [(pack.data[line["offset"] : line["offset"] + line["stored"]], line["codec"], line["raw"]) for line in lines]


def test_f17_codestreams_are_what_their_standards_define_and_have_the_size_of_the_head(pack):
    found = images_of(pack)
    assert {codec for _, codec, _ in found} == {3, 4}
    for stored, codec, _ in found:
        head = {name: field.number_in(stored) for name, field in IMAGE.items()}
        stream = stored[20 : len(stored) - head["tail_bytes"]]
        if codec == 3:
            assert stream.startswith(b"\xff\x4f\xff\x51")
            assert stream.endswith(b"\xff\xd9")
            columns, rows = int.from_bytes(stream[8:12], "big"), int.from_bytes(stream[12:16], "big")
            assert (rows, columns) == (head["rows"], head["columns"])
            # CAP says that it is of part 15 (15444-15 A.3), COD that it is reversible (15444-1 A.6.1)
            assert b"\xff\x50" in stream[:100]
            cod = stream.index(b"\xff\x52")
            assert stream[cod + 13] == 1
        else:
            assert stream.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))


def test_f18_samples_become_raw_bytes_as_the_document_says(pack):
    raws = {line["sha256"]: line for line in pack.lines_of("piece")}
    seen = set()
    for stored, codec, raw_bytes in images_of(pack):
        raw = image_of(stored, codec)
        assert len(raw) == raw_bytes
        assert hashlib.sha256(raw).hexdigest() in raws
        head = {name: field.number_in(stored) for name, field in IMAGE.items()}
        assert head["rows"] * head["columns"] * head["samples"] * head["sample_bytes"] + head["tail_bytes"] == raw_bytes
        seen |= {("flags", head["flags"]), ("samples", head["samples"]), ("tail", head["tail_bytes"])}
    assert seen == {("flags", n) for n in (0, 1, 2)} | {("samples", n) for n in (1, 3)} | {("tail", n) for n in (0, 1)}


def test_f19_damage_and_a_codestream_of_another_size_never_reach_a_decoder(pack, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a decoder was asked")

    stored, codec, raw_bytes = next(image for image in images_of(pack) if image[1] == 3)
    assert rasters.decode_image(stored, Codec(codec), raw_bytes) == image_of(stored, codec)
    monkeypatch.setattr(rasters, "_decoded", never)
    rotten = bytearray(stored)
    rotten[len(rotten) // 2] ^= 1
    with pytest.raises(errors.Damaged):
        rasters.decode_image(bytes(rotten), Codec(codec), raw_bytes)
    for at in (8, 12, 28, 32, 60, 62):  # rows and columns of the head, of the codestream, components and their depth
        other = bytearray(stored)
        other[at] ^= 1
        other[:8] = xxh3(bytes(other[8:])).to_bytes(8, "little")
        with pytest.raises(errors.Damaged):
            rasters.decode_image(bytes(other), Codec(codec), raw_bytes)


def leaning_of(pack: Pack) -> list[dict]:
    return [line for line in pack.lines_of("piece") if line["codec"] == 5]


def stored_of(pack: Pack, line: dict) -> bytes:
    return pack.data[line["offset"] : line["offset"] + line["stored"]]


def test_f20_a_base_is_an_earlier_piece_of_the_same_pack_that_leans_on_nothing(pack):
    pieces = {line["offset"]: line for line in pack.lines_of("piece")}
    assert len(leaning_of(pack)) >= 2
    for line in leaning_of(pack):
        head = {name: field.number_in(stored_of(pack, line)) for name, field in BASE.items() if name != "frame"}
        base = pieces[head["offset"]]
        assert head["offset"] < line["offset"]
        assert (base["codec"], base["stored"], base["raw"]) == (1, head["stored_bytes"], head["raw_bytes"])
        assert hashlib.sha256(after_base(stored_of(pack, line), pack.data)).hexdigest() == line["sha256"]


def test_f21_a_base_that_begins_like_a_dictionary_is_raw_content_all_the_same(pack):
    before = bytes.fromhex("37a430ec") + os.urandom(100) + b"header " * 1000
    plain = before + b"and what differs"
    bases = Bases()
    alone = codecs.encode(before, PieceKind.DICOM_HEADER)
    nobody = PackId(bytes(16)), Sha256(bytes(32))
    ref = PieceRef(nobody[0], 256, len(alone.data), len(before), alone.codec, PieceKind.DICOM_HEADER, nobody[1])
    bases.add(ref, before)
    leaning = bases.lean(plain)
    assert leaning is not None
    assert after_base(leaning.data, bytes(256) + alone.data) == plain
    for stored in (leaning.data, *(stored_of(pack, line) for line in leaning_of(pack))):
        assert zstandard.get_frame_parameters(stored[BASE["frame"].offset :]).dict_id == 0


def test_f22_a_head_that_leads_astray_is_damage_and_nothing_is_taken_for_it(written):
    pack, recipes, _ = written
    ref = next(ref for made in recipes for ref in made.pieces if ref.codec is Codec.ZSTD_AFTER_BASE)
    stored = pack.data[ref.offset : ref.offset + ref.stored_bytes]
    asked: list[Base] = []

    def fetch(base: Base) -> bytes:
        asked.append(base)
        return packfile.open_base(base, pack.data[base.offset : base.offset + base.stored_bytes])

    def changed(name: str, number: int) -> bytes:
        field = BASE[name]
        packed = number.to_bytes(field.length_bytes, "little")
        return stored[: field.offset] + packed + stored[field.offset + field.length_bytes :]

    assert packfile.open_piece(ref, stored, fetch) == after_base(stored, pack.data)
    assert len(asked) == 1
    for wrong in (
        changed("offset", ref.offset),
        changed("offset", ref.offset - 1),
        changed("offset", (1 << 64) - 1),
        changed("stored_bytes", 0),
        changed("stored_bytes", 65_537 + 16),
        changed("raw_bytes", 0),
        changed("raw_bytes", 65_537),
        stored[:24],
        stored[:7],
    ):
        with pytest.raises(errors.Damaged):
            packfile.open_piece(ref, wrong, fetch)
    assert len(asked) == 1
    for wrong in (changed("guard", 1), changed("offset", 256), changed("raw_bytes", 65_536)):
        with pytest.raises(errors.Damaged):
            packfile.open_piece(ref, wrong, fetch)


def test_every_promise_of_the_document_is_executed():
    promised = set(re.findall(r"\*\*F-(\d+)\*\*", DOCUMENT))
    executed = {match[1] for name in globals() if (match := re.match(r"test_f(\d+)_", name))}
    assert promised == executed
