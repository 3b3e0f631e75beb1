"""Studies whose pixels are stored as images, through the whole pipeline and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import studies
from tests.model.pipelineworld import World
from tests.model.test_pipeline_days import A, B, until_replicated
from vnafs.content.packfile import PackReader
from vnafs.domain.errors import Damaged
from vnafs.domain.ids import ObjectName, PackId, Span
from vnafs.domain.recipes import Codec

IMAGES = {Codec.HTJ2K, Codec.JPEG_XL}


@pytest.fixture
def world(home: Path) -> World:
    return World(home, encode_seconds_per_gigabyte_max=1000.0, target_names=("a", "b"))


def a_study() -> dict[bytes, bytes]:
    return {
        b"ct": studies.real_dicom_file("693_UNCR.dcm"),
        b"us": studies.real_dicom_file("examples_rgb_color.dcm"),
        b"planes": studies.a_native_colour_image(planes=True),
        b"odd": studies.a_native_colour_image(rows=101, columns=103),
        b"frames": studies.real_dicom_file("eCT_Supplemental.dcm"),
        b"big-endian": studies.real_dicom_file("MR_small_bigendian.dcm"),
        b"encapsulated": studies.real_dicom_file("RG1_J2KR.dcm"),
        b"report.pdf": studies.a_pdf(),
    }


def pieces_on(world: World) -> list[tuple[ObjectName, int, Codec]]:
    """Object, offset and codec of every piece on target A."""
    found = []
    for name in world.stores[A].list("packs/"):
        data = b"".join(world.stores[A].get(name))

        def fetch(span: Span, data: bytes = data) -> bytes:
            return data[span.offset : span.stop]

        reader = PackReader(fetch, len(data), PackId(data[16:32]))
        found += [(name, piece.offset, piece.codec) for piece in reader.catalogue().pieces]
    return found


def test_studies_stored_as_images_come_back_bit_for_bit(world: World) -> None:
    study = a_study()
    for name, data in study.items():
        world.write(name, data)
    for name in study:
        until_replicated(world, name, 60)
    assert {codec for _, _, codec in pieces_on(world)} >= {Codec.NONE, Codec.ZSTD, Codec.JPEG_XL}
    for name, data in study.items():
        assert world.evict(name)
        assert world.read(name) == data, name


def test_an_image_that_rotted_on_one_target_comes_from_the_other(world: World) -> None:
    data = studies.real_dicom_file("693_UNCR.dcm")
    world.write(b"ct", data)
    until_replicated(world, b"ct", 60)
    world.settle()
    ((name, offset, _),) = (piece for piece in pieces_on(world) if piece[2] in IMAGES)
    for at in (offset, offset + 9, offset + 60, offset + 20_000):
        world.rot(A, name, at)
    assert world.stored(A) != world.stored(B)
    assert world.evict(b"ct")
    assert world.read(b"ct") == data


@pytest.mark.parametrize("place", [0, 9, 60, 20_000])
def test_an_image_that_rotted_everywhere_is_an_error_and_never_another_picture(world: World, place: int) -> None:
    world.write(b"ct", studies.real_dicom_file("693_UNCR.dcm"))
    until_replicated(world, b"ct", 60)
    world.settle()
    ((name, offset, _),) = (piece for piece in pieces_on(world) if piece[2] in IMAGES)
    for target in (A, B):
        world.rot(target, name, offset + place)
    assert world.evict(b"ct")
    with pytest.raises(Damaged):
        world.read(b"ct")


def test_a_corrected_header_stores_no_image_again(world: World) -> None:
    data = studies.real_dicom_file("693_UNCR.dcm")
    world.write(b"ct", data)
    until_replicated(world, b"ct", 60)
    images = [piece for piece in pieces_on(world) if piece[2] in IMAGES]
    world.write(b"corrected", studies.with_corrected_header(data))
    until_replicated(world, b"corrected", 60)
    assert [piece for piece in pieces_on(world) if piece[2] in IMAGES] == images
