"""A small file that is replaced as a whole: readers have the old bytes or the new ones, after loss of power too.

Any thread; blocks on the local disk.
"""

from __future__ import annotations

import contextlib
import os

from vnafs.local.spool import fsync_directory


def replace(path: str, data: bytes, *, mode: int) -> None:
    """Give *path* these bytes, on stable storage when it returns. Raises OSError; then it has what it had.

    What lies beside it under the name `.new` is of somebody who died, and goes.
    """
    beside = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(beside, path)
    fsync_directory(os.path.dirname(os.path.abspath(path)))
