"""Noise: does a file begin as encrypted bytes do? A hint for the tripwire, nothing more.

Images, documents and archives begin with a header: their first bytes can be compressed, or are those of a format that
is known. Encrypted bytes look like chance from the first on.
"""

from __future__ import annotations

import zlib

HEAD_BYTES = 4096
HEAD_BYTES_MIN = 512
"""Of less nothing can be said."""
COMPRESSED = (
    b"PK\x03\x04",  # ZIP and office documents
    b"\x1f\x8b",  # gzip
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf\x27\x1c",
    b"\x28\xb5\x2f\xfd",  # Zstandard
    b"Rar!",
    b"\xff\xd8\xff",  # JPEG
    b"\xff\x4f\xff\x51",  # JPEG 2000, a codestream
    b"\x89PNG",
    b"GIF8",
    b"%PDF",
    b"RIFF",
    b"OggS",
    b"ID3",
    b"\x1a\x45\xdf\xa3",  # Matroska
)
"""How formats begin whose first bytes may not be compressible."""
BRAND_AT = 4
BRAND = b"ftyp"
"""ISO base media (MP4, HEIF): its first box."""


def is_noise(head: bytes) -> bool:
    """Whether the first HEAD_BYTES of a file, or all of a smaller one, look encrypted."""
    head = head[:HEAD_BYTES]
    if len(head) < HEAD_BYTES_MIN or head.startswith(COMPRESSED) or head.startswith(BRAND, BRAND_AT):
        return False
    return len(zlib.compress(head, 1)) >= len(head)
