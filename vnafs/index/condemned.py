"""Condemned packs (Z rows): given up because no place has them whole any more, before any target had.

A condemned pack is not leaned on and its contents are not reused. The row outlives the pack's own: it keeps the pack's
number from being given out again, and says which objects of ours are to be removed from targets.
"""

from __future__ import annotations

from collections.abc import Iterable

from vnafs.domain.ids import PackId, PackNumber
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop


def put(tx: Transaction, number: PackNumber, identity: PackId) -> None:
    """Condemn a pack."""
    tx.put(keys.condemned(number), identity)


def find(reader: Reader, number: PackNumber) -> PackId | None:
    """The id of a pack if it is condemned."""
    found = reader.get(keys.condemned(number))
    return None if found is None else PackId(found)


def any_of(reader: Reader, numbers: Iterable[PackNumber]) -> bool:
    """Whether one of these packs is condemned."""
    return any(find(reader, number) is not None for number in numbers)


def pardon(tx: Transaction, number: PackNumber) -> None:
    """A whole copy was found after all."""
    tx.delete(keys.condemned(number))


def last_number(reader: Reader) -> PackNumber:
    """The highest number of a condemned pack, 0 when there is none."""
    for key, _ in reader.scan(keys.CONDEMNED, prefix_stop(keys.CONDEMNED), reverse=True):
        return PackNumber(keys.number_of(key))
    return PackNumber(0)
