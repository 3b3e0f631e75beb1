"""Limits and times of the tree. Plain values with defaults that suit one machine; every limit has its unit."""

from __future__ import annotations

import dataclasses

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a site may tune."""

    quiet_seconds: float = 30.0
    """After the last writable close until the bytes may be sealed."""
    handles_open_max: int = 65536
    rows_cached_max: int = 16384
    """Inode rows kept decoded, about 600 bytes each."""
    file_bytes_max: int = 16 << 40
    """As ext4 with 4 KiB blocks."""
    links_max: int = 65000
    """As ext4."""
    xattr_bytes_max: int = 65536
    """Of one value: XATTR_SIZE_MAX of Linux."""
    xattrs_bytes_max: int = 65536
    """Of all names of one inode: XATTR_LIST_MAX of Linux."""
    symlink_bytes_max: int = 4095
    """PATH_MAX without its NUL."""
    reserve_bytes: int = GIBIBYTE
    """Of the local disk: writers get NoSpace before it is touched."""
    unseen_room_bytes_min: int = GIBIBYTE
    """Above the reserve: with less free, each write passes here, where the reserve is kept."""
    recall_whole_bytes_max: int = 64 * MEBIBYTE
    """A larger stub that is opened only for reading is read in ranges instead of being brought back whole."""
    left_copy_bytes_max: int = 16 * MEBIBYTE
    """A larger file, opened for write between sealing and packing, is not copied first unless it can be cloned."""
    hold_seconds_max: float = 3.0
    """Writers of a file that is copied while it stays open wait no longer than this."""
    drops_pending_max: int = 4096
    """Local files that wait for the log to be synced before they are removed; past it the index is synced at once."""
    feed_events_max: int = 1_000_000
    """Kept for followers of the feed, about 100 bytes each; whoever falls further behind starts from a snapshot."""
    numbers_ahead: int = 4096
    """Inode numbers reserved with one sync."""
    cookies_ahead: int = 65536
