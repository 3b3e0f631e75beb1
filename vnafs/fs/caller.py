"""Who asks. Plain values; whether they may is the kernel's decision (`default_permissions`)."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """The process behind a request."""

    uid: int
    gid: int
    pid: int = 0

    @property
    def is_root(self) -> bool:
        """Whether it keeps set-user-ID bits when it writes and may make device nodes."""
        return self.uid == 0


ROOT_CALLER = Caller(0, 0)
"""vnafs itself."""
