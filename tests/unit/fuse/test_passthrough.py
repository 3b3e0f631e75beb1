"""Which way the opens of an inode go, where there is no kernel to ask."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnafs.domain.errors import Busy
from vnafs.domain.ids import Inode
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.passthrough import THROUGH_US, Backings

F, G = Inode(7), Inode(8)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "local", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Requests to a kernel that hands out ids."""
    requests: list[int] = []

    def ioctl(control: int, request: int, argument: object) -> int:
        requests.append(request)
        return 100 + len(requests)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return requests


def test_a_kernel_without_passthrough_is_asked_once_and_all_goes_through_us(local: int) -> None:
    control = os.open("/dev/null", os.O_RDWR)
    backings = Backings(control, 10)
    assert backings.take(F, local, wanted=True) == THROUGH_US
    assert not backings.works
    assert backings.take(G, local, wanted=True) == THROUGH_US
    backings.drop(F)
    assert not backings.is_open(F)
    os.close(control)


def test_all_opens_of_an_inode_share_one_id_until_the_last_is_closed(local: int, asked: list[int]) -> None:
    backings = Backings(3, 10)
    first = backings.take(F, local, wanted=True)
    assert backings.take(F, local, wanted=False) == first
    backings.drop(F)
    assert backings.passes(F)
    backings.drop(F)
    assert (backings.taken, backings.is_open(F)) == (0, False)
    assert asked == [wire.BACKING_OPEN, wire.BACKING_CLOSE]


def test_what_goes_through_us_does_so_until_the_last_is_closed(local: int, asked: list[int]) -> None:
    backings = Backings(3, 10)
    assert backings.take(F, -1, wanted=True) == THROUGH_US  # a stub that is read by range
    assert backings.take(F, local, wanted=True) == THROUGH_US  # brought back meanwhile
    backings.drop(F)
    backings.drop(F)
    assert backings.take(F, local, wanted=True) != THROUGH_US
    assert asked == [wire.BACKING_OPEN]


def test_there_are_no_more_ids_than_allowed(local: int, asked: list[int]) -> None:
    backings = Backings(3, 1)
    assert backings.take(F, local, wanted=True) != THROUGH_US
    assert backings.take(G, local, wanted=True) == THROUGH_US
    backings.drop(F)
    backings.drop(G)
    assert backings.take(G, local, wanted=True) != THROUGH_US


def test_an_open_that_would_reach_another_local_file_is_refused(tmp_path: Path, local: int, asked: list[int]) -> None:
    backings = Backings(3, 10)
    backings.take(F, local, wanted=True)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    for descriptor in (other, -1):
        with pytest.raises(Busy):
            backings.take(F, descriptor, wanted=True)
    os.close(other)
    assert backings.taken == 1
