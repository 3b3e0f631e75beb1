"""The quarantine: damaged bytes, kept aside as they were before something right takes their place.

One folder with two files for each thing kept: its bytes, and a line of JSON that says what they are, where they were
and why they are here. It knows no packs, targets or files: whoever mends says what it is and hands over bytes. Nothing
waits for it longer than SECONDS_MAX or fails because of it: what cannot be kept (no room, too large, unreadable) is a
line in the log, and mending goes on. Past its limits the oldest goes.

Any thread; one process. What `keep` and its kin say is kept survives loss of power. What a crash leaves of anything
else the next start removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.errors import VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import Fingerprint
from vnafs.local.spool import fingerprint_of, fsync_directory

log = logging.getLogger(__name__)

SECONDS_MAX = 120.0
"""To get one thing here; what mends it waits that long at most."""
ENTRIES_MAX = 10_000
BLOCK_BYTES = 64 * 1024
UNREADABLE_BLOCKS_MAX = 16
"""Blocks that the disk does not give, each of which may take it seconds; past these the rest is left out too."""
_BYTES, _ABOUT, _PARTIAL = ".bytes", ".json", ".partial"
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class Kind(enum.StrEnum):
    """What something was, or should have been."""

    PACK = "pack"
    FILE = "file"
    MANIFEST = "manifest"
    UNKNOWN = "unknown"
    """What was said of it is lost."""


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What damaged bytes are, and why they are kept."""

    kind: Kind
    name: str
    """A pack's id, an inode and version in hexadecimal digits with a dot between, or an object's name."""
    origin: str
    """`local`, or the name of a target after `target `."""
    why: str
    repository: int = 0
    """0: of none, or unknown."""
    inode: int = 0
    """Of a file."""
    expected_sha256: bytes = b""
    """Of the right bytes, where it is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """Something in quarantine."""

    id: int
    """When it came, in nanoseconds since 1970, made unique."""
    about: About
    size_bytes: int
    sha256: bytes = b""
    """Of the bytes as they are here, where they were read."""
    unreadable_bytes: int = 0
    """Holes in it: the disk did not give them."""

    @property
    def when(self) -> Instant:
        """When it came."""
        return Instant(self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class QuarantineSettings:
    """Limits."""

    bytes_max: int
    """0: nothing is kept."""
    kept_seconds: float
    """0: only *bytes_max* and ENTRIES_MAX end it."""
    reserve_bytes: int
    """Of the local disk that keeping something leaves alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Written:
    size_bytes: int
    sha256: bytes = b""
    unreadable_bytes: int = 0


class _NotKept(Exception):
    """Why something is not in quarantine."""


class Quarantine:
    """See the module. Its folder is made if it is not there."""

    def __init__(self, folder: str, settings: QuarantineSettings, *, clock: Clock, faults: Faults) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._kept: dict[int, Kept] = {}
        self._bytes = 0
        self._coming: dict[int, tuple[About, int]] = {}
        """What is on its way here, with its size."""
        self._last = 0
        self._is_loaded = False
        self._loading = threading.Lock()
        self._load()

    def _load(self) -> bool:
        """Find out what is there, if that is not known yet; whether it is known now."""
        with self._loading:
            if self._is_loaded:
                return True
            try:
                self._look()
            except OSError as problem:
                log.warning("quarantine.unusable", extra={"why": str(problem)})
                return False
            self._is_loaded = True
            return True

    def _look(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        names = set(os.listdir(self._folder))
        for name in names:
            stem, kind = os.path.splitext(name)
            is_left = kind == _PARTIAL or (kind == _ABOUT and f"{stem}{_BYTES}" not in names)
            if is_left:
                os.unlink(os.path.join(self._folder, name))
        found: dict[int, Kept] = {}
        for name in sorted(names):
            stem, kind = os.path.splitext(name)
            if kind != _BYTES:
                continue
            with contextlib.suppress(ValueError):
                number = int(stem, 16)
                found[number] = self._read(number)
        with self._lock:
            self._kept = found
            self._last = max(found, default=0)
            self._bytes = sum(kept.size_bytes for kept in found.values())

    def _read(self, number: int) -> Kept:
        size_bytes = os.stat(self.path(number)).st_size
        try:
            with open(self._place(number, _ABOUT), "rb") as file:
                return _decoded(number, size_bytes, json.loads(file.read()))
        except (OSError, ValueError, KeyError, TypeError):
            # it rotted too: the bytes are kept all the same
            return Kept(number, About(Kind.UNKNOWN, "", "", "what was said of it is lost"), size_bytes)

    # -- looking -----------------------------------------------------------------------------------------------

    def every(self) -> list[Kept]:
        """All there is, the oldest first."""
        with self._lock:
            return [self._kept[number] for number in sorted(self._kept)]

    def path(self, number: int) -> str:
        """Where the bytes of one are."""
        return self._place(number, _BYTES)

    def _place(self, number: int, suffix: str) -> str:
        return os.path.join(self._folder, f"{number:016x}{suffix}")

    # -- keeping -----------------------------------------------------------------------------------------------

    def keep(self, about: About, size_bytes: int, blocks: Callable[[], Iterable[bytes]]) -> bool:
        """Keep what *blocks* gives, *size_bytes* at most; whether it is here now.

        What turns out to be right, or to be here already, is not kept. *blocks* may raise VnaError and OSError.
        """
        return self._keep(about, size_bytes, lambda path: self._fetch(path, size_bytes, blocks))

    def keep_file(self, about: About, path: str, fingerprint: Fingerprint) -> bool:
        """Keep a copy of a local file, unless it changes meanwhile; whether it is here now.

        What the disk does not give is a hole in the copy.
        """

        def copy(partial: str) -> _Written:
            return self._copy(path, partial, fingerprint)

        return self._keep(about, fingerprint.size_bytes, copy)

    def keep_link(self, about: About, path: str) -> bool:
        """Keep a local file that nobody writes any more, by another name; whether it is here now."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as problem:
            return self._not_kept(about, str(problem))

        def link(partial: str) -> _Written:
            if self._has_file(found):
                raise _NotKept("it is here already")
            try:
                os.link(path, partial, follow_symlinks=False)
            except OSError as problem:
                if problem.errno not in _CANNOT_LINK:
                    raise
                return self._copy(path, partial, fingerprint_of(found))
            os.chmod(partial, 0o600)
            return _Written(found.st_size)

        return self._keep(about, found.st_size, link)

    def _keep(self, about: About, size_bytes: int, write: Callable[[str], _Written]) -> bool:
        if not self._settings.bytes_max:
            return False
        if not self._load():
            return self._not_kept(about, "the folder cannot be used")
        number = self._announce(about, size_bytes)
        partial = self._place(number, _PARTIAL)
        try:
            self._make_room(number, size_bytes)
            written = write(partial)
            self._refuse_needless(about, written)
            kept = Kept(number, about, written.size_bytes, written.sha256, written.unreadable_bytes)
            self._finish(kept, partial)
        except (OSError, VnaError, _NotKept) as problem:
            return self._not_kept(about, str(problem))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            with self._lock:
                del self._coming[number]
        log.warning(
            "quarantine.kept", extra={"kind": about.kind, "origin": about.origin, "size_bytes": kept.size_bytes}
        )
        return True

    @staticmethod
    def _not_kept(about: About, why: str) -> bool:
        log.warning("quarantine.not_kept", extra={"kind": about.kind, "origin": about.origin, "why": why})
        return False

    def _announce(self, about: About, size_bytes: int) -> int:
        """Its number. From now on whoever clears knows that it is coming."""
        with self._lock:
            self._last = max(self._clock.now(), self._last + 1)
            self._coming[self._last] = about, size_bytes
            return self._last

    def _make_room(self, number: int, size_bytes: int) -> None:
        settings = self._settings
        if size_bytes > settings.bytes_max:
            raise _NotKept(f"its {size_bytes} bytes are more than quarantine_bytes_max")
        disk = os.statvfs(self._folder)
        with self._lock:
            coming = sum(size for other, (_, size) in self._coming.items() if other != number)
            if disk.f_bavail * disk.f_frsize - coming - size_bytes < settings.reserve_bytes:
                raise _NotKept("the local disk has no room for it")
            if coming + size_bytes > settings.bytes_max:
                raise _NotKept("too much is damaged at once")
            going: list[int] = []
            left_bytes = self._bytes
            for oldest in sorted(self._kept):
                is_over = left_bytes + coming + size_bytes > settings.bytes_max
                if not is_over and len(self._kept) - len(going) < ENTRIES_MAX:
                    break
                going.append(oldest)
                left_bytes -= self._kept[oldest].size_bytes
        self._let_go(going, "quarantine.let_go")
        with self._lock:
            if self._bytes + coming + size_bytes > settings.bytes_max:
                raise _NotKept("what is kept cannot be removed")

    def _refuse_needless(self, about: About, written: _Written) -> None:
        if not written.sha256 or written.unreadable_bytes:
            return
        if written.sha256 == about.expected_sha256:
            raise _NotKept("it was right when it was read once more")
        with self._lock:
            for kept in self._kept.values():
                is_like = (kept.about.kind, kept.about.name, kept.about.origin) == (
                    about.kind,
                    about.name,
                    about.origin,
                )
                if is_like and kept.sha256 == written.sha256:
                    raise _NotKept("it is here already")

    def _has_file(self, found: os.stat_result) -> bool:
        for kept in self.every():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self.path(kept.id)), found):
                    return True
        return False

    def _finish(self, kept: Kept, partial: str) -> None:
        """What is said of it first: bytes that have their name are described."""
        try:
            path = self._place(kept.id, _ABOUT)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(_encoded(kept))
                file.flush()
                os.fsync(descriptor)
            self._faults.reach("quarantine.described")
            os.rename(partial, self.path(kept.id))
            fsync_directory(self._folder)
        except OSError:
            for suffix in (_BYTES, _ABOUT):
                with contextlib.suppress(OSError):
                    os.unlink(self._place(kept.id, suffix))
            raise
        with self._lock:
            self._kept[kept.id] = kept
            self._bytes += kept.size_bytes

    # -- bytes -------------------------------------------------------------------------------------------------

    def _fetch(self, path: str, size_bytes: int, blocks: Callable[[], Iterable[bytes]]) -> _Written:
        until = self._clock.monotonic() + SECONDS_MAX
        digest, count = hashlib.sha256(), 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            for block in blocks():
                count += len(block)
                if count > size_bytes:
                    raise _NotKept("it is larger than it was said to be")
                self._refuse_late(until)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(descriptor)
        return _Written(count, digest.digest())

    def _copy(self, source: str, path: str, fingerprint: Fingerprint) -> _Written:
        until = self._clock.monotonic() + SECONDS_MAX
        with (
            open(source, "rb", buffering=0, opener=_opened) as reading,
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as writing,
        ):
            digest, unreadable_bytes, failed = hashlib.sha256(), 0, 0
            for offset in range(0, fingerprint.size_bytes, BLOCK_BYTES):
                self._refuse_late(until)
                wanted = min(BLOCK_BYTES, fingerprint.size_bytes - offset)
                block = _read_at(reading.fileno(), offset, wanted) if failed < UNREADABLE_BLOCKS_MAX else None
                if block is None:
                    failed += 1
                    unreadable_bytes += wanted
                    block = bytes(wanted)
                digest.update(block)
                writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
            if fingerprint_of(os.fstat(reading.fileno())) != fingerprint:
                raise _NotKept("it was changed meanwhile")
        return _Written(fingerprint.size_bytes, digest.digest(), unreadable_bytes)

    def _refuse_late(self, until: float) -> None:
        if self._clock.monotonic() > until:
            raise _NotKept(f"it takes more than {SECONDS_MAX:.0f} s, and is mended now")

    # -- removing ----------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Let go of what has been here for long enough."""
        if not self._settings.kept_seconds:
            return
        before = self._clock.now() - int(self._settings.kept_seconds * NANOSECONDS)
        with self._lock:
            aged = [number for number in self._kept if number <= before]
        self._let_go(aged, "quarantine.aged")

    def remove(self, numbers: Collection[int]) -> int:
        """Remove some for good; how many of them are gone now."""
        with self._lock:
            known = [number for number in numbers if number in self._kept]
        return self._let_go(known, "quarantine.removed")

    def clear(self, is_meant: Callable[[About], bool]) -> int:
        """Remove what is meant for good; how much of it is left, on its way here, or may be here for all one knows."""
        if not self._load():
            return 1
        with self._lock:
            meant = [number for number, kept in self._kept.items() if is_meant(kept.about)]
            coming = sum(1 for about, _ in self._coming.values() if is_meant(about))
        return len(meant) - self._let_go(meant, "quarantine.cleared") + coming

    def _let_go(self, numbers: Collection[int], event: str) -> int:
        gone = 0
        for number in numbers:
            try:
                for suffix in (_BYTES, _ABOUT):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._place(number, suffix))
            except OSError as problem:
                log.warning("quarantine.stays", extra={"why": str(problem)})
                continue
            with self._lock:
                kept = self._kept.pop(number, None)
                self._bytes -= kept.size_bytes if kept else 0
            gone += 1
        if gone:
            log.info(event, extra={"count": gone})
        return gone


def _opened(path: str, _: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _read_at(descriptor: int, offset: int, wanted: int) -> bytes | None:
    """So many bytes; None when the disk does not give them, or they are not there."""
    try:
        found = os.pread(descriptor, wanted, offset)
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise
        return None
    return found if len(found) == wanted else None


def _encoded(kept: Kept) -> bytes:
    about = kept.about
    row = {
        "kind": about.kind.value,
        "name": about.name,
        "origin": about.origin,
        "why": about.why,
        "repository": about.repository,
        "inode": about.inode,
        "expected_sha256": about.expected_sha256.hex(),
        "sha256": kept.sha256.hex(),
        "unreadable_bytes": kept.unreadable_bytes,
    }
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _decoded(number: int, size_bytes: int, row: dict[str, Any]) -> Kept:
    """Raises ValueError, KeyError, TypeError."""
    about = About(
        Kind(row["kind"]),
        str(row["name"]),
        str(row["origin"]),
        str(row["why"]),
        int(row["repository"]),
        int(row["inode"]),
        bytes.fromhex(row["expected_sha256"]),
    )
    return Kept(number, about, size_bytes, bytes.fromhex(row["sha256"]), int(row["unreadable_bytes"]))
