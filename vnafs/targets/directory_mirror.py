"""A directory as a plain mirror: objects are files, the slashes in their names are directories.

A file is written under another name, synced, read back and renamed to its own, so whoever reads the directory finds
old bytes or new ones. Nothing follows symbolic links that others may have put there. Files and directories are made
as the umask says; the top is made for its owner alone unless it is there, so its mode says who reads the mirror.
Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator

from vnafs.domain.clock import Clock
from vnafs.domain.errors import Damaged, ObjectExists, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.body import BLOCK_BYTES, BytesBody, Stretch
from vnafs.targets.directory_errors import translated
from vnafs.targets.mirror import MARKER, Original
from vnafs.targets.port import Body

INCOMING = ".vnafs-incoming"
"""Files being written, below the top so on its file system."""
ATTEMPTS_MAX = 4
"""A directory may be removed, being empty, between being found and being used."""
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})
"""See `place`; EACCES where one may write files and not link them."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class DirectoryMirror:
    """See Mirror. *archive* is the id of the archive that is mirrored."""

    def __init__(self, name: TargetName, root: str, archive: bytes, clock: Clock) -> None:
        self._name = name
        self._root = root
        self._archive = archive.hex()
        self._clock = clock
        self._run = os.urandom(6).hex()
        """Begins the names of files that are being written; an archive has one process that writes to its mirror."""

    @property
    def name(self) -> TargetName:
        """See Mirror."""
        return self._name

    def probe(self, *, known: bool) -> bool:
        """See Mirror. Also removes what interrupted calls of other processes left."""
        was_one = True
        with self._translated("looking at the directory"):
            if not known:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._root, 0o700)
            top = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if self._marked(top) is None:
                    was_one = False
                    self._begin(top, known=known)
            finally:
                os.close(top)
        with self._place() as place, self._translated("removing what was left"):
            self._clear_leftovers(place)
        return was_one

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        """See Mirror."""
        parent, _, leaf = name.rpartition("/")
        with self._place() as place, Stretch(body) as reader, self._translated("writing", local=reader):
            incoming = _ensured(place, INCOMING)
            temporary = f"{self._run}{os.urandom(6).hex()}.part"
            try:
                _write(incoming, temporary, reader, mtime_ns)
                self._compare(incoming, temporary, body)
                self._move(incoming, temporary, place, parent, leaf)
            finally:
                _unlink(incoming, temporary)
                os.close(incoming)

    def copy(self, source: Original, name: str, mtime_ns: int) -> bool:
        """See Mirror. One file by two names: no file of a mirror changes, another one takes its name."""
        parent, _, leaf = name.rpartition("/")
        with self._place() as place, self._translated("copying"):
            incoming = _ensured(place, INCOMING)
            temporary = f"{self._run}{os.urandom(6).hex()}.part"
            try:
                if not _linked(place, source.name, incoming, temporary):
                    return False
                found = os.stat(temporary, dir_fd=incoming, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode) or found.st_mtime_ns != mtime_ns:
                    return False
                if found.st_size != source.size_bytes or _digest_of(incoming, temporary) != source.sha256:
                    return False
                self._move(incoming, temporary, place, parent, leaf)
                return True
            finally:
                _unlink(incoming, temporary)
                os.close(incoming)

    def remove(self, name: str) -> None:
        """See Mirror. Directories that are empty then go too."""
        with self._place() as place, self._translated("removing"):
            parts = name.split("/")
            folders = [os.dup(place)]
            try:
                try:
                    folders.extend(_descended(place, parts[:-1]))
                    if _unlink(folders[-1], parts[-1]):
                        _sync(folders[-1])
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    return  # there is no such file
                for depth in range(len(parts) - 1, 0, -1):
                    try:
                        os.rmdir(parts[depth - 1], dir_fd=folders[depth - 1])
                    except OSError:
                        return  # something is in it, or it is gone
                    _sync(folders[depth - 1])
            finally:
                for folder in folders:
                    os.close(folder)

    def list(self) -> Iterator[str]:
        """See Mirror."""
        with self._place() as place, self._translated("listing"):
            yield from _walk(place, "")

    def close(self) -> None:
        """See Mirror."""

    # -- parts ----------------------------------------------------------------------------------------------------

    def _begin(self, top: int, *, known: bool) -> None:
        if known:
            raise TargetUnavailable(target=self._name, why=f"{self._root} has lost {MARKER}; is the disk mounted?")
        if any(entry != INCOMING and not entry.startswith(MARKER) for entry in os.listdir(top)):
            raise TargetRefused(
                target=self._name, why=f"{self._root} is not empty, and no mirror; name an empty directory"
            )
        temporary = f"{MARKER}.{os.urandom(8).hex()}"
        marker = json.dumps({"vnafs_mirror": 1, "archive": self._archive}).encode() + b"\n"
        with Stretch(BytesBody(marker)) as reader:
            _write(top, temporary, reader, self._clock.now())
        os.rename(temporary, MARKER, src_dir_fd=top, dst_dir_fd=top)
        _sync(top)

    def _marked(self, top: int) -> str | None:
        """The archive in the marker; None without one."""
        try:
            file = os.open(MARKER, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=top)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(os.read(file, 4096))["archive"]
        except (ValueError, KeyError, TypeError):
            found = "unreadable"
        finally:
            os.close(file)
        if found != self._archive:
            raise TargetRefused(target=self._name, why=f"{self._root} is the mirror of another archive ({found})")
        return str(found)

    @contextlib.contextmanager
    def _place(self) -> Iterator[int]:
        """The top, opened and known to be this mirror."""
        try:
            place = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetUnavailable(
                target=self._name, why=f"{self._root}: {os.strerror(error.errno or 0)}; is the disk mounted?"
            ) from error
        try:
            with self._translated("reading the marker"):
                found = self._marked(place)
            if found is None:
                raise TargetUnavailable(target=self._name, why=f"{self._root} has lost {MARKER}; is the disk mounted?")
            yield place
        finally:
            os.close(place)

    def _compare(self, folder: int, leaf: str, body: Body) -> None:
        """Raises Damaged."""
        if _digest_of(folder, leaf) != body.sha256:
            raise Damaged(what=f"What was written to mirror {self._name}")

    def _move(self, incoming: int, temporary: str, place: int, parent: str, leaf: str) -> None:
        for attempt in range(ATTEMPTS_MAX):
            try:
                folder = _ensured(place, parent)
            except NotADirectoryError:
                raise ObjectExists(target=self._name, name="a part of a path") from None
            try:
                os.rename(temporary, leaf, src_dir_fd=incoming, dst_dir_fd=folder)
                _sync(folder)
            except FileNotFoundError:
                if attempt == ATTEMPTS_MAX - 1:
                    raise
            except IsADirectoryError:
                try:
                    os.rmdir(leaf, dir_fd=folder)
                except OSError:
                    raise ObjectExists(target=self._name, name="the name of a file") from None
            else:
                return
            finally:
                os.close(folder)
        raise TargetUnavailable(target=self._name, why="directories come and go while a file is put there")

    def _clear_leftovers(self, place: int) -> None:
        incoming = _ensured(place, INCOMING)
        try:
            for leaf in os.listdir(incoming):
                if not leaf.startswith(self._run):
                    _unlink(incoming, leaf)
        finally:
            os.close(incoming)

    def _translated(self, doing: str, local: Stretch | None = None) -> contextlib.AbstractContextManager[None]:
        return translated(self._name, self._root, doing, local)


# -- steps on directory descriptors ----------------------------------------------------------------------------


def _descended(place: int, parts: list[str]) -> Iterator[int]:
    """Descriptors of the directories of a path, one after the other; the caller closes each."""
    at = place
    for part in parts:
        at = os.open(part, _FOLDER, dir_fd=at)
        yield at


def _ensured(place: int, path: str) -> int:
    """A descriptor of *path* below *place*; what is missing is made, and its name synced."""
    at = os.dup(place)
    try:
        for part in path.split("/") if path else ():
            try:
                below = os.open(part, _FOLDER, dir_fd=at)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=at)
                _sync(at)
                below = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def _write(folder: int, leaf: str, reader: Stretch, mtime_ns: int) -> None:
    file = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        while data := reader.read(BLOCK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
        os.utime(file, ns=(mtime_ns, mtime_ns))
        os.fsync(file)
    finally:
        os.close(file)


def _digest_of(folder: int, leaf: str) -> bytes:
    """SHA-256, read past the page cache."""
    found = hashlib.sha256()
    file = os.open(leaf, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        while data := os.read(file, BLOCK_BYTES):
            found.update(data)
    finally:
        os.close(file)
    return found.digest()


def _linked(place: int, source: str, incoming: int, temporary: str) -> bool:
    """Whether a file got one more name: not where it is gone, or the file system has no links."""
    *above, leaf = source.split("/")
    folders: list[int] = []
    try:
        folders.extend(_descended(place, above))
        folder = folders[-1] if folders else place
        os.link(leaf, temporary, src_dir_fd=folder, dst_dir_fd=incoming, follow_symlinks=False)
    except OSError as problem:
        if problem.errno not in _GONE | _NO_LINKS:
            raise
        return False
    finally:
        for folder in folders:
            os.close(folder)
    return True


def _unlink(folder: int, leaf: str) -> bool:
    try:
        os.unlink(leaf, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _sync(folder: int) -> None:
    """EINVAL (fsync(2)): this file system has no such call."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _walk(place: int, path: str) -> Iterator[str]:
    folder = os.open(path or ".", _FOLDER, dir_fd=place)
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    finally:
        os.close(folder)
    for name, is_folder in found:
        below = f"{path}/{name}" if path else name
        if is_folder and below != INCOMING:
            yield from _walk(place, below)
        elif not is_folder and not below.startswith(MARKER):
            yield below
