"""The walk over the data elements of a DICOM object (PS3.10 7, PS3.5 7): where things lie, not what they mean.

Finds the few values that were asked for, large values, and the pixel data, touching each element head once. It
refuses to know character sets, pixels and pieces. Input is distrusted: nothing is read past the end, every
step moves forward, nesting and the number of elements are bounded, and whatever is wrong is a reason in the
result, never an exception. Pure; any thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib
from collections.abc import Set as AbstractSet

from vnafs.content.source import MemorySource, Source

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Syntaxes whose whole data set is one deflate stream (PS3.5 A.5)."""

VALUE_BYTES_MAX = 1024
"""A longer value is not a query key; it is not collected."""
LARGE_VALUE_BYTES_MIN = 64 * 1024
"""A value of this size before the pixel data is reported: a piece of its own pays for its row."""
ELEMENTS_MAX = 2_000_000
"""An enhanced multi-frame header of 10 000 frames has about half a million."""
NESTING_MAX = 64
INFLATED_BYTES_MAX = 256 * 1024
"""Enough for the header of a deflated object; the rest of it is not looked at."""

UNDEFINED = 0xFFFFFFFF
TRANSFER_SYNTAX = 0x00020010
EXTENDED_OFFSETS = 0x7FE00001
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00009
PIXEL_DATA = 0x7FE00010
_PIXELS = frozenset({FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA})
_IDENTITIES = (0x00080016, 0x00080018, 0x0020000D)
"""SOP Class, SOP Instance and Study Instance UID: without the magic, one of them must be there to call it DICOM."""

# PS3.5 Table 7.1-1: these have two reserved bytes and a length of four; table 7.1-2: these a length of two.
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV"
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_PADDING = bytes(16)


class _Form:
    """How element heads are read in one byte order; a VR is compared as the number its two bytes make."""

    def __init__(self, order: str) -> None:
        number = struct.Struct(order + "H")
        self.head = struct.Struct(order + "HHHH").unpack_from
        self.length = struct.Struct(order + "I").unpack_from
        self.long = frozenset(number.unpack(vr)[0] for vr in _LONG.split())
        self.short = frozenset(number.unpack(vr)[0] for vr in _SHORT.split())
        letters = range(ord("A"), ord("Z") + 1)
        self.letters = frozenset(number.unpack(bytes([one, two]))[0] for one in letters for two in letters)
        self.unknown: int = number.unpack(b"UN")[0]


_LITTLE = _Form("<")
_BIG = _Form(">")


@dataclasses.dataclass(frozen=True, slots=True)
class Pixels:
    """The element that holds the pixel data at the top level."""

    tag: int
    offset: int
    """Of its value."""
    length_bytes: int
    """Of its value; what is there when the file is cut short."""
    encapsulated: bool
    """Length undefined: a sequence of fragments, which runs to its delimiter somewhere before the end."""


@dataclasses.dataclass(slots=True)
class Walked:
    """What one walk found. Values and pixels are of the top level only."""

    transfer_syntax: str = ""
    little: bool = True
    deflated: bool = False
    values: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """Tag (group << 16 | element) to raw value, of those asked for that are at most VALUE_BYTES_MAX long."""
    large: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Offset and length of values of LARGE_VALUE_BYTES_MIN and more, in order."""
    offsets: tuple[int, int] | None = None
    """Offset and length of the Extended Offset Table's value."""
    pixels: Pixels | None = None
    is_dicom: bool = True
    broken: str = ""
    """Why the walk stopped before the pixel data or the end; empty when it did not."""
    short: str = ""
    """What is missing after a good header; empty when nothing is."""


class _BrokenError(Exception):
    """Inside this module only: the walk cannot go on."""


def walk(source: Source, wanted: AbstractSet[int]) -> Walked:
    """Walk from the first byte to the pixel data or the end, collecting the values of *wanted* tags.

    `broken` says why when it is not DICOM (`is_dicom` false then) or cannot be understood. Raises only what
    *source* raises.
    """
    walker = _Walker(source, wanted)
    found = walker.found
    try:
        walker.run()
    except _BrokenError as broken:
        found.broken = str(broken)
    return found


class _Walker:
    def __init__(self, source: Source, wanted: AbstractSet[int]) -> None:
        self._source = source
        self._size = source.size_bytes
        self._wanted = wanted
        self._form = _LITTLE
        self._budget = iter(range(ELEMENTS_MAX))
        self._window: tuple[bytes | memoryview, int, int] = (_PADDING, 0, -1)
        self.found = Walked()

    def run(self) -> None:
        """Fill `found`."""
        start = self._start()
        start = self._meta(start)
        found = self.found
        if found.transfer_syntax in DEFLATED:
            found.deflated = True
            self._inflated(start)
            return
        if start + 8 <= self._size:
            self._elements(start, explicit=self._is_explicit(start), nesting=0)
        if not self._has_magic and not any(tag in found.values for tag in _IDENTITIES):
            found.is_dicom = False
            raise _BrokenError("not DICOM")

    def _start(self) -> int:
        """Where the first element is: after preamble and magic (PS3.10 7.1), or at once where those are missing."""
        head = bytes(self._source.read(0, min(self._size, 132)))
        self._has_magic = head[128:132] == b"DICM"
        if self._has_magic:
            return 132
        if len(head) >= 8:
            for form in (_LITTLE, _BIG):
                group, element, vr, low = form.head(head)
                known = vr in form.long or vr in form.short
                plausible = low <= VALUE_BYTES_MAX if known else form.length(head, 4)[0] <= VALUE_BYTES_MAX
                begins = (group == 2 and element <= 0x0010 and form is _LITTLE) or (group == 8 and element <= 0x0018)
                if begins and plausible:
                    return 0
        self.found.is_dicom = False
        raise _BrokenError("not DICOM")

    def _meta(self, at: int) -> int:
        """Walk the file meta information (group 0002, always explicit little-endian); where the data set begins."""
        size = self._size
        for _ in self._budget:
            if at + 12 > size:
                break
            head = self._source.read(at, 12)
            group, element, vr, length = _LITTLE.head(head)
            if group != 2:
                break
            begins = at + 8
            if vr in _LITTLE.long:
                length = _LITTLE.length(head, 8)[0]
                begins = at + 12
            elif vr not in _LITTLE.short:
                raise _BrokenError("file meta information is damaged")
            if begins + length > size:
                raise _BrokenError("file meta information ends early")
            if element == 0x0010 and length <= 64:
                text = bytes(self._source.read(begins, length)).rstrip(b"\0 ")
                self.found.transfer_syntax = text.decode("ascii", "replace")
            at = begins + length
        return at

    def _is_explicit(self, at: int) -> bool:
        """Whether VRs are written, and in which byte order: the bytes themselves are asked, they lie least."""
        head = bytes(self._source.read(at, 8))
        big = self.found.transfer_syntax == EXPLICIT_BIG
        if not self.found.transfer_syntax:
            # A data set begins with a small group; read in the wrong order it becomes a multiple of 256.
            big = _LITTLE.head(head)[0] & 0xFF == 0 and _BIG.head(head)[0] != 0
        self._form = _BIG if big else _LITTLE
        self.found.little = not big
        vr = self._form.head(head)[2]
        return vr in self._form.long or vr in self._form.short

    def _inflated(self, at: int) -> None:
        """Collect values from the beginning of a deflated data set (raw deflate, RFC 1951)."""
        packed = self._source.read(at, min(self._size - at, INFLATED_BYTES_MAX))
        try:
            plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, INFLATED_BYTES_MAX)
        except zlib.error:
            raise _BrokenError("deflated data set is damaged") from None
        inner = _Walker(MemorySource(plain), self._wanted)
        inner.found.values = self.found.values
        if len(plain) < 8:
            raise _BrokenError("deflated data set is empty")
        try:
            inner._elements(0, explicit=inner._is_explicit(0), nesting=0)
        except _BrokenError:
            # Only the beginning was inflated: ending early is expected unless nothing at all was found.
            if not any(tag in self.found.values for tag in _IDENTITIES):
                raise

    def _slide(self, at: int) -> tuple[bytes | memoryview, int, int]:
        """Bytes from *at* on, the offset of their first, and the last place in them where a head may be read."""
        size, window = self._size, self._source.window_bytes
        if window >= size and at <= size - 16:
            found: tuple[bytes | memoryview, int, int] = (self._source.read(0, size), 0, size - 16)
        elif size - at <= min(window, 65536):
            found = (bytes(self._source.read(at, size - at)) + _PADDING, at, size - at - 8)
        else:
            found = (self._source.read(at, min(window, size - at)), at, min(window, size - at) - 16)
        self._window = found
        return found

    def _elements(self, at: int, *, explicit: bool, nesting: int) -> int:  # noqa: C901, PLR0912, PLR0915 - one loop, run for every element of every file: calls would double its cost
        """Walk elements: of the data set to its pixel data or end, of an item to its delimiter; the offset after."""
        form, size, wanted, found = self._form, self._size, self._wanted, self.found
        head_of, length_of, long, short = form.head, form.length, form.long, form.short
        read = self._source.read
        buffer, base, room = self._window
        for _ in self._budget:
            if at - base > room:
                if at + 8 > size:
                    if nesting:
                        raise _BrokenError("ends inside a sequence")
                    if any(read(at, size - at)):
                        raise _BrokenError("an element reaches past the end")
                    return at
                buffer, base, room = self._slide(at)
            place = at - base
            group, element, vr, length = head_of(buffer, place)
            begins = at + 8
            if group == 0xFFFE:
                if nesting and element == 0xE00D:
                    return begins
                raise _BrokenError("a delimiter where an element should be")
            if not explicit:
                length = length_of(buffer, place + 4)[0]
            elif vr in long:
                length = length_of(buffer, place + 8)[0]
                begins = at + 12
            elif vr not in short and vr not in form.letters:
                length = length_of(buffer, place + 4)[0]  # written implicitly among explicit ones
            tag = group << 16 | element
            if length == UNDEFINED:
                if tag in _PIXELS and not nesting:
                    found.pixels = Pixels(tag, begins, max(size - begins, 0), encapsulated=True)
                    return begins
                # The items of an UN of undefined length are implicit (PS3.5 6.2.2 note 5).
                at = self._items(begins, explicit=explicit and vr != form.unknown, nesting=nesting + 1)
                buffer, base, room = self._window
                if not nesting and at - begins >= LARGE_VALUE_BYTES_MIN:
                    found.large.append((begins, at - begins))
                continue
            stop = begins + length
            if nesting:
                pass
            elif tag in wanted:
                if length <= VALUE_BYTES_MAX and stop <= size:
                    found.values[tag] = bytes(read(begins, length))
            elif group == 0x7FE0 and tag in _PIXELS:
                if stop > size:
                    found.short = "pixel data ends early"
                found.pixels = Pixels(tag, begins, max(min(stop, size) - begins, 0), encapsulated=False)
                return begins
            elif length >= LARGE_VALUE_BYTES_MIN and stop <= size:
                found.large.append((begins, length))
            elif tag == 0 and length == 0:
                return at  # zero padding after the last element
            if tag == EXTENDED_OFFSETS and not nesting and stop <= size:
                found.offsets = (begins, length)
            if stop > size:
                raise _BrokenError("an element reaches past the end")
            at = stop
        raise _BrokenError("too many elements")

    def _items(self, at: int, *, explicit: bool, nesting: int) -> int:
        """Walk the items of an undefined-length sequence to its delimiter (PS3.5 7.5); the offset after it."""
        if nesting > NESTING_MAX:
            raise _BrokenError("sequences nest too deep")
        size = self._size
        for _ in self._budget:
            if at + 8 > size:
                raise _BrokenError("ends inside a sequence")
            head = self._source.read(at, 8)
            group, element, _, _ = self._form.head(head)
            length = self._form.length(head, 4)[0]
            at += 8
            if group != 0xFFFE:
                raise _BrokenError("an element where an item should be")
            if element == 0xE0DD:
                return at
            if element != 0xE000:
                raise _BrokenError("a wrong delimiter inside a sequence")
            at = self._elements(at, explicit=explicit, nesting=nesting) if length == UNDEFINED else at + length
        raise _BrokenError("too many elements")


@dataclasses.dataclass(slots=True)
class Fragments:
    """The items of encapsulated pixel data (PS3.5 A.4)."""

    table: tuple[int, int] | None
    """Offset and length of the Basic Offset Table's value; None when even that is missing."""
    starts: list[int]
    """Offset of each fragment's item head, in order."""
    stop: int
    """The offset after the sequence delimiter, or the end of the file when there is none."""
    short: str
    """What is wrong; empty when nothing is."""


def fragments(source: Source, pixels: Pixels, fragments_max: int = ELEMENTS_MAX) -> Fragments:
    """Walk the items of encapsulated pixel data. What cannot be understood ends the list and is named."""
    at, size = pixels.offset, source.size_bytes
    found = Fragments(None, [], size, "")
    read, head_of, length_of = source.read, _LITTLE.head, _LITTLE.length
    for number in itertools.count():
        if at + 8 > size:
            found.short = "encapsulated pixel data ends early"
            return found
        head = read(at, 8)
        group, element, _, _ = head_of(head)
        length = length_of(head, 4)[0]
        if group == 0xFFFE and element == 0xE0DD:
            found.stop = at + 8
            return found
        if group != 0xFFFE or element != 0xE000 or length == UNDEFINED or number > fragments_max:
            found.short = "encapsulated pixel data has something other than fragments"
            return found
        if at + 8 + length > size:
            found.short = "encapsulated pixel data ends early"
            if number:
                found.starts.append(at)
            return found
        if number == 0:
            found.table = (at + 8, length)
        else:
            found.starts.append(at)
        at += 8 + length
    raise AssertionError("unreachable")
