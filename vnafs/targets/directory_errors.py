"""Errors of a directory as targets and mirrors promise them: one table from errno to what a caller can do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from vnafs.domain.errors import TargetError, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.body import Stretch

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EMLINK})


@contextlib.contextmanager
def translated(target: TargetName, root: str, doing: str, local: Stretch | None = None) -> Iterator[None]:
    """Turn the errors of the directory into ours; those of the body that is being put stay what they are."""
    try:
        yield
    except OSError as error:
        if local is not None:
            local.raise_failure()
        raise directory_error(target, root, error, doing) from error


def directory_error(target: TargetName, root: str, error: OSError, doing: str) -> TargetError:
    """What became of *doing* something below *root*."""
    why = f"{doing} in {root}: {os.strerror(error.errno or 0)}"
    if error.errno in _FULL:
        return TargetRefused(target=target, why=f"{why}; free space on it or raise its quota")
    if error.errno in REFUSED:
        return TargetRefused(target=target, why=f"{why}; the user of this service needs to write there")
    return TargetUnavailable(target=target, why=f"{why}; is the disk mounted?")
