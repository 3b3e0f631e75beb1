"""Leaning: which packs new contents may share bytes with. A saved byte is not worth a file that rests on hope.

A pack may be leaned on while its file is on the local disk, or some copy of it was verified not too long ago; never
when it is condemned. Reads rows only; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.ids import PackNumber
from vnafs.index import condemned, copies, packs
from vnafs.index.engine import Reader


class Leaning:
    """*seconds_max*: a copy that was not verified for so long holds nothing new."""

    def __init__(self, seconds_max: float, clock: Clock) -> None:
        self._seconds_max = seconds_max
        self._clock = clock

    def may(self, reader: Reader, numbers: Iterable[PackNumber]) -> bool:
        """Whether all of these packs may be leaned on."""
        since = self._clock.now() - int(self._seconds_max * NANOSECONDS)
        return all(self._is_good(reader, number, since) for number in numbers)

    @staticmethod
    def _is_good(reader: Reader, number: PackNumber, since: int) -> bool:
        pack = packs.get(reader, number)
        if pack is None or condemned.find(reader, number) is not None:
            return False
        return pack.local or any(
            copy.state is CopyState.VERIFIED and copy.verified >= since for copy in copies.of_pack(reader, number)
        )
