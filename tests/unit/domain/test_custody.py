"""Whether a sender may delete: one reason at a time, and yes only without any."""

import dataclasses

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.custody import Custody, CustodyCopy, may_delete
from vnafs.domain.files import FileState
from vnafs.domain.ids import RepositoryId, Sha256, TargetName
from vnafs.domain.recipes import EMPTY
from vnafs.domain.repositories import Repository


def a_copy(name="one", *, names_recorded=True):
    return CustodyCopy(TargetName(name), Instant(1), (VerifiedBy.READ_BACK,), names_recorded)


SAFE = Custody(
    path=b"r/f",
    repository=Repository(RepositoryId(2), "r", copies_min=2),
    size_bytes=1,
    mtime_ns=0,
    state=FileState.REPLICATED,
    sha256=Sha256(b"x" * 32),
    copies=(a_copy("one"), a_copy("two", names_recorded=False)),
)


def changed(**fields):
    return dataclasses.replace(SAFE, **fields)


@pytest.mark.parametrize("state", [FileState.REPLICATED, FileState.STUB])
def test_enough_copies_and_one_with_the_name_are_safe(state):
    assert may_delete(changed(state=state)).yes


def test_a_file_without_bytes_needs_only_to_be_fixed():
    assert may_delete(changed(sha256=EMPTY, copies=(), state=FileState.PACKED)).yes
    assert not may_delete(changed(sha256=EMPTY, copies=(), state=FileState.OPEN)).yes


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"trouble": "it moved"}, "it moved"),
        ({"state": FileState.OPEN, "sha256": None}, "not fixed"),
        ({"state": FileState.STUB, "sha256": None}, "not fixed"),
        ({"state": FileState.SEALED}, "not in a closed pack"),
        ({"state": FileState.PACKED}, "not called replicated"),
        ({"copies": (a_copy(),)}, "2 verified copies are asked for and there are 1 (one)"),
        ({"copies": ()}, "there are 0 (none)"),
        ({"copies": (a_copy(names_recorded=False),) * 2}, "its name is not recorded"),
    ],
)
def test_anything_that_is_missing_is_not_safe_and_says_why(fields, why):
    decision = may_delete(changed(**fields))
    assert not decision.yes
    assert why in decision.why
