"""How index rows become bytes: a version byte, a fixed layout, and varints after it where sizes differ.

It knows no table: each table file defines its own `RecordType` beside the functions that use it. Newer programs
read older records (an upgrade turns old fields into today's); an older program meets a newer record with
FormatUnknown instead of guessing. Pure functions, any thread, no I/O.

A table whose second version gained a field:

    _SEAT = RecordType("seat", {1: ">QI", 2: ">QIB"}, upgrades={1: lambda row, wagon: (row, wagon, 0)})

    raw = _SEAT.pack(12, 3, 1, tail=name)     # always the newest version
    (row, wagon, side), name = _SEAT.unpack(raw)   # always the newest shape, whatever version was stored

Numbers of very different size go into the tail as varints (LEB128, as in DWARF 5 section 7.6):

    tail = varint(inode) + varint(cookie)
    inode, at = take_varint(tail, 0)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from vnafs.domain.errors import Damaged, FormatUnknown

VERSION_MAX = 255
VARINT_BYTES_MAX = 10
"""64 bits in groups of seven."""

Fields = tuple[Any, ...]


class RecordType:
    """One kind of row: a `struct` format for each version there ever was; the largest number is today's.

    *upgrades* maps an old version to a function from its fields to those of the next version listed; it may be
    left out where the layouts have the same fields. Formats get no padding: start them with `>`.
    """

    __slots__ = ("_layouts", "_newest", "_prefixed", "_upgrades", "name")

    def __init__(
        self,
        name: str,
        versions: Mapping[int, str],
        upgrades: Mapping[int, Callable[..., Fields]] | None = None,
    ) -> None:
        if not versions or not all(1 <= version <= VERSION_MAX for version in versions):
            raise ValueError(f"versions of {name} are numbered from 1 to {VERSION_MAX}")
        if not all(layout.startswith(">") for layout in versions.values()):
            raise ValueError(f"layouts of {name} start with > (big-endian, no padding)")
        self.name = name
        self._layouts = {version: struct.Struct(layout) for version, layout in sorted(versions.items())}
        self._newest = max(versions)
        self._prefixed = struct.Struct(">B" + versions[self._newest][1:])
        self._upgrades = dict(upgrades or {})

    def pack(self, *fields: object, tail: bytes = b"") -> bytes:
        """A row of the newest version. Raises struct.error when a field does not fit its place."""
        return self._prefixed.pack(self._newest, *fields) + tail

    def unpack(self, raw: bytes) -> tuple[Fields, bytes]:
        """The fields in today's shape and the bytes after them.

        Raises FormatUnknown for a version this program does not know, Damaged for a row that is too short.
        """
        if raw and raw[0] == self._newest:
            if len(raw) < self._prefixed.size:
                raise Damaged(what=f"a {self.name} record")
            return self._prefixed.unpack_from(raw)[1:], raw[self._prefixed.size :]
        return self._unpack_older(raw)

    def _unpack_older(self, raw: bytes) -> tuple[Fields, bytes]:
        if not raw:
            raise Damaged(what=f"a {self.name} record")
        found = raw[0]
        if found > self._newest:
            raise FormatUnknown(what=f"a {self.name} record", found=found, known=self._newest)
        layout = self._layouts.get(found)
        if layout is None or len(raw) < 1 + layout.size:
            raise Damaged(what=f"a {self.name} record")
        fields: Fields = layout.unpack_from(raw, 1)
        for version in self._layouts:
            if version >= found and version in self._upgrades:
                fields = self._upgrades[version](*fields)
        return fields, raw[1 + layout.size :]


# -- parts of a tail -----------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """An unsigned number below 2**64 in one to ten bytes, small ones short. Raises ValueError outside."""
    if 0 <= number < 0x80:
        return _SMALL[number]
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no unsigned 64-bit number")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = tuple(bytes([number]) for number in range(0x80))


def take_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at offset *at* and the offset after it. Raises Damaged when it does not end."""
    number = shift = 0
    for index in range(at, min(len(raw), at + VARINT_BYTES_MAX)):
        byte = raw[index]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                break
            return number, index + 1
        shift += 7
    raise Damaged(what="a number in an index record")


def sized(value: bytes) -> bytes:
    """Bytes that say how long they are, so that more can follow."""
    return varint(len(value)) + value


def take_sized(raw: bytes, at: int) -> tuple[bytes, int]:
    """What `sized` wrote at offset *at*, and the offset after it. Raises Damaged when it is cut short."""
    length, at = take_varint(raw, at)
    if at + length > len(raw):
        raise Damaged(what="a value in an index record")
    return raw[at : at + length], at + length
