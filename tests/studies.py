"""Builders of DICOM studies and other files for everybody's tests. Deterministic: the same seed, the same bytes.

Real objects come from installed packages and are never copied into the repository; each function says which.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import os
import plistlib
import random
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    VLWholeSlideMicroscopyImageStorage,
)

ROOT_UID = "1.2.826.0.1.3680043.10.1492"
"""Beneath it all UIDs made here."""
SLICE_SIDE = 512
_CRANIUM_PACKAGE = "invesalius-examples"


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """One file of a study: a name to give it and its bytes."""

    name: str
    data: bytes


def uid(seed: int, *parts: int) -> str:
    """A UID that says where it came from and is the same each time."""
    return ".".join([ROOT_UID, str(seed), *map(str, parts)])


# -- real objects --------------------------------------------------------------------------------------------


@functools.cache
def _cranium() -> tuple[np.ndarray, tuple[float, ...]]:
    """The volume of Debian's invesalius-examples (GPL-2): 108 slices of 256 x 256, and its voxel spacing."""
    listed = subprocess.run(["dpkg", "-L", _CRANIUM_PACKAGE], capture_output=True, text=True, check=False).stdout
    archives = [line for line in listed.splitlines() if line.endswith("Cranium.inv3")]
    if not archives:
        pytest.skip(f"Debian package {_CRANIUM_PACKAGE} is not installed")
    with tarfile.open(archives[0]) as archive:
        members = {os.path.basename(member.name): member for member in archive.getmembers()}
        plist = plistlib.loads(_member(archive, members["main.plist"]))
        matrix = _member(archive, members["matrix.dat"])
    shape = tuple(plist["matrix"]["shape"])
    return np.frombuffer(matrix, "<i2").reshape(shape), tuple(plist["spacing"])


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def real_ct_study(seed: int = 1) -> list[Object]:
    """A real CT of a head, 108 slices of 128 KiB, as one series. Skips where the Debian package is missing."""
    volume, spacing = _cranium()
    return [
        Object(f"CT{number:04d}.dcm", _ct_slice(plane.tobytes(), plane.shape, seed, number, spacing[0], spacing[2]))
        for number, plane in enumerate(volume)
    ]


@functools.cache
def real_dicom_files() -> tuple[str, ...]:
    """Paths of the real DICOM files of the PyPI packages pydicom-data and pydicom: every kind, some of them broken."""
    folders = [os.path.join(os.path.dirname(_origin("pydicom")), "data", name) for name in _PYDICOM_FOLDERS]
    folders.append(os.path.join(os.path.dirname(_origin("data_store")), "data"))
    found = [
        os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(".dcm")
    ]
    assert len(found) > 130, "pydicom-data is not installed"
    return tuple(found)


_PYDICOM_FOLDERS = ("test_files", "charset_files")


def _origin(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"Python package {package} is not installed")
    return spec.origin


def real_dicom_file(name: str) -> bytes:
    """One of them by its file name, such as `CT_small.dcm`."""
    (path,) = (path for path in real_dicom_files() if os.path.basename(path) == name)
    with open(path, "rb") as file:
        return file.read()


# -- synthetic objects ---------------------------------------------------------------------------------------


@functools.cache
def _noise(seed: int) -> np.ndarray:
    """A strip of reconstructed noise, long enough that every offset into it is another slice's noise."""
    random_ = np.random.default_rng(seed)
    side = SLICE_SIDE
    frequency = np.hypot(np.fft.fftfreq(2 * side)[:, None], np.fft.rfftfreq(side)[None])
    # The noise of filtered back projection: a ramp that the reconstruction kernel rolls off.
    spectrum = np.fft.rfft2(random_.standard_normal((2 * side, side))) * frequency * np.exp(-((frequency / 0.25) ** 2))
    noise = np.fft.irfft2(spectrum, s=(2 * side, side))
    return np.rint(noise * (12 / noise.std())).astype("<i2").ravel()


@functools.cache
def _anatomy() -> np.ndarray:
    """Air, skin, bone and soft tissue in Hounsfield units."""
    y, x = np.mgrid[:SLICE_SIDE, :SLICE_SIDE] - (SLICE_SIDE - 1) / 2
    radius = np.hypot(x / 0.8, y)
    plane = np.full((SLICE_SIDE, SLICE_SIDE), -1000, "<i2")
    for limit, value in ((225, 60), (215, 900), (200, 35)):
        plane[radius < limit] = value
    plane[np.hypot(x, y) > SLICE_SIDE / 2] = -1024
    return plane.ravel()


@functools.cache
def _inside() -> np.ndarray:
    return (_anatomy() > -1024).astype("<i2")


def ct_pixels(seed: int, number: int) -> bytes:
    """512 KiB of one slice in a few tenths of a millisecond: load tests wait for the archive and not for this."""
    size = SLICE_SIDE * SLICE_SIDE
    start = (number * 7919 + seed * 104_729) % size
    plane = np.multiply(_noise(seed % 8)[start : start + size], _inside())
    plane += _anatomy()
    return plane.tobytes()


def synthetic_ct_study(seed: int = 1, slices: int = 60, private_bytes: int = 1600) -> Iterator[Object]:
    """A CT series of 512 x 512 slices with 16 bits: half a megabyte each, realistic noise, one by one."""
    template, places = _template(seed, private_bytes)
    for number in range(slices):
        header = bytearray(template)
        for offset, text in places(number):
            header[offset : offset + len(text)] = text
        yield Object(f"IM{number:05d}.dcm", b"".join((header, ct_pixels(seed, number))))


_Places = Callable[[int], list[tuple[int, bytes]]]


@functools.lru_cache(maxsize=64)
def _template(seed: int, private_bytes: int) -> tuple[bytes, _Places]:
    """A header written once, and where the values that differ from slice to slice lie in it."""
    marks = {"instance": uid(seed, 1, 10_000_000), "number": "10000000", "position": "-10000.000"}
    blank = b"\0" * (2 * SLICE_SIDE * SLICE_SIDE)
    whole = _ct_slice(blank, (SLICE_SIDE, SLICE_SIDE), seed, 0, 0.4785, 1.5, private_bytes, marks)
    header = whole[: -len(blank)]

    def at(text: str) -> list[int]:
        mark, found, start = text.encode(), [], -1
        while (start := header.find(mark, start + 1)) >= 0:
            found.append(start)
        return found

    where = {name: at(text) for name, text in marks.items() if name != "number"}
    # The instance number also ends the UID; only the element of its own holds exactly that text.
    number_at = header.find(b"\x20\x00\x13\x00IS\x08\x00") + 8

    def places(number: int) -> list[tuple[int, bytes]]:
        serial = f"{10_000_000 + number}".encode()
        changes = [(offset + len(marks["instance"]) - 8, serial) for offset in where["instance"]]
        changes.append((number_at, serial))
        changes += [(offset, f"{number * 1.5 - 10000:010.3f}".encode()) for offset in where["position"]]
        return changes

    return header, places


def _ct_slice(
    pixels: bytes,
    shape: tuple[int, ...],
    seed: int,
    number: int,
    pixel_mm: float,
    slice_mm: float,
    private_bytes: int = 1600,
    marks: dict[str, str] | None = None,
) -> bytes:
    marks = marks or {}
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = marks.get("instance") or uid(seed, 1, number + 1)
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(data, name, "20260102")
    data.StudyTime = "101112"
    data.ContentTime = "101200"
    data.AccessionNumber = f"ACC{seed:05d}"
    data.Modality = "CT"
    data.Manufacturer = "Test Medical"
    data.InstitutionName = "General Hospital"
    data.ReferringPhysicianName = "Referring^Physician"
    data.StationName = "CT01"
    data.StudyDescription = "Head without contrast"
    data.SeriesDescription = "Axial bone"
    data.ManufacturerModelName = "Test 64"
    data.PatientName = f"Test^Patient{seed:05d}"
    data.PatientID = f"PID{seed:07d}"
    data.PatientBirthDate = "19700101"
    data.PatientSex = "O"
    data.BodyPartExamined = "HEAD"
    data.SliceThickness = str(slice_mm)
    data.KVP = "120"
    data.ProtocolName = "Head"
    data.ConvolutionKernel = "H31s"
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = uid(seed, 0)
    data.SeriesInstanceUID = uid(seed, 1)
    data.StudyID = "1"
    data.SeriesNumber = 1
    data.InstanceNumber = marks.get("number") or str(number + 1)
    position = marks.get("position") or f"{number * slice_mm:.3f}"
    data.ImagePositionPatient = ["-120", "-120", position]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.FrameOfReferenceUID = uid(seed, 2)
    data.SliceLocation = position
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = shape[0], shape[1]
    data.PixelSpacing = [str(round(pixel_mm, 6))] * 2
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.WindowCenter, data.WindowWidth = 40, 400
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "HU"
    if private_bytes:
        block = data.private_block(0x0029, "VNAFS TEST HEADER", create=True)
        for element in range(private_bytes // 40):
            block.add_new(element, "LO", f"private value {element:02d} of series {seed:05d}")
    data.add_new(0x7FE00010, "OW", pixels)
    return written(data)


def written(data: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A PS3.10 file of a data set."""
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.ImplementationClassUID = ROOT_UID
    data.file_meta.ImplementationVersionName = "VNAFS_TEST"
    return _saved(data)


def _saved(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


# -- the same study again ------------------------------------------------------------------------------------


def with_corrected_header(data: bytes, seed: int = 1) -> bytes:
    """As a PACS sends it again after a correction: patient, accession number and private tags differ."""
    random_ = random.Random(f"{seed} {len(data)}")
    found = pydicom.dcmread(io.BytesIO(data), force=True)
    found.PatientName = "Corrected-Name^Given^Middle"
    found.PatientID = f"MRN{seed:08d}"
    found.PatientBirthDate = "19700102"
    found.AccessionNumber = "ACC-CORRECTED"
    block = found.private_block(0x0099, "VNAFS GATEWAY", create=True)
    block.add_new(1, "LO", "x" * random_.randrange(3, 60))
    block.add_new(2, "OB", random_.randbytes(2 * random_.randrange(10, 150)))
    return _saved(found)


def with_other_file_meta(data: bytes) -> bytes:
    """As another archive stores it: only the file meta information differs."""
    found = pydicom.dcmread(io.BytesIO(data), force=True)
    found.file_meta.ImplementationVersionName = "OTHER_PACS_1"
    found.file_meta.ImplementationClassUID = ROOT_UID + ".9"
    found.file_meta.SourceApplicationEntityTitle = "STORESCP"
    return _saved(found)


def as_implicit(data: bytes) -> bytes:
    """The same object in Implicit VR Little Endian."""
    found = pydicom.dcmread(io.BytesIO(data), force=True)
    found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return _saved(found)


# -- several frames ------------------------------------------------------------------------------------------


def a_native_multiframe(frames: int = 8, rows: int = 256, columns: int = 256, seed: int = 1) -> bytes:
    """Frames of 16 bits, one after the other, in one object."""
    data = _minimal(MultiFrameGrayscaleWordSecondaryCaptureImageStorage, rows, columns, frames, seed)
    random_ = np.random.default_rng(seed)
    planes = random_.integers(0, 200, (frames, rows, columns), dtype=np.uint16)
    data.add_new(0x7FE00010, "OW", planes.astype("<u2").tobytes())
    return written(data)


def a_native_colour_image(rows: int = 96, columns: int = 160, *, planes: bool = False, seed: int = 1) -> bytes:
    """A colour image of 8 bits: a smooth one with some noise, pixel by pixel or plane by plane."""
    data = _minimal(UltrasoundImageStorage, rows, columns, 1, seed)
    noise = np.random.default_rng(seed).integers(0, 6, (rows, columns))
    grey = np.add.outer(np.arange(rows), np.arange(columns) // 2) // 2 + noise
    pixels = np.stack([grey, grey + 3, grey // 2], axis=-1).astype(np.uint8)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", int(planes)
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.add_new(
        0x7FE00010, "OW", (np.moveaxis(pixels, -1, 0) if planes else pixels).tobytes() + b"\0" * (pixels.size % 2)
    )
    return written(data)


def an_encapsulated_multiframe(
    frames: int = 8,
    frame_bytes: int = 90_000,
    fragments_per_frame: int = 1,
    *,
    table: bool = True,
    extended: bool = False,
    seed: int = 1,
) -> bytes:
    """Frames of incompressible bytes in fragments, with a Basic or an Extended Offset Table or none."""
    random_ = random.Random(seed)
    parts = [random_.randbytes(frame_bytes + 2 * number) for number in range(frames)]
    data = _minimal(VLWholeSlideMicroscopyImageStorage, 240, 240, frames, seed)
    data.add_new(0x7FE00010, "OB", encapsulate(parts, fragments_per_frame=fragments_per_frame, has_bot=table))
    if extended:
        lengths = [len(part) for part in parts]
        offsets = [sum(length + 8 for length in lengths[:number]) for number in range(frames)]
        data.add_new(0x7FE00001, "OV", struct.pack(f"<{frames}Q", *offsets))
        data.add_new(0x7FE00002, "OV", struct.pack(f"<{frames}Q", *lengths))
    data["PixelData"].is_undefined_length = True
    return written(data, JPEG2000Lossless)


def _minimal(sop_class: str, rows: int, columns: int, frames: int, seed: int) -> Dataset:
    data = Dataset()
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = uid(seed, 3, frames)
    data.Modality = "OT"
    data.PatientName = f"Test^Patient{seed:05d}"
    data.PatientID = f"PID{seed:07d}"
    data.StudyInstanceUID = uid(seed, 0)
    data.SeriesInstanceUID = uid(seed, 3)
    data.InstanceNumber = 1
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.NumberOfFrames = frames
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    return data


# -- other files ---------------------------------------------------------------------------------------------


def other_files(seed: int = 1) -> list[Object]:
    """What else hospitals keep beside images: small, with valid beginnings, and the right kind of entropy."""
    return [
        Object("report.pdf", a_pdf(seed)),
        Object("photo.jpg", a_jpeg(seed, 300_000)),
        Object("film.mp4", an_mp4(seed, 3_000_000)),
        Object("scan.tif", a_tiff(seed, 640, 480)),
        Object("chart.png", a_png(seed, 320, 240)),
        Object("notes.txt", ("\n".join(f"line {n} of {seed}" for n in range(400))).encode()),
        Object("empty", b""),
    ]


def a_pdf(seed: int = 1, pages: int = 20) -> bytes:
    """A PDF 1.4 with text streams and a cross-reference table."""
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{3 + 2 * page} 0 R" for page in range(pages))
    bodies.append(f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>")
    for page in range(pages):
        text = "\n".join(f"BT 40 {800 - 12 * n} Td (finding {n} on page {page} of {seed}) Tj ET" for n in range(60))
        bodies.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {4 + 2 * page} 0 R >>")
        bodies.append(f"<< /Length {len(text)} >>\nstream\n{text}\nendstream")
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    xref = len(out)
    out += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    out += f"trailer\n<< /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{xref}\n%%EOF\n".encode()
    return bytes(out)


def a_jpeg(seed: int = 1, size_bytes: int = 300_000) -> bytes:
    """JFIF head and end around bytes as dense as a photo's scan data (no 0xFF among them)."""
    head = (
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x48\x00\x48\x00\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    )
    scan = random.Random(seed).randbytes(max(size_bytes - len(head) - 2, 0)).replace(b"\xff", b"\xfe")
    return head + scan + b"\xff\xd9"


def an_mp4(seed: int = 1, size_bytes: int = 3_000_000) -> bytes:
    """ftyp, mdat and a small moov box (ISO 14496-12)."""
    head = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"isom", 512, b"isom", b"mp42")
    media = random.Random(seed).randbytes(size_bytes)
    index = b"".join(struct.pack(">I", n * 4096) for n in range(500))
    return (
        head
        + struct.pack(">I4s", len(media) + 8, b"mdat")
        + media
        + struct.pack(">I4s", len(index) + 8, b"moov")
        + index
    )


def a_tiff(seed: int = 1, width: int = 640, height: int = 480) -> bytes:
    """Baseline greyscale TIFF 6.0, one uncompressed strip."""
    pixels = _gradient(seed, width, height)
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
        (279, 4, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    pixels += b"\0" * (len(pixels) % 2)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory


def a_png(seed: int = 1, width: int = 320, height: int = 240) -> bytes:
    """An 8-bit greyscale PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = _gradient(seed, width, height)
    rows = b"".join(b"\0" + pixels[at : at + width] for at in range(0, len(pixels), width))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _gradient(seed: int, width: int, height: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 8, (height, width))
    return ((np.add.outer(np.arange(height), np.arange(width)) + noise) % 256).astype(np.uint8).tobytes()


def a_large_slide(path: str, size_bytes: int, seed: int = 1) -> None:
    """Write a file like a whole-slide image: tiles that are dense in tissue and repeat in glass; no holes.

    As fast as the disk, because tissue is cut from one pool of random bytes at ever other places: content-defined
    chunks of different tissue still differ. A head and a tail with tables of tile offsets frame it.
    """
    random_ = random.Random(seed)
    pool = random_.randbytes(8 * 1024 * 1024)
    glass = zlib.compress(bytes(240 * 240 * 3)) * 40
    with open(path, "wb") as file:
        head = struct.pack("<2sHQ", b"II", 43, 16) + b"".join(struct.pack("<Q", n * 4096) for n in range(2000))
        left = size_bytes - file.write(head[:size_bytes])
        stripe = 0
        while left:
            if random_.random() < 0.3:
                block = glass
            else:
                # A stamp in each tile, about 60 KiB apart, keeps the same pool bytes from being the same chunk.
                start = random_.randrange(len(pool) - 1024 * 1024)
                tissue = bytearray(pool[start : start + 1024 * 1024])
                for at in range(0, len(tissue) - 16, 61_440):
                    tissue[at : at + 16] = struct.pack("<QQ", stripe, at ^ seed)
                block = bytes(tissue)
            stripe += 1
            left -= file.write(block[:left])
