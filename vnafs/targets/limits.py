"""How much of the network, the memory and the patience one target may take. Plain values."""

from __future__ import annotations

import dataclasses

MEBIBYTE = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one target; every field has its unit in its name."""

    requests_max: int = 8
    """Calls under way at once, over all threads."""
    bytes_per_second_max: float | None = None
    """Both directions together; None is no limit."""
    attempts_max: int = 5
    """Of one call, the first included."""
    retry_seconds_max: float = 120.0
    """After the first failure of one call; whoever called decides what happens then."""
    backoff_seconds_first: float = 0.5
    backoff_seconds_max: float = 30.0
    connect_seconds_max: float = 10.0
    read_seconds_max: float = 60.0
    """Of silence on a connection."""
    single_put_bytes_max: int = 64 * MEBIBYTE
    """Larger objects go up in parts. A single put lets an S3 target vouch for SHA-256 over the whole."""
    part_bytes: int = 32 * MEBIBYTE
    """S3 allows 10 000 parts of at least 5 MiB, Azure 50 000 blocks: parts grow when an object needs it."""
    parts_in_flight_max: int = 4
    """Over all the objects that go up in parts at the same moment."""
