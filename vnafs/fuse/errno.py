"""The one place where an error becomes the number that a system call returns."""

from __future__ import annotations

import errno
import logging

from vnafs.domain.errors import Damaged, FileSystemError, RecallRefused, VnaError

_LOG = logging.getLogger(__name__)


def errno_of(error: Exception) -> int:
    """The errno for *error*; what nobody expected is logged once, with its trace, and shown as EIO."""
    if isinstance(error, VnaError):
        if not isinstance(error, FileSystemError | Damaged | RecallRefused):
            _LOG.error("fuse.refused", extra={"code": error.code, "why": str(error)})
        return error.errno
    _LOG.error("fuse.unexpected", exc_info=error)
    return errno.EIO
