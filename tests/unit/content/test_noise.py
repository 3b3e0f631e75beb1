"""What looks encrypted, and what does not: every real file that is at hand."""

import gzip
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.studies import real_dicom_files
from vnafs.content.noise import HEAD_BYTES, HEAD_BYTES_MIN, is_noise


def encrypted(data: bytes) -> bytes:
    return Cipher(algorithms.AES(b"k" * 32), modes.CTR(b"n" * 16)).encryptor().update(data)


def test_no_real_dicom_file_looks_encrypted_and_each_does_once_it_is() -> None:
    names = real_dicom_files()
    assert len(names) > 30
    for name in names:
        data = Path(name).read_bytes()
        assert not is_noise(data), name
        if len(data) >= HEAD_BYTES_MIN:
            assert is_noise(encrypted(data)), name


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n", b"PK\x03\x04", b"\x00\x00\x00\x18ftypmp42", b"%PDF-1.7\n"]
)
def test_what_is_compressed_is_known_by_its_beginning(head: bytes) -> None:
    noise = random.Random(1).randbytes(HEAD_BYTES)
    assert not is_noise(head + noise)
    assert is_noise(noise)


def test_text_zeros_little_and_nothing_are_no_noise() -> None:
    for data in (b"", bytes(10_000), b"words and words " * 500, random.Random(2).randbytes(HEAD_BYTES_MIN - 1)):
        assert not is_noise(data)
    assert not is_noise(gzip.compress(random.Random(3).randbytes(10_000)))
