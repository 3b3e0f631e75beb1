"""Copies: what is known of each pack on each target, and the transfers still to do.

A copy counts only when its state is VERIFIED. A content has a copy on a target when every pack it needs is
verified there.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.copies import CopyState, VerifiedBy
from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import PackNumber
from vnafs.index import counts, keys, packs, targets
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORD = struct.Struct(">BBBQ")
_VERSION = 1
_ATTEMPTS = struct.Struct(">I")
_REMOVES = b"\x01"
"""Follows the attempts of a removal; nothing follows those of what brings a pack."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackCopy:
    """One V row."""

    pack: PackNumber
    target: int
    state: CopyState
    verified_by: VerifiedBy = VerifiedBy.NOTHING
    verified: Instant = Instant(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """One T row: a pack that must reach a target, or leave it, not before *due*."""

    target: int
    due: Instant
    pack: PackNumber
    attempts: int
    is_removal: bool = False
    """Asked for because the pack is no more. What is done follows from the pack's rows; this says how it is counted."""


def put(tx: Transaction, copy: PackCopy) -> None:
    """Record what is known of one pack on one target."""
    _count(tx, copy.pack, copy.target, becomes=copy.state is CopyState.VERIFIED)
    put_uncounted(tx, copy)


def put_uncounted(tx: Transaction, copy: PackCopy) -> None:
    """As `put`, for whoever sets the counts when all is there (`recount`)."""
    tx.put(
        keys.copy(copy.pack, copy.target),
        _RECORD.pack(_VERSION, copy.state, copy.verified_by, copy.verified),
    )


def of_pack(reader: Reader, pack: PackNumber) -> list[PackCopy]:
    """All that is known of one pack, in order of target number."""
    prefix = keys.copies(pack)
    found = []
    for key, row in reader.scan(prefix, prefix_stop(prefix)):
        if row[0] > _VERSION:
            raise FormatUnknown(what="a copy record", found=row[0], known=_VERSION)
        _, state, verified_by, verified = _RECORD.unpack(row)
        found.append(PackCopy(pack, keys.number_of(key), CopyState(state), VerifiedBy(verified_by), Instant(verified)))
    return found


def remove(tx: Transaction, pack: PackNumber, target: int) -> None:
    """Forget a pack's copy on a target."""
    _count(tx, pack, target, becomes=False)
    tx.delete(keys.copy(pack, target))


def _count(tx: Transaction, number: PackNumber, target: int, *, becomes: bool) -> None:
    held = {c.target for c in of_pack(tx, number) if c.state is CopyState.VERIFIED}
    if (target in held) is becomes:
        return
    pack = packs.get(tx, number)
    if pack is None:
        return  # not counted either
    sign = 1 if becomes else -1
    counts.add(tx, counts.verified(target), sign, sign * pack.size_bytes)
    counted = targets.current(tx).keys()
    if target in counted:
        before = len(held & counted)
        counts.add(tx, counts.held(before), -1, -pack.size_bytes)
        counts.add(tx, counts.held(before + sign), 1, pack.size_bytes)


def verified_on(reader: Reader, packs: Iterable[PackNumber]) -> dict[int, Instant]:
    """The targets that hold every one of *packs* verified, each with the time the last of them was."""
    return {target: max(c.verified for c in those) for target, those in verified_copies(reader, packs).items()}


def verified_copies(reader: Reader, packs: Iterable[PackNumber]) -> dict[int, list[PackCopy]]:
    """The targets that hold every one of *packs* verified, each with its copies of them."""
    common: dict[int, list[PackCopy]] | None = None
    for pack in packs:
        here = {c.target: c for c in of_pack(reader, pack) if c.state is CopyState.VERIFIED}
        if common is None:
            common = {target: [copy] for target, copy in here.items()}
        else:
            common = {target: [*those, here[target]] for target, those in common.items() if target in here}
        if not common:
            return {}
    return common or {}


# -- transfers -----------------------------------------------------------------------------------------------


def enqueue(tx: Transaction, transfer: Transfer) -> None:
    """Ask for a transfer."""
    dequeue(tx, transfer)  # what is asked for again is counted as what it is now
    counts.add(tx, _counted_as(transfer), 1)
    key = keys.transfer(transfer.target, transfer.due, transfer.pack)
    tx.put(key, _ATTEMPTS.pack(transfer.attempts) + (_REMOVES if transfer.is_removal else b""))


def dequeue(tx: Transaction, transfer: Transfer) -> None:
    """The transfer is done, or was asked for again with another due time."""
    key = keys.transfer(transfer.target, transfer.due, transfer.pack)
    row = tx.get(key)
    if row is not None:
        counts.add(tx, _counted_as(_transfer(key, bytes(row))), -1)
        tx.delete(key)


def _counted_as(transfer: Transfer) -> str:
    count = counts.removing if transfer.is_removal else counts.waiting
    return count(transfer.target)


def transfers(reader: Reader, target: int) -> Iterator[Transfer]:
    """The transfers to a target, soonest due first."""
    prefix = keys.transfers(target)
    for key, row in reader.scan(prefix, prefix_stop(prefix)):
        yield _transfer(key, row)


def transfers_after(reader: Reader, after: bytes) -> Iterator[tuple[bytes, Transfer]]:
    """The transfers to all targets with keys past *after* (empty: all), in order, each with its key."""
    for key, row in reader.scan(after + b"\0" if after else keys.TRANSFERS, prefix_stop(keys.TRANSFERS)):
        yield bytes(key), _transfer(key, row)


def _transfer(key: bytes, row: bytes) -> Transfer:
    number, due, pack = keys.transfer_of(key)
    return Transfer(number, due, pack, _ATTEMPTS.unpack_from(row)[0], is_removal=len(row) > _ATTEMPTS.size)
