"""A directory as a target: a local disk, a USB disk, an NFS or SMB mount.

Knows nothing of packs or of what is above the directory. Any thread may call; nothing is kept between calls but
the identity of the place. Durability: put returns after fsync of the object and of every directory that names
it. Every call first looks for the marker that probe left and works below the very directory it found it in, so
that an unmounted disk is TargetUnavailable, never "does not exist", and never written over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import stat
import threading
from collections.abc import Iterator

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import ObjectExists, ObjectMissing, TargetError, TargetRefused, TargetUnavailable
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import Powers
from vnafs.domain.rehydration import READY, Rehydration
from vnafs.targets.body import BLOCK_BYTES, BytesBody, Stretch
from vnafs.targets.directory_errors import REFUSED, directory_error, translated
from vnafs.targets.names import checked, is_object_name
from vnafs.targets.place import link_exclusively
from vnafs.targets.port import Body

_log = logging.getLogger(__name__)

MARKER = "vnafs-target.json"
INCOMING = ".vnafs-incoming"
"""Objects being written, below the root so on its file system; in one place, so that leftovers are found fast."""
LEFTOVER_SECONDS_MIN = 24 * 3600
"""A younger file in INCOMING may belong to another process that is still writing it."""
_PART = ".part"


class DirectoryTarget:
    """See Target.

    *known* is what an earlier probe saw. With it the place was initialised before: a root without the marker, or
    with another one, is unavailable. Without it the first probe makes the root (its parent must exist) and marks it.
    """

    def __init__(self, name: TargetName, root: str, clock: Clock, known: Capabilities | None = None) -> None:
        self._name = name
        self._root = root
        self._clock = clock
        self._identity_lock = threading.Lock()
        self._identity = known.identity if known is not None else ""
        self._initialised = known is not None

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._name

    def probe(self) -> Capabilities:
        """See Target. Also removes leftovers of interrupted puts that are older than a day."""
        if not self._initialised:
            with self._translated("preparing the directory"):
                self._initialise()
        with self._place() as place, self._translated("probing"):
            self._clear_leftovers(place)
        probe = ObjectName(f"probe/{os.urandom(8).hex()}")
        body = BytesBody(os.urandom(4096))
        try:
            self.put(probe, body)
            returned = hashlib.sha256(b"".join(self.read_back(probe))).digest()
            if returned != body.sha256:
                raise TargetRefused(target=self._name, why=f"{self._root} gives back other bytes than it was given")
        finally:
            with contextlib.suppress(TargetError):
                self.delete(probe)
        return Capabilities(
            exclusive_create=True,
            exclusive_create_multipart=True,
            checksum_sha256=False,
            checksum_md5=False,
            multipart=False,
            identity=self._identity,
        )

    def powers(self) -> Powers:
        """See Target. There is no credential: whoever runs this may do what the file system lets them."""
        return Powers()

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        checked(name)
        parent, leaf = _split(name)
        temporary = f"{os.urandom(12).hex()}{_PART}"
        with self._place() as place, Stretch(body) as reader:
            with self._translated(f"writing {body.size_bytes} bytes", local=reader):
                directory = _ensure_directory(place, parent)
            try:
                with self._translated(f"writing {body.size_bytes} bytes", local=reader):
                    if not _exists(directory, leaf):
                        incoming = _ensure_directory(place, INCOMING)
                        try:
                            _write(incoming, temporary, reader)
                            if not link_exclusively(incoming, temporary, directory, leaf):
                                self._refuse(f"{self._root} supports neither hard links nor exclusive renames")
                        finally:
                            _remove(incoming, temporary)
                            os.close(incoming)
                    # An equal object may be there from a put that died before this line: sync its name either way.
                    _sync_directory(directory)
                    size_bytes = os.stat(leaf, dir_fd=directory).st_size
            finally:
                os.close(directory)
        if size_bytes != body.size_bytes:
            raise ObjectExists(target=self._name, name=name)
        return Evidence(size_bytes, None)

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        with self._opened(name) as (file, size_bytes), self._translated("reading"):
            at = span.offset
            stop = size_bytes if span.stop is None else min(span.stop, size_bytes)
            while at < stop:
                data = os.pread(file, min(BLOCK_BYTES, stop - at), at)
                if not data:
                    raise TargetUnavailable(target=self._name, why=f"{name} ended {stop - at} bytes early")
                at += len(data)
                yield data

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target. fsync(2) first, then O_DIRECT; where that is not to be had, posix_fadvise(2) drops the cache."""
        with self._opened(name) as (file, size_bytes), self._translated("reading back"):
            os.fsync(file)
            direct = _reopened_direct(file)
            try:
                if direct is None:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                at = 0
                with mmap.mmap(-1, BLOCK_BYTES) as buffer:  # anonymous memory is page-aligned, as O_DIRECT demands
                    while at < size_bytes:
                        count = os.preadv(file if direct is None else direct, [buffer], at)
                        if not count:
                            raise TargetUnavailable(
                                target=self._name, why=f"{name} ended {size_bytes - at} bytes early"
                            )
                        at += count
                        yield buffer[:count]
            finally:
                if direct is not None:
                    os.close(direct)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target. Files are always ready."""
        self.evidence(name)
        return READY

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target. A file system vouches for a size only."""
        with self._opened(name) as (_file, size_bytes):
            return Evidence(size_bytes, None)

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target. Holds one directory's names in memory at a time for each level."""
        with self._place() as place, self._translated("listing"):
            yield from _walk(place, "", prefix)

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        parent, leaf = _split(checked(name))
        with self._place() as place, self._translated("removing an object"):
            try:
                directory = _open_directory(place, parent)
            except FileNotFoundError:
                return
            try:
                if _remove(directory, leaf):
                    _sync_directory(directory)
            finally:
                os.close(directory)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target. A directory has no locks that would hold against its owner."""
        del until
        self.evidence(name)
        self._refuse("a directory has no locks")

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        self.evidence(name)
        return None

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        with contextlib.suppress(ObjectMissing), self._opened(name):
            return True
        return False

    def close(self) -> None:
        """See Target."""

    # -- the place ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self) -> Iterator[int]:
        """The root, opened and known to be ours; everything else is done relative to it."""
        place = -1
        try:
            try:
                place = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                found = _read_marker(place)
            except OSError as error:
                if error.errno in REFUSED:
                    raise directory_error(self._name, self._root, error, "opening") from error
                raise TargetUnavailable(
                    target=self._name,
                    why=f"{self._root} is not there or has lost {MARKER} ({os.strerror(error.errno or 0)}); "
                    "is the disk mounted?",
                ) from error
            with self._identity_lock:
                self._identity = self._identity or found
                expected = self._identity
            if found != expected or not found:
                raise TargetUnavailable(
                    target=self._name,
                    why=f"{self._root} is another place (marker {found or 'unreadable'}, not {expected})",
                )
            yield place
        finally:
            if place >= 0:
                os.close(place)

    @contextlib.contextmanager
    def _opened(self, name: ObjectName) -> Iterator[tuple[int, int]]:
        """The object open for reading, and its size in bytes."""
        checked(name)
        with self._place() as place:
            with self._translated("opening an object"):
                try:
                    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=place)
                except (FileNotFoundError, NotADirectoryError):
                    raise ObjectMissing(target=self._name, name=name) from None
            try:
                with self._translated("opening an object"):
                    status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise ObjectMissing(target=self._name, name=name)
                yield file, status.st_size
            finally:
                os.close(file)

    def _initialise(self) -> None:
        try:
            os.mkdir(self._root, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise TargetUnavailable(
                target=self._name, why=f"the parent of {self._root} does not exist; is the disk mounted?"
            ) from error
        else:
            _sync_path(os.path.dirname(self._root.rstrip("/")) or "/")
        place = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _exists(place, MARKER):
                marker = json.dumps({"vnafs_target": 1, "identity": os.urandom(16).hex()}).encode() + b"\n"
                temporary = f".{os.urandom(8).hex()}{_PART}"
                try:
                    with Stretch(BytesBody(marker)) as reader:
                        _write(place, temporary, reader)
                    if not link_exclusively(place, temporary, place, MARKER):
                        self._refuse(f"{self._root} supports neither hard links nor exclusive renames")
                finally:
                    _remove(place, temporary)
                _sync_directory(place)
        finally:
            os.close(place)
        self._initialised = True

    def _clear_leftovers(self, place: int) -> None:
        """Remove files that a put left behind when its process died long ago."""
        incoming = _ensure_directory(place, INCOMING)
        now = self._clock.now()
        try:
            with os.scandir(incoming) as entries:
                aged = [
                    entry.name
                    for entry in entries
                    if entry.name.endswith(_PART)
                    and now - entry.stat(follow_symlinks=False).st_mtime_ns > LEFTOVER_SECONDS_MIN * NANOSECONDS
                ]
            for leftover in aged:
                _remove(incoming, leftover)
        finally:
            os.close(incoming)
        if aged:
            _log.info("target_leftovers_removed", extra={"target": self._name, "count": len(aged)})

    # -- errors ---------------------------------------------------------------------------------------------

    def _translated(self, doing: str, local: Stretch | None = None) -> contextlib.AbstractContextManager[None]:
        return translated(self._name, self._root, doing, local)

    def _refuse(self, why: str) -> None:
        raise TargetRefused(target=self._name, why=why)


# -- steps on directory descriptors ----------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition("/")
    return parent, leaf


def _read_marker(place: int) -> str:
    """The identity in the marker; empty when it cannot be understood."""
    file = os.open(MARKER, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
    try:
        text = os.read(file, 4096)
    finally:
        os.close(file)
    try:
        identity = json.loads(text)["identity"]
    except (ValueError, KeyError, TypeError):
        return ""
    return identity if isinstance(identity, str) else ""


def _open_directory(place: int, path: str) -> int:
    return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)


def _ensure_directory(place: int, path: str) -> int:
    """Open *path* below *place*; what is missing is made, and its name synced, from the top down."""
    try:
        return _open_directory(place, path)
    except FileNotFoundError:
        pass
    at = _open_directory(place, "")
    try:
        for part in path.split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=at)
            _sync_directory(at)  # also when a rival made it: its own sync may come later than our answer
            below = _open_directory(at, part)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def _exists(directory: int, leaf: str) -> bool:
    try:
        os.stat(leaf, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(directory: int, leaf: str) -> bool:
    try:
        os.unlink(leaf, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _write(directory: int, leaf: str, reader: Stretch) -> None:
    """A new file with all of *reader*, synced."""
    file = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        while data := reader.read(BLOCK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)


def _reopened_direct(file: int) -> int | None:
    """The same file past the page cache, or None where the file system cannot (EINVAL at open or at the first read)."""
    try:
        direct = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP}:
            return None
        raise
    with mmap.mmap(-1, BLOCK_BYTES) as buffer:
        try:
            os.preadv(direct, [buffer], 0)
        except OSError as error:
            os.close(direct)
            if error.errno == errno.EINVAL:
                return None
            raise
    return direct


def _walk(place: int, path: str, prefix: str) -> Iterator[ObjectName]:
    """Object names below *path* in the order of their text: a directory sorts as its name and a slash."""
    try:
        directory = _open_directory(place, path)
    except FileNotFoundError:
        return  # removed since its parent was read
    try:
        with os.scandir(directory) as entries:
            found = sorted(
                (f"{path}/{entry.name}" if path else entry.name) + ("/" if entry.is_dir(follow_symlinks=False) else "")
                for entry in entries
                if is_object_name(entry.name) and (path or entry.name != MARKER)
            )
    finally:
        os.close(directory)
    for name in found:
        if name.endswith("/"):
            if name.startswith(prefix) or prefix.startswith(name):
                yield from _walk(place, name[:-1], prefix)
        elif name.startswith(prefix):
            yield ObjectName(name)


def _sync_path(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync_directory(directory)
    finally:
        os.close(directory)


def _sync_directory(directory: int) -> None:
    """Names on stable storage. EINVAL (fsync(2)) means that this file system has no such call: nothing to do."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
