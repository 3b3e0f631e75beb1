"""A limit on the memory of this process and its children, page cache included, by a control group of its own.

The group is made inside the one the process is in, so that every limit that held before still holds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(size_bytes: int) -> Iterator[str]:
    """Live in a group of *size_bytes* until the block ends; says which kind of group it is.

    Raises OSError where the memory controller is not ours: then run under `systemd-run --scope -p MemoryMax=BYTES`.
    """
    above, limit, kind = _here()
    group = above / f"vnafs-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(size_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield kind
    finally:
        (above / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _here() -> tuple[Path, str, str]:
    """The group this process is in, its limit's file and the kind of both."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _V1 / path.lstrip("/"), "memory.limit_in_bytes", "cgroup v1 memory.limit_in_bytes"
        if not controllers and (_V2 / "cgroup.controllers").exists():
            return _V2 / path.lstrip("/"), "memory.max", "cgroup v2 memory.max"
    raise FileNotFoundError("no control group of this process limits memory")
