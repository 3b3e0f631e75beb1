"""Facts are what queries ask for; a lying value is left out and named, and its object is still described."""

from __future__ import annotations

import io
import os

import pydicom
import pytest

from tests import studies
from vnafs.content.splitters import examine

NAMES = [os.path.basename(path) for path in studies.real_dicom_files()]
CHARACTER_SETS = [name for name in NAMES if name.startswith("chr") and "SQ" not in name]
IDENTITIES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PLAIN = ("Modality", "StudyDate", "PatientID", "AccessionNumber", "NumberOfFrames", "Rows", "Columns", "BitsAllocated")


def facts_of(data: bytes) -> dict[str, str]:
    found = examine(data)
    assert found.facts is not None, found.why_not
    return dict(found.facts.attributes)


def test_facts_of_real_files_are_what_pydicom_reads():
    compared = 0
    for name in NAMES:
        data = studies.real_dicom_file(name)
        found = examine(data)
        read = pydicom.dcmread(io.BytesIO(data), force=True)
        if found.facts is None:
            continue
        for keyword in IDENTITIES + PLAIN:
            expected = read.get(keyword)
            if expected in (None, "") or f"{keyword}" in found.why_not:
                continue
            assert found.facts.attributes[keyword] == str(expected).strip(), (name, keyword)
            compared += 1
    assert compared > 1000


@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_person_names_are_decoded_in_their_character_set(name):
    data = studies.real_dicom_file(name)
    expected = str(pydicom.dcmread(io.BytesIO(data)).PatientName)
    assert facts_of(data)["PatientName"].rstrip("=") == expected.rstrip("=")


def test_every_query_key_of_a_study_is_there():
    data = next(iter(studies.synthetic_ct_study(seed=5, slices=1))).data
    facts = examine(data).facts
    assert facts is not None
    assert (facts.study, facts.series) == (studies.uid(5, 0), studies.uid(5, 1))
    assert facts.instance.startswith(studies.ROOT_UID)
    wanted = {
        "PatientName": "Test^Patient00005",
        "PatientID": "PID0000005",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "AccessionNumber": "ACC00005",
        "Modality": "CT",
        "StudyDescription": "Head without contrast",
        "SeriesDescription": "Axial bone",
        "SeriesNumber": "1",
        "Rows": "512",
        "Columns": "512",
        "BitsAllocated": "16",
        "TransferSyntaxUID": "1.2.840.10008.1.2.1",
        "ReferringPhysicianName": "Referring^Physician",
        "BodyPartExamined": "HEAD",
        "InstitutionName": "General Hospital",
        "StudyID": "1",
    }
    assert {keyword: facts.attributes[keyword] for keyword in wanted} == wanted


def test_a_lying_identifier_is_left_out_and_named_without_its_value():
    data = next(iter(studies.synthetic_ct_study(seed=6, slices=1))).data
    mark = studies.uid(6, 0).encode()
    found = examine(data.replace(mark, b"Secret^Name".ljust(len(mark))))
    assert found.facts is not None
    assert found.facts.study == ""
    assert found.facts.attributes["PatientID"] == "PID0000006"
    assert found.why_not == "unusable: StudyInstanceUID"


@pytest.mark.parametrize("declared", [b"ISO_IR 999", b"hex_codec ", b"\xff\xfe\xfd\xfc", b"zlib      "])
def test_an_unknown_character_set_is_named_and_text_still_readable(declared):
    data = next(iter(studies.synthetic_ct_study(seed=6, slices=1))).data
    found = examine(data.replace(b"ISO_IR 100", declared.ljust(10)))
    assert found.facts is not None
    assert found.facts.attributes["PatientName"] == "Test^Patient00006"
    assert found.why_not == "unusable: SpecificCharacterSet"


@pytest.mark.parametrize("declared", ["ISO-IR 100", "ISO IR 100"])
def test_usual_misspellings_of_a_character_set_are_understood(declared):
    data = next(iter(studies.synthetic_ct_study(seed=6, slices=1))).data
    found = examine(
        data.replace(b"ISO_IR 100", declared.encode()).replace(b"General Hospital", b"H\xf4pital G\xe9n\xe9ral ")
    )
    assert found.facts is not None
    assert found.facts.attributes["InstitutionName"] == "Hôpital Général"
    assert found.why_not == ""


def test_a_header_that_breaks_off_has_no_facts_and_says_why():
    found = examine(studies.real_dicom_file("CT_small.dcm")[:3000])
    assert found.facts is None
    assert found.why_not == "an element reaches past the end"
