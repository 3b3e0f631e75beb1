"""SHA-256 (FIPS 180-4), the identity of contents, pieces and packs, in bounded memory.

Knows buffers and open descriptors; refuses to know paths and what the bytes mean. Functions may run in any
thread: hashlib releases the interpreter lock for blocks over 2 KiB, so threads hash side by side. Nothing is
written, so there is nothing to make durable.
"""

from __future__ import annotations

import hashlib
import os

from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.ids import Sha256

BLOCK_BYTES = 1024 * 1024
"""Read at a time: large enough that system calls vanish beside hashing, small enough for the CPU's cache."""


def sha256(data: Buffer) -> Sha256:
    """Of a buffer."""
    return Sha256(hashlib.sha256(data).digest())


def sha256_of_descriptor(descriptor: int) -> tuple[Sha256, int]:
    """Of everything from the first byte to the end of an open file, and how many bytes that was.

    Reads with pread, so the descriptor's own position does not matter; needs one block of memory. Raises
    StorageFailed when the disk does not give the bytes.
    """
    state = hashlib.sha256()
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    offset = 0
    while True:
        try:
            count = os.preadv(descriptor, [block], offset)
        except OSError as error:
            raise errors.StorageFailed(doing="reading to hash", why=os.strerror(error.errno or 0)) from error
        if count == 0:
            return Sha256(state.digest()), offset
        state.update(view[:count])
        offset += count
