"""Sealing: only what nobody can still write, and why not yet."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.errors import Suspect
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import Candidate, FileFacts, FileState
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.local.syncing import Synced
from vnafs.pipeline.seal import Gone, Later, Reading, leasable, reading

QUIET_SECONDS = 5.0


class At:
    """A clock that stands still."""

    def __init__(self, now: int) -> None:
        self._now = Instant(now)

    def now(self) -> Instant:
        return self._now

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("sealing never sleeps")


def facts(state: FileState = FileState.OPEN, version: int = 1, handles_open: int = 0) -> FileFacts:
    return FileFacts(
        Inode(7), Version(version), RepositoryId(1), state, 4, None, None, handles_open, mtime_ns=0, path_hint=b""
    )


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "7.1"
    path.write_bytes(b"data")
    return path


Begin = Callable[..., contextlib.AbstractContextManager[Reading | Later | Gone]]


@pytest.fixture
def begin(local: Path) -> Begin:
    """Begins to seal the file, so many seconds after it was last changed."""

    @contextlib.contextmanager
    def begun(
        seconds: float = QUIET_SECONDS + 1, found: FileFacts | None = None, due_seconds: float = 0
    ) -> Iterator[Reading | Later | Gone]:
        touched = local.stat().st_ctime_ns if local.exists() else 0
        now = touched + int(seconds * NANOSECONDS)
        candidate = Candidate(Inode(7), Version(1), FileState.OPEN, Instant(now + int(due_seconds * NANOSECONDS)))
        with reading(
            candidate,
            found or facts(),
            str(local),
            quiet_seconds=QUIET_SECONDS,
            synced=Synced(Instant(now)),
            clock=At(now),
            faults=NoFaults(),
        ) as result:
            yield result

    return begun


def test_a_quiet_file_is_read_and_sealed_with_its_hash(begin: Begin) -> None:
    with begin() as result:
        assert isinstance(result, Reading)
        assert result.whole() == b"data"
        seal = result.finish()
        assert seal is not None
        assert seal.sha256.hex().startswith("3a6eb079")
        assert seal.fingerprint.size_bytes == 4


@pytest.mark.parametrize("found", [facts(version=2), facts(FileState.PACKED)])
def test_what_was_overtaken_is_forgotten(begin: Begin, found: FileFacts) -> None:
    with begin(found=found) as result:
        assert isinstance(result, Gone)


def why(result: object) -> str:
    assert isinstance(result, Later)
    return result.why


def test_it_waits_until_a_file_was_quiet_for_long_enough(begin: Begin, local: Path) -> None:
    with begin(seconds=2) as result:
        assert why(result) == "not quiet yet"
        assert isinstance(result, Later)
        assert result.due == local.stat().st_ctime_ns + int(QUIET_SECONDS) * NANOSECONDS


def test_it_waits_for_writers(begin: Begin, local: Path) -> None:
    with begin(found=facts(handles_open=1)) as result:
        assert why(result) == "open for writing"
    with open(local, "r+b"), begin() as result:
        assert why(result) == "mapped or open for writing"


def test_it_waits_for_a_shared_mapping_that_outlives_its_descriptor(begin: Begin, local: Path) -> None:
    with open(local, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 4)
    with begin() as result:
        assert why(result) == "mapped or open for writing"
    mapping.close()
    with begin() as result:
        assert isinstance(result, Reading)


def test_it_waits_while_a_new_version_takes_the_file_along(begin: Begin, local: Path) -> None:
    local.unlink()
    with begin() as result:
        assert why(result) == "local bytes are elsewhere"


def test_it_waits_once_more_after_the_clock_was_set_back(begin: Begin) -> None:
    with begin(seconds=-3600, due_seconds=3600) as result:
        assert why(result) == "the clock was set back"
    with begin(seconds=-3600) as result:
        assert isinstance(result, Reading)


@pytest.mark.parametrize("change", [b"", b"longer than it was"])
def test_a_file_that_changes_while_it_is_read_is_not_sealed(begin: Begin, local: Path, change: bytes) -> None:
    with begin() as result:
        assert isinstance(result, Reading)
        result.whole()
        local.write_bytes(change)
        assert result.finish() is None


def test_bytes_that_were_not_all_read_are_not_sealed(begin: Begin) -> None:
    with begin() as result:
        assert isinstance(result, Reading)
        assert result.read(3) == b"dat"
        assert result.finish() is None


def test_a_lease_is_given_back_at_once(local: Path) -> None:
    descriptor = os.open(local, os.O_RDONLY)
    assert leasable(descriptor)
    writing = os.open(local, os.O_WRONLY | os.O_NONBLOCK)  # would fail with EWOULDBLOCK while a lease is held
    os.close(writing)
    os.close(descriptor)


@pytest.mark.parametrize("synced", [Synced(Instant(0)), Synced(Instant(1 << 62), after=Instant(1 << 62))])
def test_bytes_that_no_common_sync_covers_need_one_of_their_own_or_are_not_sealed(
    local: Path, monkeypatch: pytest.MonkeyPatch, synced: Synced
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "the disk does not keep them")

    now = local.stat().st_ctime_ns + int((QUIET_SECONDS + 1) * NANOSECONDS)
    candidate = Candidate(Inode(7), Version(1), FileState.OPEN, Instant(now))
    sealing = reading(
        candidate, facts(), str(local), quiet_seconds=QUIET_SECONDS, synced=synced, clock=At(now), faults=NoFaults()
    )
    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(Suspect, match=r"inode 7.*does not keep"), sealing:
        pass
