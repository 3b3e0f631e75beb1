"""Adopt: let this index go on although targets went on without it, or for a copy of this machine.

An administrator has decided that what is here is right. Numbers of segments go on after everything any target has,
inode numbers in an epoch after all of them; the next snapshot says all there is here. What only the other run stored
stays on the targets, unknown to this index. Copies that were verified before are looked at again: the other run may
have removed them. Public keys that it signed receipts with are taken into the history, for whoever checks one. Both
environments are changed by their owner's rights, while neither daemon runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping

from vnafs.content import manifest
from vnafs.content.manifest import STORE, Operation, Row
from vnafs.domain.actors import Actor
from vnafs.domain.clock import Clock
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NotFound
from vnafs.domain.ids import ROOT, PackNumber
from vnafs.index import audits, copies, keys, meta, packs, signers
from vnafs.index.engine import Engine, prefix_stop
from vnafs.targets.port import Target
from vnafs.upkeep.heads import head_of
from vnafs.upkeep.ledger import Position, Sent, position, set_position, set_sent
from vnafs.upkeep.plan import UNUSABLE, Source

log = logging.getLogger(__name__)

PACKS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was adopted."""

    number: int
    """The segment after which this index goes on."""
    epoch: int
    copies_in_doubt: int
    """They count again once they have been verified again."""


def adopt(
    namespace: Engine,
    store: Engine,
    places: Mapping[int, Target],
    *,
    clock: Clock,
    by: Actor,
    secrets: manifest.Keys | None = None,
) -> Report:
    """*places*: every target that counts, by its number. Raises what a target raises: all must answer.

    *by* is noted in the audit. *secrets* are the keys of an encrypted archive.

    May be repeated; a crash leaves an archive that is still superseded, or adopted.
    """
    with namespace.read() as reader:
        archive = meta.get_bytes(reader, meta.ARCHIVE_ID)
    heads = [head_of(target, archive) for target in places.values()]
    for target in places.values():
        _take_signers(store, target, archive, clock, secrets)
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
        audits.add(
            tx, {"at_ns": clock.now(), "action": "adopted", "inode": ROOT, "who": by.shown(), "segment": head}
        )  # the next snapshot carries it
    namespace.sync(namespace.position)
    return Report(head, epoch, doubted)


def _take_signers(
    store: Engine, target: Target, archive: bytes | None, clock: Clock, secrets: manifest.Keys | None
) -> None:
    """Public keys that the manifests there have and this index does not. Where nothing can be read nothing is taken."""
    source = Source(target, secrets)
    try:
        plan = source.plan(archive)
    except NotFound as problem:
        log.warning("adopt.no_signers", extra={"target": target.name, "why": str(problem)})
        return
    found: dict[bytes, signers.Signer] = {}
    for number in reversed(plan.segments):  # the last complete one tells all of them
        with contextlib.suppress(*UNUSABLE):
            header, rows = source.read(manifest.segment_name(number))
            if not header.more:
                found = dict(_signers(rows))
                break
    now = clock.now()
    with store.write() as tx:
        for public, signer in found.items():
            if signers.find(tx, public) is None:
                told = signer.told or secrets is None
                signers.put(tx, dataclasses.replace(signer, until=signer.until or now, told=told))


def _signers(rows: Iterable[Row]) -> Iterator[tuple[bytes, signers.Signer]]:
    for row in rows:
        if row.operation is Operation.PUT and row.key.startswith(STORE + keys.SIGNERS):
            public = keys.signer_of(row.key[1:])
            yield public, signers.decode(public, row.value)


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
