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
    """One T row: a pack that must reach a target, not before *due*."""

    target: int
    due: Instant
    pack: PackNumber
    attempts: int


def put(tx: Transaction, copy: PackCopy) -> None:
    """Record what is known of one pack on one target."""
    _count(tx, copy.pack, copy.target, becomes=copy.state is CopyState.VERIFIED)
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
    key = keys.transfer(transfer.target, transfer.due, transfer.pack)
    if tx.get(key) is None:
        counts.add(tx, counts.waiting(transfer.target), 1)
    tx.put(key, _ATTEMPTS.pack(transfer.attempts))


def dequeue(tx: Transaction, transfer: Transfer) -> None:
    """The transfer is done, or was asked for again with another due time."""
    key = keys.transfer(transfer.target, transfer.due, transfer.pack)
    if tx.get(key) is not None:
        counts.add(tx, counts.waiting(transfer.target), -1)
        tx.delete(key)


def transfers(reader: Reader, target: int) -> Iterator[Transfer]:
    """The transfers to a target, soonest due first."""
    prefix = keys.transfers(target)
    for key, row in reader.scan(prefix, prefix_stop(prefix)):
        number, due, pack = keys.transfer_of(key)
        yield Transfer(number, due, pack, _ATTEMPTS.unpack(row)[0])
