"""The builders that everybody's tests stand on: the same bytes each time, and what they say they are."""

from __future__ import annotations

import io
import os

import pydicom

from tests import studies
from vnafs.content.splitters import split


def test_the_same_seed_gives_the_same_bytes():
    for build in (
        lambda: [item.data for item in studies.synthetic_ct_study(seed=3, slices=3)],
        lambda: [item.data for item in studies.other_files(seed=3)],
        lambda: studies.with_corrected_header(studies.real_dicom_file("CT_small.dcm"), seed=3),
        lambda: studies.an_encapsulated_multiframe(seed=3),
        lambda: studies.a_native_multiframe(seed=3),
    ):
        assert build() == build()


def test_every_slice_is_another_object_of_one_series_and_pydicom_reads_it():
    slices = list(studies.synthetic_ct_study(seed=4, slices=12))
    read = [pydicom.dcmread(io.BytesIO(item.data)) for item in slices]
    assert {len(item.data) > 512 * 1024 for item in slices} == {True}
    assert len({data.SOPInstanceUID for data in read}) == len({data.PixelData for data in read}) == 12
    assert {data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID for data in read} == {True}
    assert len({data.SeriesInstanceUID for data in read}) == 1
    assert [int(data.InstanceNumber) % 10_000_000 for data in read] == list(range(12))
    assert len({tuple(data.ImagePositionPatient) for data in read}) == 12


def test_the_real_study_is_one_series_of_108_slices():
    study = studies.real_ct_study()
    first = pydicom.dcmread(io.BytesIO(study[0].data))
    assert len(study) == len({item.data for item in study}) == 108
    assert (first.Rows, first.Columns, len(first.PixelData)) == (256, 256, 131_072)


def test_a_large_slide_has_the_size_asked_for_no_holes_and_little_that_repeats(tmp_path):
    path = tmp_path / "slide.svs"
    studies.a_large_slide(str(path), 30_000_001)
    status = os.stat(path)
    assert status.st_size == 30_000_001
    assert status.st_blocks * 512 >= status.st_size
    data = path.read_bytes()
    pieces = {data[cut.offset : cut.offset + cut.length_bytes] for cut in split(data)}
    assert sum(map(len, pieces)) > 0.9 * len(data)
