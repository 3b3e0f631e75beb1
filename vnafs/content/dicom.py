"""Facts of a DICOM object: the attributes that queries ask for, as text.

Takes the raw values one walk collected (`vnafs.content.elements`) and decodes them (PS3.5 6.2) with pydicom's
tables of character sets. It refuses to know pixels and pieces. A value that is not what its attribute must be
is left out and named; nothing raises, because facts are hints for finding things, never what decides about
them. Pure; any thread.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping
from typing import Literal

from pydicom import charset
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from vnafs.content.elements import Walked
from vnafs.content.facts import Facts

SPECIFIC_CHARACTER_SET = 0x00080005


class _Vr(enum.Enum):
    """How a value is decoded and what it must look like (PS3.5 Table 6.2-1)."""

    UI = "identifier"
    CODE = "text without character set"
    TEXT = "text"
    PN = "person name"
    US = "number"


_ATTRIBUTES: Mapping[int, tuple[str, _Vr]] = {
    0x00080008: ("ImageType", _Vr.CODE),
    0x00080016: ("SOPClassUID", _Vr.UI),
    0x00080018: ("SOPInstanceUID", _Vr.UI),
    0x00080020: ("StudyDate", _Vr.CODE),
    0x00080021: ("SeriesDate", _Vr.CODE),
    0x00080022: ("AcquisitionDate", _Vr.CODE),
    0x00080023: ("ContentDate", _Vr.CODE),
    0x00080030: ("StudyTime", _Vr.CODE),
    0x00080031: ("SeriesTime", _Vr.CODE),
    0x00080032: ("AcquisitionTime", _Vr.CODE),
    0x00080033: ("ContentTime", _Vr.CODE),
    0x00080050: ("AccessionNumber", _Vr.TEXT),
    0x00080060: ("Modality", _Vr.CODE),
    0x00080070: ("Manufacturer", _Vr.TEXT),
    0x00080080: ("InstitutionName", _Vr.TEXT),
    0x00080090: ("ReferringPhysicianName", _Vr.PN),
    0x00081010: ("StationName", _Vr.TEXT),
    0x00081030: ("StudyDescription", _Vr.TEXT),
    0x0008103E: ("SeriesDescription", _Vr.TEXT),
    0x00081040: ("InstitutionalDepartmentName", _Vr.TEXT),
    0x00081090: ("ManufacturerModelName", _Vr.TEXT),
    0x00100010: ("PatientName", _Vr.PN),
    0x00100020: ("PatientID", _Vr.TEXT),
    0x00100021: ("IssuerOfPatientID", _Vr.TEXT),
    0x00100030: ("PatientBirthDate", _Vr.CODE),
    0x00100040: ("PatientSex", _Vr.CODE),
    0x00180015: ("BodyPartExamined", _Vr.CODE),
    0x00181030: ("ProtocolName", _Vr.TEXT),
    0x0020000D: ("StudyInstanceUID", _Vr.UI),
    0x0020000E: ("SeriesInstanceUID", _Vr.UI),
    0x00200010: ("StudyID", _Vr.TEXT),
    0x00200011: ("SeriesNumber", _Vr.CODE),
    0x00200012: ("AcquisitionNumber", _Vr.CODE),
    0x00200013: ("InstanceNumber", _Vr.CODE),
    0x00200052: ("FrameOfReferenceUID", _Vr.UI),
    0x00280002: ("SamplesPerPixel", _Vr.US),
    0x00280004: ("PhotometricInterpretation", _Vr.CODE),
    0x00280008: ("NumberOfFrames", _Vr.CODE),
    0x00280010: ("Rows", _Vr.US),
    0x00280011: ("Columns", _Vr.US),
    0x00280100: ("BitsAllocated", _Vr.US),
    0x00280101: ("BitsStored", _Vr.US),
}
NEEDED = frozenset(_ATTRIBUTES) | {SPECIFIC_CHARACTER_SET}
"""Tags the walk must collect for facts."""

_UID = re.compile(r"[0-9.\\]+")
_ESCAPE = b"\x1b"


def facts_of(walked: Walked) -> tuple[Facts, str]:
    """The attributes that could be decoded, and which could not (keywords only, never values; empty when none)."""
    values = walked.values
    declared = values.get(SPECIFIC_CHARACTER_SET, b"")
    encodings, complaint = _encodings(declared)
    wrong = [complaint] if complaint else []
    attributes: dict[str, str] = {}
    if _UID.fullmatch(walked.transfer_syntax):
        attributes["TransferSyntaxUID"] = walked.transfer_syntax
    order: Literal["little", "big"] = "little" if walked.little else "big"
    for tag, value in values.items():
        known = _ATTRIBUTES.get(tag)
        if known is None:
            continue
        keyword, vr = known
        if vr is _Vr.US:
            if len(value) == 2:
                attributes[keyword] = str(int.from_bytes(value, order))
            elif value:
                wrong.append(keyword)
            continue
        raw = value.rstrip(b"\0 ")
        if not raw:
            continue
        if raw.isascii() and _ESCAPE not in raw:
            text = raw.decode("ascii")
        elif vr is _Vr.TEXT or vr is _Vr.PN:
            text = _decoded(raw, encodings, _PN if vr is _Vr.PN else _TEXT)
        else:
            wrong.append(keyword)
            continue
        if vr is _Vr.UI and not _UID.fullmatch(text):
            wrong.append(keyword)
            continue
        attributes[keyword] = text.strip()
    return Facts(attributes), f"unusable: {', '.join(wrong)}" if wrong else ""


_TEXT = frozenset(TEXT_VR_DELIMS)
_PN = frozenset(PN_DELIMS | {ord("=")})
"""What resets code extensions inside a value (PS3.5 6.1.2.5.3)."""


def _decoded(raw: bytes, encodings: tuple[str, ...], delimiters: frozenset[int]) -> str:
    """Text in its character sets (PS3.5 6.1.2); what cannot be read becomes U+FFFD."""
    if _ESCAPE in raw:
        try:
            return charset.decode_bytes(raw, encodings, set(delimiters))
        except (UnicodeError, LookupError, Warning):
            # A caller may have turned pydicom's warnings into errors; a hint is not worth one.
            return raw.decode(encodings[0], "replace")
    return raw.decode(encodings[0], "replace")


@functools.lru_cache(maxsize=64)
def _encodings(declared: bytes) -> tuple[tuple[str, ...], str]:
    """Python's names for Specific Character Set (PS3.3 C.12.1.1.2), and a complaint when some are unknown.

    Looks names up in pydicom's table instead of asking it to convert: its warnings would quote the value.
    """
    names = [_spelt(name) for name in declared.rstrip(b"\0 ").decode("ascii", "replace").split("\\")]
    if names[0] in charset.STAND_ALONE_ENCODINGS:
        names = names[:1]
    else:
        names = names[:1] + [name for name in names[1:] if name not in charset.STAND_ALONE_ENCODINGS]
    known = tuple(charset.python_encoding[name] for name in names if name in charset.python_encoding)
    complaint = "" if len(known) == len(names) else "SpecificCharacterSet"
    return known or (charset.default_encoding,), complaint


def _spelt(name: str) -> str:
    """The defined term behind the usual misspellings: `ISO-IR 100`, `ISO IR 100`, `ISO_2022_IR_100`."""
    parts = name.strip().replace("-", " ").replace("_", " ").split()
    if parts[:2] == ["ISO", "IR"] and len(parts) == 3:
        return f"ISO_IR {parts[2]}"
    if parts[:3] == ["ISO", "2022", "IR"] and len(parts) == 4:
        return f"ISO 2022 IR {parts[3]}"
    return name.strip()
