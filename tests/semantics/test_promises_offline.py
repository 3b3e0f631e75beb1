"""SEMANTICS.md, what Samba is told of stubs: P-92, on a real mount with a real target."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.system.archives import QUICK, an_archive

pytestmark = pytest.mark.system
NAME = "user.DOSATTRIB"
HIDDEN, OFFLINE = 0x2, 0x1000


def value(attributes: int) -> bytes:
    """As Samba writes it: version 5, attributes valid."""
    return struct.pack("<2sHIIIQ", b"\0\0", 5, 5, 1, attributes, 0)


def test_p92_a_stub_is_offline_to_samba_and_nothing_else_is(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=QUICK) as archive:
        plain, hidden = archive.share / "plain", archive.share / "hidden"
        for path in (plain, hidden):
            path.write_bytes(path.name.encode())
        os.setxattr(hidden, NAME, value(HIDDEN | OFFLINE))
        assert os.getxattr(hidden, NAME) == value(HIDDEN)
        archive.wait()
        archive.evict(plain, hidden)
        assert os.getxattr(plain, NAME) == value(OFFLINE)
        assert os.getxattr(hidden, NAME) == value(HIDDEN | OFFLINE)
        assert (os.listxattr(plain), os.listxattr(hidden)) == ([], [NAME])
        os.setxattr(hidden, NAME, value(OFFLINE))
        assert (plain.read_bytes(), hidden.read_bytes()) == (b"plain", b"hidden")
        assert os.getxattr(hidden, NAME) == value(0)
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(plain, NAME)
