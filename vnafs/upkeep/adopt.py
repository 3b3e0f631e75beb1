"""Adopt: let this index go on although targets went on without it, or for a copy of this machine.

An administrator has decided that what is here is right. Numbers of segments go on after everything any target has,
inode numbers in an epoch after all of them; the next snapshot says all there is here. What only the other run stored
stays on the targets, unknown to this index. Copies that were verified before are looked at again: the other run may
have removed them. Both environments are changed by their owner's rights, while neither daemon runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.ids import PackNumber
from vnafs.index import copies, keys, meta, packs
from vnafs.index.engine import Engine, prefix_stop
from vnafs.targets.port import Target
from vnafs.upkeep.heads import head_of
from vnafs.upkeep.ledger import Position, Sent, position, set_position, set_sent

PACKS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was adopted."""

    number: int
    """The segment after which this index goes on."""
    epoch: int
    copies_in_doubt: int
    """They count again once they have been verified again."""


def adopt(namespace: Engine, store: Engine, places: Mapping[int, Target], *, clock: Clock) -> Report:
    """*places*: every target that counts, by its number. Raises what a target raises: all must answer.

    May be repeated; a crash leaves an archive that is still superseded, or adopted.
    """
    with namespace.read() as reader:
        archive = meta.get_bytes(reader, meta.ARCHIVE_ID)
    heads = [head_of(target, archive) for target in places.values()]
    doubted = _doubt_copies(store, clock)
    with store.write() as tx:
        before = position(tx)
        head = max([before.number, *(found.number for found in heads)])
        # no snapshot: the first thing recorded is one, and nobody needs what came before it
        set_position(
            tx,
            Position(
                number=head,
                namespace_cursor=before.namespace_cursor,
                store_cursor=before.store_cursor,
            ),
        )
        for number in places:
            set_sent(tx, number, Sent(number=head))
    store.sync(store.position)
    with namespace.write() as tx:
        # the other run may have been adopted, too, or restored: its epoch is nobody else's
        epoch = max([meta.get_int(tx, meta.EPOCH) or 0, *(found.epoch for found in heads)]) + 1
        meta.set_int(tx, meta.EPOCH, epoch)
        meta.remove(tx, meta.SUPERSEDED)
    namespace.sync(namespace.position)
    return Report(head, epoch, doubted)


def _doubt_copies(store: Engine, clock: Clock) -> int:
    """Every verified copy counts for nothing until it was verified again; returns how many."""
    doubted, after = 0, PackNumber(0)
    while True:
        with store.write() as tx:
            last = after
            for key, _ in tx.scan(keys.pack(PackNumber(after + 1)), prefix_stop(keys.PACKS)):
                last = PackNumber(keys.number_of(key))
                pack = packs.get(tx, last)
                for copy in copies.of_pack(tx, last) if pack is not None else ():
                    if copy.state is CopyState.VERIFIED:
                        copies.put(tx, copies.PackCopy(last, copy.target, CopyState.UPLOADED))
                        copies.enqueue(tx, copies.Transfer(copy.target, clock.now(), last, 0))
                        doubted += 1
                if last - after >= PACKS_AT_ONCE:
                    break
            if last == after:
                return doubted
            after = last
