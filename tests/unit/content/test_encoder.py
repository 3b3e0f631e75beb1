"""Which codec a piece gets, what it may cost, and that nothing a codec does loses a piece."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests import studies
from vnafs.content import codecs, encoder, rasters
from vnafs.content.encoder import KINDS_MAX, RETRY_PIECES, RETRY_SOON_PIECES, TRIAL_BYTES, Encoder, NoAttempts
from vnafs.content.splitters import split
from vnafs.domain import errors
from vnafs.domain.recipes import Codec, PieceKind, Raster

CT = Raster(rows=512, columns=512, samples=1, sample_bytes=2, signed=True, planes=False, bits_stored=16)
ONE = studies.ct_pixels(1, 1)


class Meter:
    """Processor time that passes by *seconds* whenever it is looked at, and how often that was."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * self.seconds


def an_encoder(budget: float = 20.0, meter: Meter | None = None, attempts: encoder.Attempts | None = None) -> Encoder:
    return Encoder(
        level=1,
        seconds_per_gigabyte_max=budget,
        attempts=attempts or NoAttempts(),
        processor_seconds=meter or Meter(),
    )


def pixels_of(name: str) -> tuple[bytes, Raster]:
    data = studies.real_dicom_file(name)
    cut = next(cut for cut in split(data) if cut.raster is not None)
    assert cut.raster
    return data[cut.offset : cut.offset + cut.length_bytes], cut.raster


@pytest.mark.parametrize(
    ("name", "codec", "ratio"),
    [
        ("693_UNCR.dcm", Codec.HTJ2K, 4.5),
        ("MR2_UNCR.dcm", Codec.HTJ2K, 3.2),
        ("US1_UNCR.dcm", Codec.JPEG_XL, 8.0),
        ("RG3_UNCR.dcm", Codec.HTJ2K, 6.5),
        ("gdcm-US-ALOKA-16.dcm", Codec.ZSTD, 4.0),
        ("color-pl.dcm", Codec.ZSTD, 4.0),
    ],
)
def test_the_smallest_wins_and_that_differs_by_object(name, codec, ratio):
    raw, raster = pixels_of(name)
    encoded = an_encoder().encode(raw, PieceKind.PIXELS, raster)
    assert len(raw) / len(encoded.data) > ratio
    assert encoded.codec is codec or (codec is Codec.ZSTD and encoded.codec is Codec.SHUFFLED_ZSTD)
    assert codecs.decode(encoded.data, encoded.codec, len(raw)) == raw


def test_a_larger_budget_gives_smaller_pieces_and_none_gives_no_images():
    raw, raster = pixels_of("693_UNCR.dcm")
    sizes = [len(an_encoder(budget).encode(raw, PieceKind.PIXELS, raster).data) for budget in (0, 20, 40, 100)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert an_encoder(0).encode(raw, PieceKind.PIXELS, raster) == codecs.encode(raw, PieceKind.PIXELS)


def test_pieces_whose_samples_nobody_tells_are_bytes():
    assert an_encoder().encode(ONE, PieceKind.PIXELS, None) == codecs.encode(ONE, PieceKind.PIXELS)


def test_what_is_too_small_to_be_worth_it_is_bytes():
    tiny = Raster(rows=30, columns=30, samples=1, sample_bytes=2, signed=False, planes=False, bits_stored=12)
    raw = ONE[: 30 * 30 * 2]
    assert an_encoder().encode(raw, PieceKind.PIXELS, tiny).codec not in codecs.IMAGES


def test_encapsulated_frames_stay_as_they_are():
    data = studies.real_dicom_file("RG1_J2KR.dcm")
    (frames,) = (cut for cut in split(data) if cut.kind is PieceKind.ENCAPSULATED)
    raw = data[frames.offset : frames.offset + frames.length_bytes]
    assert frames.raster is None
    assert an_encoder().encode(raw, frames.kind, frames.raster).codec is Codec.NONE


def test_noise_is_stored_as_it_is():
    raw = os.urandom(512 * 512 * 2)
    assert an_encoder().encode(raw, PieceKind.PIXELS, CT).codec is Codec.NONE


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is encoded as an image from now on."""
    lengths: list[int] = []
    encode_image = rasters.encode_image

    def noted(raw: bytes, raster: Raster, codec: Codec, effort: int) -> bytes:
        lengths.append(len(raw))
        return encode_image(raw, raster, codec, effort)

    monkeypatch.setattr(rasters, "encode_image", noted)
    return lengths


def test_what_won_is_remembered_and_everything_is_tried_again_now_and_then(monkeypatch):
    lengths, made, counts = watched(monkeypatch), an_encoder(), []
    for number in range(2 * RETRY_PIECES):
        lengths.clear()
        made.encode(studies.ct_pixels(1, number), PieceKind.PIXELS, CT)
        counts.append(len(lengths))
    # two ways on some rows, and the better of them on all
    assert [number for number, count in enumerate(counts) if count == 3] == [0, RETRY_PIECES]
    assert counts.count(1) == 2 * RETRY_PIECES - 2


def test_ways_are_tried_on_some_rows_of_a_large_piece(monkeypatch):
    lengths = watched(monkeypatch)
    raw, raster = pixels_of("RG1_UNCR.dcm")
    an_encoder().encode(raw, PieceKind.PIXELS, raster)
    assert lengths.count(len(raw)) == 1
    assert sum(lengths) - len(raw) <= 2 * TRIAL_BYTES


def test_a_crop_is_no_other_kind_of_picture(monkeypatch):
    raw, raster = pixels_of("RG3_UNCR.dcm")
    made = an_encoder()
    made.encode(raw, PieceKind.PIXELS, raster)
    lengths = watched(monkeypatch)
    cropped = np.frombuffer(raw, "<u2").reshape(raster.rows, raster.columns)[:-100, :-60].tobytes()
    of_crop = dataclasses.replace(raster, rows=raster.rows - 100, columns=raster.columns - 60)
    assert made.encode(cropped, PieceKind.PIXELS, of_crop).codec in codecs.IMAGES
    assert lengths == [len(cropped)]


def test_a_piece_that_disappoints_is_tried_every_way():
    made = an_encoder()
    smooth = np.add.outer(np.arange(512), np.arange(512)).astype("<u2").tobytes()
    repeating = np.random.default_rng(1).integers(0, 60_000, 64).astype("<u2").tobytes() * 4096
    assert made.encode(smooth, PieceKind.PIXELS, CT).codec in codecs.IMAGES
    assert made.encode(repeating, PieceKind.PIXELS, CT) == codecs.encode(repeating, PieceKind.PIXELS)
    assert made.encode(smooth, PieceKind.PIXELS, CT).codec not in {Codec.NONE}


def test_a_machine_too_slow_for_images_goes_back_to_bytes_and_looks_again():
    meter = Meter(seconds=0.1)
    made = an_encoder(meter=meter)
    found = [made.encode(ONE, PieceKind.PIXELS, CT).codec for _ in range(RETRY_PIECES)]
    assert found[-10:] == [Codec.SHUFFLED_ZSTD] * 10
    meter.seconds = 0.0
    found = [made.encode(ONE, PieceKind.PIXELS, CT).codec for _ in range(8 * RETRY_PIECES)]
    assert found[-1] in codecs.IMAGES


def test_one_unlucky_measurement_changes_nothing():
    meter = Meter()
    made = an_encoder(meter=meter)
    for number in range(5):
        assert made.encode(ONE, PieceKind.PIXELS, CT).codec in codecs.IMAGES
        meter.seconds = 10.0 if number == 2 else 0.0
        meter.looks = 0


def test_memory_of_kinds_is_bounded():
    made = an_encoder()
    for bits in range(KINDS_MAX + 20):
        raster = Raster(rows=80, columns=60, samples=1, sample_bytes=1, signed=False, planes=False, bits_stored=bits)
        made.encode(bytes(80 * 60), PieceKind.PIXELS, raster)
    assert len(made._known) == KINDS_MAX


def test_an_encoder_that_fails_costs_space_and_nothing_else(monkeypatch, caplog):
    def fails(*_: object) -> bytes:
        raise rasters.ImageFailedError("no")

    monkeypatch.setattr(rasters, "encode_image", fails)
    assert an_encoder().encode(ONE, PieceKind.PIXELS, CT) == codecs.encode(ONE, PieceKind.PIXELS)
    assert "encode.failed" in caplog.messages


def test_an_encoder_that_begins_to_fail_costs_space_and_nothing_else(monkeypatch):
    made = an_encoder()
    assert made.encode(ONE, PieceKind.PIXELS, CT).codec in codecs.IMAGES

    def fails(*_: object) -> bytes:
        raise rasters.ImageFailedError("no")

    monkeypatch.setattr(rasters, "encode_image", fails)
    assert made.encode(ONE, PieceKind.PIXELS, CT) == codecs.encode(ONE, PieceKind.PIXELS)


@pytest.mark.parametrize("liar", [lambda *_: bytes(len(ONE)), lambda *_: b""])
def test_an_image_that_does_not_decode_to_the_same_is_not_trusted(liar, monkeypatch, caplog):
    monkeypatch.setattr(rasters, "decode_image", liar)
    assert an_encoder().encode(ONE, PieceKind.PIXELS, CT) == codecs.encode(ONE, PieceKind.PIXELS)
    assert "encode.not_the_same" in caplog.messages


def test_an_image_that_does_not_decode_is_not_trusted(monkeypatch):
    def damaged(*_: object) -> bytes:
        raise errors.Damaged(what="an image")

    monkeypatch.setattr(rasters, "decode_image", damaged)
    assert an_encoder().encode(ONE, PieceKind.PIXELS, CT) == codecs.encode(ONE, PieceKind.PIXELS)


def test_a_way_that_is_wrong_about_one_piece_is_soon_used_again(monkeypatch):
    made = an_encoder()
    raw, raster = pixels_of("US1_UNCR.dcm")
    decode_image = rasters.decode_image

    def wrong(stored: bytes, codec: Codec, raw_bytes: int) -> bytes:
        return bytes(raw_bytes) if codec is Codec.JPEG_XL else decode_image(stored, codec, raw_bytes)

    assert made.encode(raw, PieceKind.PIXELS, raster).codec is Codec.JPEG_XL
    with monkeypatch.context() as once:
        once.setattr(rasters, "decode_image", wrong)
        assert made.encode(raw, PieceKind.PIXELS, raster).codec is not Codec.JPEG_XL
    found = [made.encode(raw, PieceKind.PIXELS, raster).codec for _ in range(RETRY_SOON_PIECES)]
    assert found[-1] is Codec.JPEG_XL


def test_a_picture_that_the_fastest_encoder_gets_wrong_comes_back_right():
    # libjxl 0.11 makes another picture of this one at effort 1
    raw, raster = pixels_of("US1_UNCR.dcm")
    raw = raw[49 * raster.row_bytes :] + raw[: 49 * raster.row_bytes]
    encoded = an_encoder().encode(raw, PieceKind.PIXELS, raster)
    assert encoded.codec in codecs.IMAGES
    assert codecs.decode(encoded.data, encoded.codec, len(raw)) == raw


def test_without_the_library_pieces_are_bytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert an_encoder().encode(ONE, PieceKind.PIXELS, CT) == codecs.encode(ONE, PieceKind.PIXELS)


def test_the_library_is_not_loaded_before_there_is_an_image():
    script = "import sys; from vnafs.content import encoder, packfile; assert 'imagecodecs' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


DEADLY = """
import os, signal, sys
from tests import studies
from tests.unit.content.test_encoder import CT, ONE, an_encoder
from vnafs.content import rasters
from vnafs.domain.recipes import PieceKind
from vnafs.local.attempts import AttemptsFile

def kills(raw, *rest, before=rasters.encode_image):
    if raw == ONE:
        os.kill(os.getpid(), signal.SIGSEGV)
    return before(raw, *rest)

rasters.encode_image = kills
made = an_encoder(attempts=AttemptsFile(sys.argv[1]))
for raw in (studies.ct_pixels(1, 2), ONE):
    print(made.encode(raw, PieceKind.PIXELS, CT).codec.name, flush=True)
"""


def test_a_piece_that_kills_the_process_is_stored_as_bytes_by_the_next_one(tmp_path):
    words = [sys.executable, "-c", DEADLY, str(tmp_path / "attempts")]
    first = subprocess.run(words, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGSEGV
    assert first.stdout.split() == ["HTJ2K"] or first.stdout.split() == ["JPEG_XL"]
    for _ in range(2):
        after = subprocess.run(words, capture_output=True, text=True, check=True)
        assert after.stdout.split() == [first.stdout.strip(), "SHUFFLED_ZSTD"]


def test_threads_encode_side_by_side():
    made = an_encoder()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in range(6):
            raw = studies.ct_pixels(seed, number)
            encoded = made.encode(raw, PieceKind.PIXELS, CT)
            if codecs.decode(encoded.data, encoded.codec, len(raw)) != raw:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
