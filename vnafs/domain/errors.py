"""Everything that can go wrong, as a taxonomy.

The docstring of a class is its message; its fields fill the braces. Each class also says how every door shows
it: an errno for FUSE, an exit code for the command line, a status for HTTP. Adapters translate foreign errors
into these once; doors render them once.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar


class VnaError(Exception):
    """Something went wrong: {why}."""

    exit_code: ClassVar[int] = 3
    errno: ClassVar[int] = _errno.EIO
    http: ClassVar[int] = 500

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        super().__init__()

    def __str__(self) -> str:
        # only now: most refusals of a file system become a number, thousands in a second, and nobody reads them
        template = (type(self).__doc__ or "").strip().splitlines()[0]
        return template.format_map(_Missing(self.fields))

    @property
    def code(self) -> str:
        """The stable name that programs compare, as the control sockets send it."""
        return type(self).__name__


class _Missing(dict[str, object]):
    """A field that the raiser left out shows its name instead of hiding the error behind another one."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


# -- what a caller asked for cannot be: rendered as the errno POSIX names ------------------------------------


class FileSystemError(VnaError):
    """The file system refused: {why}."""


class NotFound(FileSystemError):
    """{what} does not exist."""

    errno = _errno.ENOENT
    http = 404


class AlreadyExists(FileSystemError):
    """{what} exists already."""

    errno = _errno.EEXIST
    http = 409


class NotADirectory(FileSystemError):
    """{what} is not a directory."""

    errno = _errno.ENOTDIR
    http = 400


class IsADirectory(FileSystemError):
    """{what} is a directory."""

    errno = _errno.EISDIR
    http = 400


class DirectoryNotEmpty(FileSystemError):
    """Directory {what} is not empty."""

    errno = _errno.ENOTEMPTY
    http = 409


class NotPermitted(FileSystemError):
    """{what} is not permitted: {why}."""

    errno = _errno.EPERM
    http = 403


class Retained(NotPermitted):
    """{what} is retained until {until} ({mode}): until then it is neither changed nor removed nor renamed."""


class Committed(NotPermitted):
    """{what} was committed; its retention ended at {until}, so it may be removed, but never changed."""


class Held(NotPermitted):
    """{what} is under legal hold ({holds}): it is neither changed nor removed nor renamed."""


class AccessDenied(FileSystemError):
    """Access to {what} is denied."""

    errno = _errno.EACCES
    http = 403


class CrossesRepositories(FileSystemError):
    """Names cannot move or be linked from one repository to another; copy instead."""

    errno = _errno.EXDEV
    http = 400


class NameTooLong(FileSystemError):
    """A name has {length_bytes} bytes; {length_bytes_max} are allowed."""

    errno = _errno.ENAMETOOLONG
    http = 400


class InvalidArgument(FileSystemError):
    """{why}."""

    errno = _errno.EINVAL
    http = 400


class NoSuchAttribute(FileSystemError):
    """There is no extended attribute {what}."""

    errno = _errno.ENODATA
    http = 404


class NotSupported(FileSystemError):
    """{what} is not supported."""

    errno = _errno.EOPNOTSUPP
    http = 501


class TooManyLinks(FileSystemError):
    """{what} has {links} links, the most there may be."""

    errno = _errno.EMLINK
    http = 409


class TooBig(FileSystemError):
    """{what} is larger than {limit_bytes} bytes."""

    errno = _errno.E2BIG
    http = 413


class FileTooBig(FileSystemError):
    """A file cannot grow past {limit_bytes} bytes."""

    errno = _errno.EFBIG
    http = 413


class BadHandle(FileSystemError):
    """The handle is not open for this."""

    errno = _errno.EBADF
    http = 400


class Busy(FileSystemError):
    """{what} is busy: {why}."""

    errno = _errno.EBUSY
    http = 409


class NoSpace(FileSystemError):
    """No space: {why}."""

    exit_code = 1
    errno = _errno.ENOSPC
    http = 507


class OverQuota(FileSystemError):
    """Repository {repository} may have {limit} {unit}, {used} are used and {wanted} more wanted: delete, or {fix}."""

    exit_code = 1
    errno = _errno.EDQUOT
    http = 507


class ReadOnly(FileSystemError):
    """{what} is read-only: {why}."""

    errno = _errno.EROFS
    http = 403


class Superseded(FileSystemError):
    """This archive went on elsewhere: {why}."""

    errno = _errno.EROFS
    http = 409


class TooManyOpen(FileSystemError):
    """{limit} files are open, the most there may be."""

    errno = _errno.ENFILE
    http = 503


class PastTheEnd(FileSystemError):
    """{what}: there is nothing there any more."""

    errno = _errno.ENXIO
    http = 416


class TooManyWaiting(FileSystemError):
    """{limit} requests wait for bytes to come back, the most there may be."""

    errno = _errno.EAGAIN
    http = 503


# -- bytes that are not what they should be ------------------------------------------------------------------


class Damaged(VnaError):
    """{what} does not match its checksum; nothing of it was served."""

    exit_code = 4


class FormatUnknown(VnaError):
    """{what} has format version {found}; this program reads up to {known}. Use a newer vnafs."""

    exit_code = 4


class KeyWrong(VnaError):
    """The key does not open {what}."""

    http = 403


class KeyMissing(VnaError):
    """{what} is encrypted, and the key for it is not here: {why}."""

    http = 403


class IndexBroken(VnaError):
    """The index in {what} cannot be used: {why}."""

    exit_code = 4


class StorageFailed(VnaError):
    """The local disk failed while {doing}: {why}. The service stops; nothing unsynced is acknowledged."""

    exit_code = 4


class Suspect(StorageFailed):
    """The local disk did not keep all bytes of {what}: {why}. None of them is copied; write the file anew."""


class CursorLost(VnaError):
    """A cursor of the feed leads nowhere; its follower starts again from a snapshot."""


class CursorBehind(CursorLost):
    """A cursor stands at event {cursor} but the feed begins at {begin}; its follower starts again from a snapshot."""


class CursorAhead(CursorLost):
    """A cursor stands at event {cursor} but the feed ends at {end}; its follower starts again from a snapshot."""


# -- targets ------------------------------------------------------------------------------------------------


class TargetError(VnaError):
    """Target {target}: {why}."""

    http = 502


class TargetUnavailable(TargetError):
    """Target {target} cannot be reached now: {why}. It is tried again."""

    exit_code = 1
    errno = _errno.EIO
    http = 503


class TargetRefused(TargetError):
    """Target {target} refuses: {why}. Someone must act before it works."""


class ObjectMissing(TargetError):
    """Target {target} has no object {name}."""

    http = 404


class ObjectExists(TargetError):
    """Target {target} has another object at {name} already."""

    http = 409


class ObjectArchived(TargetError):
    """Target {target} has {name} in an archive class; it must be asked back before it can be read."""

    exit_code = 1
    errno = _errno.EAGAIN
    http = 503


class ObjectLocked(TargetError):
    """Target {target} keeps {name} locked until {until}."""

    errno = _errno.EPERM
    http = 423


class ObjectStays(TargetError):
    """Target {target} has {name}, which is wrong and stays there: {why}. Other copies are untouched."""

    http = 409


# -- recall --------------------------------------------------------------------------------------------------


class RecallFailed(VnaError):
    """{what} could not be brought back: {why}."""

    exit_code = 1


class RecallRefused(RecallFailed):
    """Nothing is brought back: {why}."""


class RecallForbidden(RecallRefused):
    """Nothing is brought back for {who}: {why}."""

    exit_code = 3
    errno = _errno.EACCES
    http = 403


class RecallBudgetSpent(RecallRefused):
    """Repository {repository} may recall {limit} {unit} a day; {used} are used and {wanted} more are wanted."""

    errno = _errno.EDQUOT
    http = 429


class Rehydrating(RecallRefused):
    """{what} is in an archive class; it was asked back at {since} and is expected by {until}."""

    errno = _errno.EAGAIN
    http = 503


# -- running ------------------------------------------------------------------------------------------------


class ConfigurationInvalid(VnaError):
    """{file}: {key} = {value}: {why}. {fix}."""

    exit_code = 2
    http = 400


class ArchiveBusy(VnaError):
    """{what} is already in use by process {pid}; stop it first."""

    http = 409


class DaemonUnreachable(VnaError):
    """The {daemon} daemon does not answer on {socket}: {why}. Start it with `vna serve`."""

    exit_code = 1
    http = 503


class RequestInvalid(VnaError):
    """The request {method} is not understood: {why}."""

    exit_code = 2
    errno = _errno.EINVAL
    http = 400


class Refused(VnaError):
    """{what} was refused: {why}."""

    http = 409


class TooMuch(VnaError):
    """{what} is more than one answer may hold ({limit}): {fix}."""

    exit_code = 2
    http = 413


class NotYet(VnaError):
    """{what} is not done yet: {why}."""

    exit_code = 1
    http = 409


def every_error() -> dict[str, type[VnaError]]:
    """Code to class for the whole taxonomy, so that a control client can raise what a daemon refused with."""
    found: dict[str, type[VnaError]] = {}
    waiting = [VnaError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting.extend(kind.__subclasses__())
    return found
