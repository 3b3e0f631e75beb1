"""What keeps a mount: descriptors change hands, and are closed when nobody shall have them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from appliance.daemons.keeping import COPY, SILENT_DEATHS_MAX, KeeperEnd, Keeping, given
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


def end_of(keeping: Keeping) -> KeeperEnd:
    """The other side, as a process that was just started has it."""
    _, inherited = keeping.begin()
    end = KeeperEnd(os.dup(inherited[0]))
    keeping.begun()
    return end


def template_of(keeping: Keeping) -> socket.socket:
    """The other side, as the template has it."""
    _, [far] = keeping.begin_template()
    end = socket.socket(fileno=os.dup(far))
    keeping.begun()
    return end


def copy_of(template: socket.socket) -> KeeperEnd:
    """What a copy has that was asked for."""
    word, [far], _, _ = socket.recv_fds(template, 16, 1)
    assert word == COPY
    return KeeperEnd(far)


def spare_of(keeping: Keeping) -> KeeperEnd:
    """A spare that said that it is there."""
    with template_of(keeping) as template:
        keeping.ask_spare()
        spare = copy_of(template)
    spare.here()
    assert keeping.spare() == os.getpid()
    return spare


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
    spare = spare_of(keeping)
    keeping.ended()
    assert keeping.promote()
    assert [same(*pair) for pair in zip(spare.wait(), mount, strict=True)] == [True, True]
    spare.serves()
    keeping.look()
    assert keeping.has_served


def test_a_spare_that_is_not_needed_any_more_ends(keeping: Keeping) -> None:
    spare = spare_of(keeping)
    keeping.close()
    with pytest.raises(SystemExit):
        spare.wait()


def test_without_a_mount_nobody_is_promoted(keeping: Keeping) -> None:
    end_of(keeping)
    spare_of(keeping)
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


def test_a_spare_is_given_nothing_before_it_said_who_it_is(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    with template_of(keeping) as template:
        keeping.ask_spare()
        spare = copy_of(template)
        assert keeping.awaited
        assert not keeping.promote()
        assert keeping.spare() is None
        spare.here()
        assert keeping.spare() == os.getpid()
        assert not keeping.awaited
        assert keeping.promote()
        assert len(spare.wait()) == 2


@pytest.mark.parametrize("is_asked_before", [True, False])
def test_a_template_that_dies_makes_no_spare_and_nobody_waits_for_it(
    keeping: Keeping,
    mount: tuple[int, int],
    is_asked_before: bool,
) -> None:
    keep(keeping, mount)
    template = template_of(keeping)
    if is_asked_before:
        keeping.ask_spare()
        template.close()
    else:
        template.close()
        keeping.ask_spare()
    assert keeping.spare() is None
    assert not keeping.awaited
    assert not keeping.promote()


def test_a_spare_outlives_its_template(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    spare = spare_of(keeping)
    keeping.forget_template()
    assert keeping.promote()
    assert [same(*pair) for pair in zip(spare.wait(), mount, strict=True)] == [True, True]


def test_a_spare_that_was_given_up_ends_and_never_gets_the_mount(keeping: Keeping, mount: tuple[int, int]) -> None:
    keep(keeping, mount)
    spare = spare_of(keeping)
    keeping.forget_spare()
    assert not keeping.promote()
    with pytest.raises(SystemExit):
        spare.wait()


def test_words_of_anybody_else_are_refused() -> None:
    for words in ("", "x", "3,4", "3,4,x", "template", "x,template"):
        with pytest.raises(InvalidArgument):
            given(words)


def test_a_supervisor_that_died_is_no_error(keeping: Keeping) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = KeeperEnd(far.detach())
    near.close()
    end.serves()
    end.let_go()
