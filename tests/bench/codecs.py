"""What codecs cost and save: run `python -m tests.bench.codecs` in the root of a checkout. One thread.

Three tables of one run: what each candidate makes of the pixels of each real object and how fast; what the pipeline
makes of whole studies, with each budget of processor time; and what a study set and its re-export with corrected
headers take beside `zstd -3` of each file, restic and borg (Debian packages, left out with a word where missing).
Speeds are of processor time, best of some rounds, because the machine may have other work; ratios do not wander.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import imagecodecs
import numpy as np
import zstandard

from tests import studies
from tests.bench import report
from vnafs.content import codecs, packfile, rasters
from vnafs.content.bases import Bases
from vnafs.content.encoder import Encoder, NoAttempts
from vnafs.content.packfile import FileHints, PackHeader, PackReader, PackWriter
from vnafs.content.splitters import examine
from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, PackId, RepositoryId, Sha256, Span, Version, new_pack_id
from vnafs.domain.recipes import PIECE_LOOKUP_BYTES_MIN, Codec, PieceKind, PieceRef, Raster, Recipe

MEGABYTE = 1_000_000
BUDGETS = (0.0, 20.0, 40.0, 100.0)
PACK_BYTES = 32 << 20


def real(*names: str) -> list[bytes]:
    return [studies.real_dicom_file(name) for name in names]


def sets() -> dict[str, list[bytes]]:
    """Real objects by what they are; the real CT is of Debian's invesalius-examples, the others of pydicom."""
    return {
        "CT, 108 slices": [item.data for item in studies.real_ct_study()],
        "CT, 12 bits": real("693_UNCR.dcm"),
        "MR, 12 bits": real("MR2_UNCR.dcm"),
        "MR, overlays": real("MR-SIEMENS-DICOM-WithOverlays.dcm"),
        "CR, 15 bits": real("RG1_UNCR.dcm"),
        "CR, 10 bits": real("RG3_UNCR.dcm"),
        "US, RGB": real("US1_UNCR.dcm"),
        "US, RGB, small": real("examples_rgb_color.dcm"),
        "US, palette": real("OBXXXX1A.dcm"),
        "NM": real("JPEG2000_UNC.dcm"),
    }


# -- candidates ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Candidate:
    name: str
    encode: Callable[[bytes, Raster], bytes]
    decode: Callable[[bytes, bytes, Raster], bytes]


def candidates() -> Iterable[Candidate]:
    back = zstandard.ZstdDecompressor().decompress
    for level in (1, 3):
        press = zstandard.ZstdCompressor(level=level).compress
        yield Candidate(f"zstd-{level}", lambda raw, _, press=press: press(raw), lambda data, *_: back(data))
        yield Candidate(
            f"shuffle + zstd-{level}",
            lambda raw, _, press=press: press(codecs.shuffled(raw)),
            lambda data, *_: codecs.unshuffled(back(data)),
        )
    for name, codec, effort in (
        ("HTJ2K", Codec.HTJ2K, 0),
        *((f"JPEG XL e{effort}", Codec.JPEG_XL, effort) for effort in (1, 2, 3)),
    ):
        yield Candidate(
            name,
            lambda raw, raster, codec=codec, effort=effort: rasters.encode_image(raw, raster, codec, effort),
            lambda data, raw, _, codec=codec: rasters.decode_image(data, codec, len(raw)),
        )
    yield Candidate("JPEG-LS", _jpeg_ls, lambda data, raw, raster: _unsigned(imagecodecs.jpegls_decode(data), raster))


def _jpeg_ls(raw: bytes, raster: Raster) -> bytes:
    kind = "u1" if raster.sample_bytes == 1 else "<u2"
    samples = np.frombuffer(raw, kind, len(raw) // raster.row_bytes * raster.row_bytes // raster.sample_bytes)
    if raster.signed:
        samples = samples ^ np.dtype(kind).type(1 << (8 * raster.sample_bytes - 1))
    shape = (-1, raster.columns) if raster.samples == 1 else (-1, raster.columns, raster.samples)
    return bytes(imagecodecs.jpegls_encode(samples.reshape(shape)))


def _unsigned(samples: np.ndarray, raster: Raster) -> bytes:
    return (samples ^ samples.dtype.type(1 << (8 * raster.sample_bytes - 1)) if raster.signed else samples).tobytes()


def processor_seconds(work: Callable[[], object], rounds: int) -> float:
    """The best of some rounds."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def compare(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Ratio and speeds of every candidate on the pixels of every set."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for what, files in sets().items():
        pieces = [
            (data[cut.offset : cut.offset + cut.length_bytes], cut.raster)
            for data in files
            for cut in examine(data).cuts
            if cut.raster is not None
        ]
        size = sum(len(raw) for raw, _ in pieces)
        say(f"\n{what}: {size / MEGABYTE:.1f} MB of pixels", "ratio   in   out MB/s")
        table[what] = {}
        for candidate in candidates():
            stored = [candidate.encode(raw, raster) for raw, raster in pieces]
            into = processor_seconds(lambda c=candidate, p=pieces: [c.encode(*piece) for piece in p], rounds)
            back = processor_seconds(
                lambda c=candidate, p=pieces, s=stored: [
                    c.decode(data, raw, raster) for data, (raw, raster) in zip(s, p, strict=True)
                ],
                rounds,
            )
            found: dict[str, Any] = {
                "ratio": size / sum(map(len, stored)),
                "in_mb_s": size / into / MEGABYTE,
                "out_mb_s": size / back / MEGABYTE,
            }
            table[what][candidate.name] = found
            say(f"  {candidate.name}", "{ratio:5.2f} {in_mb_s:5.0f} {out_mb_s:5.0f}".format(**found))
    return table


# -- the pipeline ----------------------------------------------------------------------------------------------


class Stored:
    """Packs as the pipeline makes them, in one thread, with its hashes and its lookup of pieces."""

    def __init__(self, folder: str, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._writer: PackWriter | None = None
        self._bases = Bases()
        self._pieces: dict[Sha256, PieceRef] = {}
        self._recipes: dict[Sha256, tuple[PackId, Span]] = {}
        self.codecs: dict[str, int] = {}

    def add(self, data: bytes) -> None:
        whole = Sha256(hashlib.sha256(data).digest())
        if whole in self._recipes:
            return
        examined = examine(data)
        view = memoryview(data)
        refs = tuple(
            self._piece(view[cut.offset : cut.offset + cut.length_bytes], cut.kind, cut.raster) for cut in examined.cuts
        )
        number = len(self._recipes)
        hints = FileHints(b"study/IM%05d.dcm" % number, Inode(number), Version(1), 0o100644, dicom=examined.facts)
        writer = self._open()
        self._recipes[whole] = (writer.id, writer.append_content(Recipe(whole, len(data), refs), hints))
        if writer.size_bytes >= PACK_BYTES:
            self.close()

    def _piece(self, raw: memoryview, kind: PieceKind, raster: Raster | None) -> PieceRef:
        digest = Sha256(hashlib.sha256(raw).digest())
        if len(raw) >= PIECE_LOOKUP_BYTES_MIN and digest in self._pieces:
            return self._pieces[digest]
        leaning = self._bases.lean(raw) if kind is PieceKind.DICOM_HEADER else None
        encoded = leaning or self._encoder.encode(raw, kind, raster)
        ref = self._open().append_piece(encoded.data, raw_bytes=len(raw), codec=encoded.codec, kind=kind, sha256=digest)
        self._bases.add(ref, raw)
        self._pieces[digest] = ref
        self.codecs[encoded.codec.name] = self.codecs.get(encoded.codec.name, 0) + 1
        return ref

    def _open(self) -> PackWriter:
        if self._writer is None:
            header = PackHeader(new_pack_id(), bytes(16), RepositoryId(1), 0, Instant(0))
            path = os.path.join(self._folder, header.pack.hex())
            self._writer = PackWriter(path, header, repository_name="bench")
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._bases = None, Bases()

    def stored_bytes(self) -> int:
        return size_of(self._folder)

    def read_back(self) -> int:
        """Every content from its packs, each piece and each whole compared with its hash; how many bytes."""
        readers: dict[PackId, PackReader] = {}

        def reader(identity: PackId) -> PackReader:
            if identity not in readers:
                with open(os.path.join(self._folder, identity.hex()), "rb") as file:
                    data = file.read()
                readers[identity] = PackReader(lambda span: data[span.offset : span.stop], len(data), identity)
            return readers[identity]

        read = 0
        for identity, span in self._recipes.values():
            recipe = reader(identity).recipe(span)
            read += sum(map(len, packfile.rebuild(recipe, lambda ref: reader(ref.pack).piece(ref))))
        return read


def an_encoder(budget: float) -> Encoder:
    return Encoder(
        level=codecs.LEVEL,
        seconds_per_gigabyte_max=budget,
        attempts=NoAttempts(),
        processor_seconds=time.thread_time,
    )


def a_series(data: bytes, images: int) -> list[bytes]:
    """An object and others like it: its rows begin elsewhere in each, so that no piece is stored already."""
    (cut,) = (cut for cut in examine(data).cuts if cut.raster is not None)
    start, stop, step = cut.offset, cut.offset + cut.length_bytes, 7 * cut.raster.row_bytes
    return [
        data[:start] + data[start + number * step : stop] + data[start : start + number * step] + data[stop:]
        for number in range(images)
    ]


def pipeline(rounds: int) -> dict[str, dict[str, dict[str, object]]]:
    """Whole files in, packs out, and back, for each budget."""
    singles = {"MR": "MR2_UNCR.dcm", "CR": "RG1_UNCR.dcm", "US, RGB": "US1_UNCR.dcm"}
    studies_ = {
        "CT, 108 slices": sets()["CT, 108 slices"],
        "CT, synthetic, 64 slices of 512²": [item.data for item in studies.synthetic_ct_study(slices=64)],
        **{f"{what}, 8 images": a_series(studies.real_dicom_file(name), 8) for what, name in singles.items()},
    }
    table: dict[str, dict[str, dict[str, object]]] = {}
    for what, files in studies_.items():
        size = sum(map(len, files))
        say(f"\n{what}: {size / MEGABYTE:.1f} MB of files, pipeline", "ratio   in   out MB/s")
        table[what] = {}
        for budget in BUDGETS:
            into, back, ratio, used = [], [], 0.0, {}
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    stored = Stored(folder, an_encoder(budget))
                    began = time.process_time()
                    for data in files:
                        stored.add(data)
                    stored.close()
                    into.append(time.process_time() - began)
                    began = time.process_time()
                    assert stored.read_back() == size
                    back.append(time.process_time() - began)
                    ratio, used = size / stored.stored_bytes(), stored.codecs
            found: dict[str, Any] = {
                "ratio": ratio,
                "in_mb_s": size / min(into) / MEGABYTE,
                "out_mb_s": size / min(back) / MEGABYTE,
                "codecs": used,
            }
            table[what][f"{budget:g} s/GB"] = found
            say(f"  budget {budget:g} s/GB {used}", "{ratio:5.2f} {in_mb_s:5.0f} {out_mb_s:5.0f}".format(**found))
    return table


# -- beside others ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Taken:
    """What storing one more study took."""

    stored_bytes: int
    seconds: float
    processor_seconds: float


def size_of(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def spend(work: Callable[[], object], repository: str) -> Taken:
    before, began, used = size_of(repository), time.perf_counter(), _used()
    work()
    return Taken(size_of(repository) - before, time.perf_counter() - began, _used() - used)


def _used() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _run(*words: str, **environment: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def _ours(source: str, stored: Stored) -> None:
    for name in sorted(os.listdir(source)):
        with open(os.path.join(source, name), "rb") as file:
            stored.add(file.read())
    stored.close()


def _zstd(source: str, repository: str) -> None:
    press, folder = zstandard.ZstdCompressor(level=3), _made(repository, os.path.basename(source))
    for name in sorted(os.listdir(source)):
        with open(os.path.join(source, name), "rb") as file, open(os.path.join(folder, name), "wb") as out:
            out.write(press.compress(file.read()))


def beside(work: str) -> dict[str, dict[str, object]]:
    """Store a study set, then the same with corrected headers, by each."""
    first = [*(item.data for item in studies.real_ct_study())]
    first += [data for what, files in sets().items() if what != "CT, 108 slices" for data in files]
    again = [studies.with_corrected_header(data) for data in first]
    size = sum(map(len, first))
    sources = [os.path.join(work, name) for name in ("first", "again")]
    for source, files in zip(sources, (first, again), strict=True):
        os.mkdir(source)
        for number, data in enumerate(files):
            with open(os.path.join(source, f"IM{number:05d}.dcm"), "wb") as file:
                file.write(data)
    table: dict[str, dict[str, Any]] = {}
    secret = {"RESTIC_PASSWORD": "bench", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_BASE_DIR": work}
    for budget in BUDGETS:
        folder = _made(work, f"ours-{budget:g}")
        stored = Stored(folder, an_encoder(budget))
        table[f"vnafs, {budget:g} s/GB"] = _row(
            size, [spend(lambda s=source, k=stored: _ours(s, k), folder) for source in sources]
        )
    folder = _made(work, "zstd")
    table["zstd -3 of each file"] = _row(
        size, [spend(lambda s=source, f=folder: _zstd(s, f), folder) for source in sources]
    )
    for effort in ("auto", "max"):
        if shutil.which("restic") is None:
            say("restic", "is not installed")
            break
        folder = _made(work, f"restic-{effort}")
        _run("restic", "-q", "-r", folder, "init", "--repository-version", "2", **secret)
        words = ("restic", "-q", "--no-cache", "-r", folder, "--compression", effort, "backup")
        table[f"restic, {effort}"] = _row(
            size, [spend(lambda w=words, s=source: _run(*w, s, **secret), folder) for source in sources]
        )
    for method in ("lz4", "zstd,3"):
        if shutil.which("borg") is None:
            say("borg", "is not installed")
            break
        folder = _made(work, f"borg-{method}")
        _run("borg", "init", "--encryption", "none", folder, **secret)
        table[f"borg, {method}"] = _row(
            size,
            [
                spend(
                    lambda f=folder, m=method, s=source: _run(
                        "borg", "create", "--compression", m, f"{f}::{os.path.basename(s)}", s, **secret
                    ),
                    folder,
                )
                for source in sources
            ],
        )
    say(
        f"\nA study set of {size / MEGABYTE:.1f} MB and its re-export",
        "ratio  MB/s a core   again: % of stored  % of raw",
    )
    for name, row in table.items():
        say(
            f"  {name}",
            "{ratio:5.2f} {mb_s_of_processor:8.0f} {again_of_stored:22.2%} {again_of_raw:9.2%}".format(**row),
        )
    return table


def _made(work: str, name: str) -> str:
    path = os.path.join(work, name)
    os.mkdir(path)
    return path


def _row(size: int, taken: list[Taken]) -> dict[str, object]:
    first, again = taken
    return {
        "ratio": size / first.stored_bytes,
        "mb_s_of_processor": size / first.processor_seconds / MEGABYTE,
        "again_of_stored": again.stored_bytes / first.stored_bytes,
        "again_of_raw": again.stored_bytes / size,
        "first": dataclasses.asdict(first),
        "again": dataclasses.asdict(again),
    }


def say(what: str, figure: str) -> None:
    sys.stdout.write(f"{what:<66} {figure}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    result: Mapping[str, object] = {"candidates": compare(rounds), "pipeline": pipeline(rounds)}
    with tempfile.TemporaryDirectory() as work:
        result = {**result, "beside": beside(work)}
    say("kept in", str(report.keep("codecs", result)))


if __name__ == "__main__":
    main()
