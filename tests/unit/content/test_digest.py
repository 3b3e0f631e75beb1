"""Identities are SHA-256 of all the bytes, however they are read."""

from __future__ import annotations

import hashlib
import os

from vnafs.content.digest import BLOCK_BYTES, sha256, sha256_of_descriptor


def test_a_file_and_a_buffer_of_the_same_bytes_have_one_identity(tmp_path):
    data = os.urandom(BLOCK_BYTES + 12_345)
    path = tmp_path / "bytes"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    os.lseek(descriptor, 7, os.SEEK_SET)
    try:
        assert sha256_of_descriptor(descriptor) == (hashlib.sha256(data).digest(), len(data))
    finally:
        os.close(descriptor)
    assert sha256(memoryview(data)) == hashlib.sha256(data).digest()


def test_an_empty_file_has_the_identity_of_no_bytes(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert sha256_of_descriptor(descriptor) == (hashlib.sha256().digest(), 0)
    finally:
        os.close(descriptor)
