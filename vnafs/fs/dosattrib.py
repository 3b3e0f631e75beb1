"""`user.DOSATTRIB`, where Samba keeps what Windows calls attributes: its offline bit is answered and never stored.

A stub is offline and nothing else is, whatever a client sets, so that Explorer and its like see that the bytes are
elsewhere and fetch none for a thumbnail. The value is as Samba writes it (xattr_DOSATTRIB of its xattr.idl, in NDR,
little endian): a text, empty by now; the version twice; which fields are valid; the attributes; what we never look at.
What has another form is passed as it is. Pure.
"""

from __future__ import annotations

import struct

NAME = b"user.DOSATTRIB"
OFFLINE = 0x1000
"""FILE_ATTRIBUTE_OFFLINE (MS-FSCC 2.6)."""
_HEAD = struct.Struct("<2sHIII")
_KNOWN = {3, 4, 5}
_ATTRIBUTES_ARE_VALID = 0x1
_STUB_ALONE = _HEAD.pack(b"\0\0", 5, 5, _ATTRIBUTES_ARE_VALID, OFFLINE) + bytes(8)
"""Of a stub that Samba has said nothing of; the eight bytes are a time that is not valid."""


def of_stub(value: bytes | None) -> bytes:
    """What Samba is told of a stub where *value* is stored, or nothing."""
    if value is None:
        return _STUB_ALONE
    found = _attributes(value)
    return value if found is None else _with(value, found | OFFLINE)


def kept(value: bytes) -> bytes:
    """What is stored where Samba sets *value*: it has read the bit, and writes it back with what it changes."""
    found = _attributes(value)
    return value if found is None or not found & OFFLINE else _with(value, found & ~OFFLINE)


def _attributes(value: bytes) -> int | None:
    if len(value) < _HEAD.size:
        return None
    text, version, again, valid, attributes = _HEAD.unpack_from(value)
    is_known = text == b"\0\0" and version == again and version in _KNOWN and valid & _ATTRIBUTES_ARE_VALID
    return int(attributes) if is_known else None


def _with(value: bytes, attributes: int) -> bytes:
    return value[: _HEAD.size - 4] + struct.pack("<I", attributes) + value[_HEAD.size :]
