"""Versioned records: old ones are read, newer ones refused, short ones noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.index.records import RecordType, sized, take_sized, take_varint, varint

FIRST = RecordType("seat", {1: ">QI"})
SECOND = RecordType("seat", {1: ">QI", 2: ">QIB"}, upgrades={1: lambda row, wagon: (row, wagon, 9)})
FOURTH = RecordType(
    "seat",
    {1: ">QI", 2: ">QIB", 4: ">QH"},
    upgrades={1: lambda row, wagon: (row, wagon, 9), 2: lambda row, _wagon, side: (row, side)},
)


def test_a_record_comes_back_with_its_tail() -> None:
    assert FIRST.unpack(FIRST.pack(1 << 60, 3, tail=b"name")) == ((1 << 60, 3), b"name")


def test_a_newer_program_reads_older_records_in_todays_shape() -> None:
    old = FIRST.pack(12, 3, tail=b"name")
    assert SECOND.unpack(old) == ((12, 3, 9), b"name")
    assert FOURTH.unpack(old) == ((12, 9), b"name")
    assert FOURTH.unpack(SECOND.pack(12, 3, 7)) == ((12, 7), b"")


def test_an_older_program_refuses_a_newer_record_and_says_which() -> None:
    with pytest.raises(FormatUnknown, match="a seat record has format version 2; this program reads up to 1"):
        FIRST.unpack(SECOND.pack(12, 3, 1))


@pytest.mark.parametrize("raw", [b"", b"\x01", FIRST.pack(1, 2)[:-1], b"\x00" * 20, b"\x03" * 20])
def test_a_record_that_is_none_is_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        FOURTH.unpack(raw)


def test_a_layout_that_could_be_padded_is_refused() -> None:
    with pytest.raises(ValueError, match="big-endian"):
        RecordType("seat", {1: "QI"})
    with pytest.raises(ValueError, match="numbered"):
        RecordType("seat", {0: ">Q"})


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=5))
def test_a_varint_comes_back_and_says_where_it_ends(number: int, after: bytes) -> None:
    raw = varint(number)
    assert take_varint(b"x" + raw + after, 1) == (number, 1 + len(raw))
    assert len(raw) == max(1, -(-number.bit_length() // 7))


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_a_varint_has_sixty_four_bits(number: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        varint(number)


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 10, b"\xff" * 9 + b"\x7f"])
def test_a_varint_that_does_not_end_or_fit_is_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        take_varint(raw, 0)


@given(st.binary(max_size=300), st.binary(max_size=5))
def test_sized_bytes_come_back(value: bytes, after: bytes) -> None:
    raw = sized(value)
    assert take_sized(raw + after, 0) == (value, len(raw))
    with pytest.raises(Damaged):
        take_sized(raw[:-1], 0)
