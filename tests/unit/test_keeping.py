"""What keeps a mount: descriptors change hands, and are closed when nobody shall have them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from appliance.daemons.keeping import SILENT_DEATHS_MAX, KeeperEnd, Keeping, given
from vnafs.domain.errors import InvalidArgument


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    made = Keeping()
    yield made
    made.close()


@pytest.fixture
def mount() -> Iterator[tuple[int, int]]:
    """What a mount process wants to be kept."""
    pair = (os.memfd_create("control"), os.memfd_create("estate"))
    yield pair
    for descriptor in pair:
        os.close(descriptor)


def end_of(keeping: Keeping, *, spare: bool = False) -> KeeperEnd:
    """The other side, as a process that was just started has it."""
    _, inherited = keeping.begin_spare() if spare else keeping.begin()
    end = KeeperEnd(os.dup(inherited[0]))
    keeping.begun()
    return end


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def keep(keeping: Keeping, mount: tuple[int, int]) -> KeeperEnd:
    end = end_of(keeping)
    end.keep(*mount)
    end.serves()
    keeping.look()
    return end


def test_what_is_kept_is_given_to_the_next_one(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    assert keeping.has_served
    words, inherited = keeping.begin()
    assert not keeping.has_served
    assert words == ["--keeper", ",".join(map(str, inherited))]
    assert [same(*pair) for pair in zip(inherited[1:], mount, strict=True)] == [True, True]


def test_a_spare_gets_it_when_it_is_needed(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    spare = end_of(keeping, spare=True)
    keeping.ended()
    assert keeping.promote()
    assert [same(*pair) for pair in zip(spare.wait(), mount, strict=True)] == [True, True]
    spare.serves()
    keeping.look()
    assert keeping.has_served


def test_a_spare_that_is_not_needed_any_more_ends(keeping: Keeping) -> None:
    spare = end_of(keeping, spare=True)
    keeping.close()
    with pytest.raises(SystemExit):
        spare.wait()


def test_without_a_mount_nobody_is_promoted(keeping: Keeping) -> None:
    end_of(keeping)
    end_of(keeping, spare=True)
    assert not keeping.promote()


def test_what_is_let_go_is_closed(keeping: Keeping, mount: tuple[int, int]) -> None:
    end = keep(keeping, mount)
    [control, estate] = keeping.descriptors
    end.let_go()
    keeping.look()
    assert keeping.descriptors == ()
    for descriptor in (control, estate):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)


def test_a_mount_on_which_nobody_answers_any_more_is_given_up(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    keeping.ended()
    for _ in range(SILENT_DEATHS_MAX):
        assert keeping.descriptors
        end_of(keeping)
        keeping.ended()
    assert keeping.descriptors == ()


def test_words_of_anybody_else_are_refused() -> None:
    for words in ("", "x", "3,4", "3,4,x", "spare"):
        with pytest.raises(InvalidArgument):
            given(words)


def test_a_supervisor_that_died_is_no_error(keeping: Keeping) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = KeeperEnd(far.detach())
    near.close()
    end.serves()
    end.let_go()
