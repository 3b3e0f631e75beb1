"""Heads: how far the manifests on a target go, and in which epoch; whether or not they can be used."""

from __future__ import annotations

import dataclasses
import heapq

from vnafs.content import manifest
from vnafs.domain.errors import Damaged, FormatUnknown, ObjectMissing
from vnafs.domain.ids import Span
from vnafs.targets.port import Target

EPOCH_MAX = 1 << 31
"""Each restore and adoption takes one: what claims more is somebody's mischief."""
LOOKED_AT_MAX = 8
"""Of the highest segments: one that is damaged does not say its epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """The highest segment of a target."""

    number: int = 0
    epoch: int = 0
    """The highest that one of the last segments names; 0 when none of them can be read."""


def head_of(target: Target, archive: bytes | None) -> Head:
    """What is known of *archive* on a target; None for any archive. Raises TargetUnavailable, TargetRefused."""
    found = (manifest.number_in(name) for name in target.list(manifest.SEGMENTS))
    numbers = heapq.nlargest(LOOKED_AT_MAX, (number for number in found if number is not None))
    epoch = 0
    for number in numbers:
        try:
            data = b"".join(target.get(manifest.segment_name(number), Span(0, manifest.HEADER_BYTES)))
            header = manifest.decode_header(data)
        except (Damaged, FormatUnknown, ObjectMissing):
            continue
        if archive in {None, header.archive} and header.epoch < EPOCH_MAX:
            epoch = max(epoch, header.epoch)
    return Head(max(numbers, default=0), epoch)
