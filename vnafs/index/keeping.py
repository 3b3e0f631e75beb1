"""What keeps a file from being removed: its retention, by the steady clock, and the holds that it is under.

For whoever reads the namespace index and must not let go of what is protected. A version that is over is asked for
nowhere here: while it is held or retained its V row stays (`vnafs.fs.history`), and whoever keeps what V rows name
keeps it. Pure reads; the index is behind by what is not folded yet, so fold first where it matters.
"""

from __future__ import annotations

import time

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.ids import Inode
from vnafs.index import inodes, retentions, steady
from vnafs.index.engine import Reader
from vnafs.index.holds import Holds
from vnafs.index.inodes import InodeRow


def reasons(reader: Reader, holds: Holds, inode: Inode, row: InodeRow | None = None) -> tuple[str, ...]:
    """Why an inode must stay, each reason in a few words; empty when nothing keeps it.

    *holds* are those of the same view: `Holds(reader)`.
    """
    row = row or inodes.find(reader, inode)
    found = []
    retention = retentions.find(reader, inode)
    if retention is not None and not retention.is_over(steady.now(reader) or 0):
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(retention.until_ns // NANOSECONDS))
        found.append(f"retained until {until} ({retention.mode.value})")
    those = [] if row is None else holds.on(lambda number: inodes.find(reader, number), inode, row)
    return (*found, *sorted({f"held: {hold.name}" for hold in those}))
