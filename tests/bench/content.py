"""What content costs and saves: run `python -m tests.bench.content` in the root of a checkout.

One thread, everything in memory, medians of several runs. Figures of one run may be compared with each other;
between runs on a shared machine they wander by a third.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import zstandard

from tests import studies
from vnafs.content import codecs, elements
from vnafs.content.digest import sha256
from vnafs.content.packfile import FileHints, PackHeader, PackReader, PackWriter
from vnafs.content.source import MemorySource
from vnafs.content.splitters import examine, split
from vnafs.content.splitters.choose import _WANTED
from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version, new_pack_id
from vnafs.domain.recipes import PIECE_LOOKUP_BYTES_MIN, Codec, PieceKind, Recipe

RUNS = 5


def say(what: str, figure: str) -> None:
    sys.stdout.write(f"{what:<66} {figure}\n")


def seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """The median of several runs."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@dataclasses.dataclass
class Stored:
    """What a repository would hold: pieces of 4 KiB and more are looked up, smaller ones stored again."""

    level: int = codecs.LEVEL
    verify: bool = True
    stored_bytes: int = 0
    known: set[bytes] = dataclasses.field(default_factory=set)
    contents: set[bytes] = dataclasses.field(default_factory=set)

    def take(self, data: bytes) -> None:
        whole = hashlib.sha256(data).digest()
        if whole in self.contents:
            return
        self.contents.add(whole)
        view = memoryview(data)
        for cut in split(data):
            raw = view[cut.offset : cut.offset + cut.length_bytes]
            digest = sha256(raw)
            if cut.length_bytes >= PIECE_LOOKUP_BYTES_MIN:
                if digest in self.known:
                    continue
                self.known.add(digest)
            self.stored_bytes += len(codecs.encode(raw, cut.kind, level=self.level, verify=self.verify).data)


def looking(study: list[bytes], what: str) -> None:
    size = sum(map(len, study))
    sources = [MemorySource(data) for data in study]
    walk = seconds(lambda: [elements.walk(source, _WANTED) for source in sources])
    whole = seconds(lambda: [examine(data) for data in study])
    say(f"{what}: walk, µs a file", f"{walk / len(study) * 1e6:.0f}")
    say(f"{what}: walk + facts + cuts (examine), µs a file", f"{whole / len(study) * 1e6:.0f}")
    hashing = seconds(lambda: [hashlib.sha256(data).digest() for data in study])
    say(f"{what}: SHA-256, MB/s", f"{size / hashing / 1e6:.0f}")


def storing(study: list[bytes], what: str) -> None:
    size = sum(map(len, study))
    for level in (1, 3):
        for verify in (True, False):
            kept: list[Stored] = []

            def work(level: int = level, verify: bool = verify, kept: list[Stored] = kept) -> None:
                kept.append(Stored(level, verify))
                for data in study:
                    kept[-1].take(data)

            taken = seconds(work, 3)
            name = f"{what}: split+hash+encode, level {level}, {'verified' if verify else 'unverified'}"
            say(
                name,
                f"{size / taken / 1e6:.0f} MB/s, {len(study) / taken:.0f} files/s, 1:{size / kept[0].stored_bytes:.2f}",
            )


def pixels(study: list[bytes], what: str) -> None:
    """What each way of storing native pixels would give."""
    raw = [
        data[cut.offset : cut.offset + cut.length_bytes]
        for data in study
        for cut in split(data)
        if cut.kind is PieceKind.PIXELS
    ]
    size = sum(map(len, raw))
    for level in (1, 3):
        press = zstandard.ZstdCompressor(level=level).compress
        for codec, before in ((Codec.ZSTD, bytes), (Codec.SHUFFLED_ZSTD, codecs.shuffled)):
            stored = [press(before(piece)) for piece in raw]
            taken = seconds(lambda before=before, press=press: [press(before(piece)) for piece in raw], 3)
            back = seconds(
                lambda codec=codec, stored=stored: [
                    codecs.decode(data, codec, len(piece)) for data, piece in zip(stored, raw, strict=True)
                ],
                3,
            )
            figure = f"1:{size / sum(map(len, stored)):.2f}, {size / taken / 1e6:.0f} in, {size / back / 1e6:.0f} out"
            say(f"{what}: pixels by {codec.name} level {level}, ratio and MB/s", figure)


_CHANGES = (bytes, studies.with_corrected_header, studies.with_other_file_meta, studies.as_implicit)


def again(study: list[bytes], what: str, changes: Iterable[Callable[[bytes], bytes]] = _CHANGES) -> None:
    """What sending a study again adds, in percent of what its first sending stored and of its size."""
    size = sum(map(len, study))
    for change in changes:
        stored = Stored()
        for data in study:
            stored.take(data)
        first = stored.stored_bytes
        for data in study:
            stored.take(change(data))
        added = stored.stored_bytes - first
        name = "identical" if change is bytes else change.__name__
        say(f"{what}: sent again, {name}", f"+{added / first:.3%} of stored, +{added / size:.3%} of its bytes")


def packing(study: Iterable[bytes], folder: str) -> None:
    """A pack as the pipeline fills it, without the encoding."""
    prepared = []
    for data in study:
        found = examine(data)
        raws = [data[cut.offset : cut.offset + cut.length_bytes] for cut in found.cuts]
        pieces = [(codecs.encode(raw, cut.kind), raw, cut.kind) for raw, cut in zip(raws, found.cuts, strict=True)]
        digests = [sha256(raw) for raw in raws]
        prepared.append((data, found.facts, pieces, digests))
    header = PackHeader(new_pack_id(), bytes(16), RepositoryId(1), 0, Instant(0))
    path = os.path.join(folder, "bench.pack")
    began = time.perf_counter()
    writer = PackWriter(path, header, repository_name="bench")
    for number, (data, facts, pieces, digests) in enumerate(prepared):
        refs = tuple(
            writer.append_piece(one.data, raw_bytes=len(raw), codec=one.codec, kind=kind, sha256=digest)
            for (one, raw, kind), digest in zip(pieces, digests, strict=True)
        )
        hints = FileHints(b"study/IM%05d.dcm" % number, Inode(number), Version(1), dicom=facts)
        writer.append_content(Recipe(Sha256(hashlib.sha256(data).digest()), len(data), refs), hints)
    closed = writer.close()
    taken = time.perf_counter() - began
    with open(path, "rb") as file:

        def fetch(span: object) -> bytes:
            return os.pread(file.fileno(), span.length, span.offset)  # type: ignore[attr-defined]  # a Span

        reader = PackReader(fetch, closed.size_bytes, closed.id)
        listing = seconds(reader.catalogue)
        overhead = closed.size_bytes - sum(ref.stored_bytes for ref in reader.catalogue().pieces)
    os.unlink(path)
    say("pack: append and close (synced), MB/s of stored bytes", f"{closed.size_bytes / taken / 1e6:.0f}")
    say("pack: everything but pieces, bytes a file", f"{overhead / len(prepared):.0f} of {len(prepared)} files")
    say("pack: list, ms", f"{listing * 1e3:.1f}")


def main() -> None:
    real = [item.data for item in studies.real_ct_study()]
    synthetic = [item.data for item in studies.synthetic_ct_study(slices=64)]
    for study, what in ((real, "real CT 256²"), (synthetic, "synthetic CT 512²")):
        looking(study, what)
        storing(study, what)
        pixels(study, what)
        again(study, what)
    frames = [studies.real_dicom_file("color3d_jpeg_baseline.dcm"), studies.real_dicom_file("eCT_Supplemental.dcm")]
    again(frames, "real multi-frame (JPEG, native)", _CHANGES[:3])
    slide = b"".join(item.data for item in studies.other_files()) * 8
    say("content-defined chunks, MB/s", f"{len(slide) / seconds(lambda: split(slide)) / 1e6:.0f}")
    packing(synthetic, os.environ.get("TMPDIR", "/tmp"))


if __name__ == "__main__":
    main()
