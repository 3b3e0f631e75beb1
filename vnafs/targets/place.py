"""Give a finished file its final name, unless something has that name already. POSIX only; any thread may call."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable

RENAME_NOREPLACE = 1
"""renameat2(2)."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What link(2) says on file systems without hard links (vfat: EPERM; some SMB and FUSE mounts: the others)."""


def link_exclusively(source_dir: int, source: str, target_dir: int, target: str) -> bool:
    """Make *target* name the file *source*, or leave alone what is there. False: the file system cannot.

    link(2) first: it alone is atomic on NFS, where its reply may be lost, which the link count then tells.
    *source* may or may not have its name afterwards. Raises OSError.
    """
    try:
        os.link(source, target, src_dir_fd=source_dir, dst_dir_fd=target_dir, follow_symlinks=False)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    return _rename_exclusively(source_dir, source, target_dir, target)


def _rename_exclusively(source_dir: int, source: str, target_dir: int, target: str) -> bool:
    rename = _renameat2()
    if rename is None:
        return False
    failed = rename(source_dir, os.fsencode(source), target_dir, os.fsencode(target), RENAME_NOREPLACE)
    number = ctypes.get_errno() if failed else 0
    if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    if number and number != errno.EEXIST:
        raise OSError(number, os.strerror(number))
    return True


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's renameat2, which Python does not offer; None before glibc 2.28 and in musl."""
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        function.restype = ctypes.c_int
        rename: Callable[..., int] = function
        return rename
    return None
