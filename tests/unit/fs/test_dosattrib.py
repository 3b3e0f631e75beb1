"""The offline bit in Samba's attribute: answered for stubs, never kept, and nothing else touched."""

from __future__ import annotations

import struct

import pytest

from vnafs.fs import dosattrib

TIME = bytes.fromhex("a059ae65e87add01")
WRITTEN = bytes.fromhex("000005000500000011000000" + "20000000") + TIME
"""As Samba 4.17 wrote it: version 5, attributes and creation time valid, archive."""
OFFLINE = bytes.fromhex("000005000500000011000000" + "20100000") + TIME


def test_a_stub_is_offline_besides_what_samba_wrote() -> None:
    assert dosattrib.of_stub(WRITTEN) == OFFLINE
    assert dosattrib.of_stub(OFFLINE) == OFFLINE


def test_what_samba_writes_back_is_kept_without_the_bit() -> None:
    assert dosattrib.kept(OFFLINE) == WRITTEN
    assert dosattrib.kept(WRITTEN) == WRITTEN


def test_a_stub_that_samba_never_saw_is_offline_and_nothing_else() -> None:
    text, version, again, valid, attributes = struct.unpack_from("<2sHIII", dosattrib.of_stub(None))
    assert (text, version, again, valid, attributes) == (b"\0\0", 5, 5, 1, 0x1000)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0x20\0",
        WRITTEN[:15],
        b"0x" + OFFLINE[2:],
        OFFLINE.replace(b"\5\0", b"\6\0"),
        OFFLINE[:8] + b"\x10" + OFFLINE[9:],
    ],
)
def test_a_value_of_another_form_is_passed_as_it_is(value: bytes) -> None:
    assert dosattrib.of_stub(value) == value
    assert dosattrib.kept(value) == value
