"""The spool: local bytes of every file that has any, one plain file at (inode, version).

Bytes of a version that is over may also lie beside, as a copy: at the version that `copy_of` says, in a folder of
copies. There a start finds every one of them.

It knows no names, rows or states; whoever calls decides what should exist. Calls may block on the local disk but on
nothing else. Nothing here is durable until a descriptor and its directory were synced, which callers ask for.

Directories are filled in sequence (`inode >> 12`): ext4 then creates files about twice as fast as with hashed ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterable, Iterator

from vnafs.domain.errors import Damaged, FileTooBig, NoSpace, StorageFailed, TooManyOpen, VnaError
from vnafs.domain.files import Fingerprint
from vnafs.domain.ids import Inode, Version
from vnafs.local import cloning
from vnafs.local.syncing import names_follow_bytes

_LOG = logging.getLogger(__name__)

FILES_PER_DIRECTORY_BITS = 12
QUARANTINE = "quarantine"
COPIES = "copies"
_COPY = 1 << 62
"""More than any file has versions."""
_DIRECTORIES_KNOWN_MAX = 4096
_BASE = os.O_CLOEXEC | os.O_NOFOLLOW


def fingerprint_of(found: os.stat_result) -> Fingerprint:
    """What a stat result says of a local file's bytes."""
    return Fingerprint(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def local_error(error: OSError, doing: str) -> VnaError:
    """The domain's word for what the local file system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(why="the local disk is full")
    if error.errno == errno.EFBIG:
        return FileTooBig(limit_bytes="the local file system's limit")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpen(limit="as many as the system allows")
    return StorageFailed(doing=doing, why=os.strerror(error.errno or errno.EIO))


def sync_error(error: OSError, doing: str) -> TooManyOpen | StorageFailed:
    """The same of a sync: what it did not keep is lost, whatever the reason, unless it was never begun."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpen(limit="as many as the system allows")
    return StorageFailed(doing=doing, why=error.strerror or str(error))


def copy_of(version: Version) -> Version:
    """The place of a copy of a version's bytes."""
    return Version(version | _COPY)


def original_of(place: Version) -> Version:
    """The version whose bytes are at a place."""
    return Version(place & ~_COPY)


def fsync_directory(path: str) -> None:
    """Make the names in a directory survive loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spool:
    """Local files below one directory. Raises NoSpace, Damaged, StorageFailed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._quarantine = os.path.join(directory, QUARANTINE)
        self._known: dict[str, None] = {}
        self._clones = True
        """Nobody heard yet that the file system cannot."""
        try:
            os.makedirs(self._quarantine, mode=0o700, exist_ok=True)
        except OSError as error:
            raise local_error(error, "preparing the spool") from error
        self.names_follow_bytes = names_follow_bytes(directory)
        """Whether the first sync of a file that `create` made keeps its name too."""

    # -- where ----------------------------------------------------------------------------------------------

    def local_directory(self, inode: Inode) -> str:
        """The directory that holds every version of *inode*."""
        group = inode >> FILES_PER_DIRECTORY_BITS
        return f"{self.directory}/{group & 0xFF:02x}/{group:x}"

    def local_path(self, inode: Inode, version: Version) -> str:
        """Where the bytes of one version are, if they are; a pure function."""
        if version >= _COPY:
            return f"{self.directory}/{COPIES}/{inode:x}.{version:x}"
        group = inode >> FILES_PER_DIRECTORY_BITS
        return f"{self.directory}/{group & 0xFF:02x}/{group:x}/{inode:x}.{version:x}"

    # -- making and moving ----------------------------------------------------------------------------------

    def create(self, inode: Inode, version: Version) -> int:
        """A new, empty file, open for reading and writing.

        A file that is in the way belongs to nobody: it goes to quarantine and is never reused.
        """
        path = self.local_path(inode, version)
        for _ in range(3):
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BASE, 0o600)
            except FileNotFoundError:
                self._make_directory(self.local_directory(inode))
            except FileExistsError:
                self.quarantine(inode, version)
            except OSError as error:
                raise local_error(error, "creating a local file") from error
        raise StorageFailed(doing="creating a local file", why="its place cannot be cleared")

    def open(self, inode: Inode, version: Version, *, write: bool) -> int:
        """A descriptor of bytes that must be there. Raises Damaged when they are not."""
        try:
            return os.open(self.local_path(inode, version), (os.O_RDWR if write else os.O_RDONLY) | _BASE)
        except FileNotFoundError as error:
            _LOG.error("spool.bytes_missing", extra={"inode": inode, "version": version})
            raise Damaged(what=f"inode {inode} version {version} (its local bytes are missing)") from error
        except OSError as error:
            raise local_error(error, "opening a local file") from error

    def is_in_use(self, inode: Inode, version: Version) -> bool:
        """Whether any process has local bytes open or mapped, if only to read them; False when there are none.

        Where the kernel reads a local file by itself, a mapping outlives the close that we are told of. A lease for
        writing is granted only while nobody has the file (fcntl(2), F_SETLEASE); it is given back at once. Its break
        sends SIGIO, which whoever asks ignores.
        """
        try:
            descriptor = os.open(self.local_path(inode, version), os.O_RDONLY | _BASE)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error(error, "opening a local file") from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except BlockingIOError:
            return True
        except OSError as error:
            raise local_error(error, "asking who has a local file") from error
        finally:
            os.close(descriptor)
        return False

    def stat(self, inode: Inode, version: Version) -> os.stat_result | None:
        """What the local file system says of one version, or None when it has no bytes here."""
        try:
            return os.stat(self.local_path(inode, version), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error(error, "looking at a local file") from error

    def fingerprint(self, inode: Inode, version: Version) -> Fingerprint | None:
        """The fingerprint of one version's local bytes, or None when there are none."""
        found = self.stat(inode, version)
        return None if found is None else fingerprint_of(found)

    def move(self, inode: Inode, version: Version, to: Version) -> None:
        """Bytes of one version become those of the next. Raises Damaged when they are not there."""
        if self.stat(inode, to) is not None:
            self.quarantine(inode, to)
        try:
            os.rename(self.local_path(inode, version), self.local_path(inode, to))
        except FileNotFoundError as error:
            raise Damaged(what=f"inode {inode} version {version} (its local bytes are missing)") from error
        except OSError as error:
            raise local_error(error, "beginning a version") from error

    def clone(self, inode: Inode, version: Version) -> bool:
        """Make a copy of a version's bytes that shares its blocks; False where the file system cannot."""
        if not self._clones:
            return False
        with self._copying(inode, version) as (reading, writing):
            self._clones = cloning.clone(reading, writing)
        if not self._clones:
            self.remove(inode, copy_of(version))
        return self._clones

    def copy(self, inode: Inode, version: Version) -> None:
        """Make a copy of a version's bytes, which takes as long as they take to copy."""
        with self._copying(inode, version) as (reading, writing):
            size_bytes = os.fstat(reading).st_size
            os.ftruncate(writing, size_bytes)
            for offset, length in cloning.runs(reading, size_bytes):
                cloning.transfer(reading, writing, offset, length)

    @contextlib.contextmanager
    def _copying(self, inode: Inode, version: Version) -> Iterator[tuple[int, int]]:
        """The bytes of a version and a new, empty copy; nothing of it is left when the block fails."""
        place = copy_of(version)
        self.remove(inode, place)  # of an attempt that failed: nobody's
        reading = self.open(inode, version, write=False)
        try:
            os.makedirs(os.path.join(self.directory, COPIES), mode=0o700, exist_ok=True)
            writing = os.open(self.local_path(inode, place), os.O_RDWR | os.O_CREAT | os.O_EXCL | _BASE, 0o600)
            try:
                yield reading, writing
            except OSError:
                self.remove(inode, place)
                raise
            finally:
                os.close(writing)
        except OSError as error:
            raise local_error(error, "copying local bytes") from error
        finally:
            os.close(reading)

    def copies(self) -> Iterator[tuple[Inode, Version]]:
        """Every copy that there is, by its place."""
        yield from _places(os.path.join(self.directory, COPIES))

    def adopt(self, inode: Inode, version: Version, staged: str, *, sync: bool) -> Fingerprint:
        """A complete file from elsewhere on this disk becomes the bytes of a version.

        With *sync* its place survives loss of power too; its bytes are whoever staged it to sync.
        """
        directory = self.local_directory(inode)
        if self.stat(inode, version) is not None:
            self.quarantine(inode, version)
        path = self.local_path(inode, version)
        try:
            self._make_directory(directory)
            os.chmod(staged, 0o600)
            os.rename(staged, path)
            if sync:
                fsync_directory(directory)
            return fingerprint_of(os.stat(path, follow_symlinks=False))
        except OSError as error:
            raise local_error(error, "adopting a recalled file") from error

    def remove(self, inode: Inode, version: Version) -> bool:
        """Forget local bytes; says whether there were any."""
        try:
            os.unlink(self.local_path(inode, version))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error(error, "removing a local file") from error
        return True

    def sync_places(self, places: Iterable[tuple[Inode, Version]]) -> None:
        """What was made or removed at these places is so after loss of power too. Blocks; any thread."""
        for directory in {os.path.dirname(self.local_path(inode, version)) for inode, version in places}:
            try:
                fsync_directory(directory)
            except FileNotFoundError:
                continue  # nothing was ever there
            except OSError as error:
                raise sync_error(error, "syncing the spool") from error

    def quarantine(self, inode: Inode, version: Version) -> None:
        """Put a file that no row names where nobody reuses it and an administrator can look."""
        path = self.local_path(inode, version)
        for attempt in range(1000):
            place = f"{self._quarantine}/{inode:x}.{version:x}.{attempt}"
            try:
                os.link(path, place, follow_symlinks=False)  # never over another one, as rename would
                os.unlink(path)
            except FileExistsError:
                continue
            except FileNotFoundError:
                return
            except OSError as error:
                raise local_error(error, "moving a file to quarantine") from error
            _LOG.warning("spool.quarantined", extra={"inode": inode, "version": version})
            return
        raise StorageFailed(doing="moving a file to quarantine", why="a thousand files of that version are there")

    # -- looking --------------------------------------------------------------------------------------------

    def versions_near(self, inode: Inode) -> Iterator[tuple[Inode, Version]]:
        """Every version in the directory that *inode* belongs to: at most some thousands."""
        yield from _places(self.local_directory(inode))

    def _make_directory(self, directory: str) -> None:
        if directory in self._known:
            return
        above = os.path.dirname(directory)
        try:
            for path in (above, directory):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                    # once in 4096 inodes: a durable file needs a durable way to it
                    fsync_directory(os.path.dirname(path))
        except OSError as error:
            raise local_error(error, "making a spool directory") from error
        if len(self._known) >= _DIRECTORIES_KNOWN_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[directory] = None


def _places(folder: str) -> Iterator[tuple[Inode, Version]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        for item in found:
            number, _, version = item.name.partition(".")
            try:
                yield Inode(int(number, 16)), Version(int(version, 16))
            except ValueError:
                _LOG.warning("spool.stranger", extra={"folder": os.path.basename(folder)})


def is_plain(found: os.stat_result) -> bool:
    """Whether a staged path is a regular file with one name, as a recall leaves it."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
