"""Signers: every key that an archive's receipts were ever signed with (S rows), public, with the times between.

Manifests carry them, so that what was signed stays checkable in an archive that was restored. No private key is here.
The one without an end signs now. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.domain.events import Event, EventKind
from vnafs.domain.ids import Inode, Version
from vnafs.index import feeds, keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_SIGNER = RecordType("signer", {1: ">BBqq"})  # flags, reason, since, until
_TOLD = 1
PUBLIC_BYTES = 32
"""Of a public key of Ed25519 (RFC 8032)."""


class Reason(enum.IntEnum):
    """Why the archive began to sign with a key. The numbers are stored and never change meaning."""

    FIRST = 1
    RESTORED = 2
    """The one before was on the lost machine alone."""
    REPLACED = 3
    """The file of the one before was gone, or another was put there."""
    RENEWED = 4
    """By `vna key renew`."""


LABELS = {
    Reason.FIRST: "the first one that is known",
    Reason.RESTORED: "the archive was restored, and the key before was on the lost machine alone",
    Reason.REPLACED: "the key before was gone, or replaced by hand",
    Reason.RENEWED: "the keys of the archive were renewed",
}
"""As people read them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Signer:
    """One public key, and when the archive signed with it."""

    public: bytes
    """PUBLIC_BYTES."""
    since: Instant
    reason: Reason
    until: Instant = Instant(0)
    """From then on it signed with another one; 0: it is the one that signs."""
    told: bool = False
    """Known only from a target of an archive without encryption, where whoever can write there could have put it."""


def encode(signer: Signer) -> bytes:
    """A row's value."""
    return _SIGNER.pack(_TOLD if signer.told else 0, signer.reason, signer.since, signer.until)


def decode(public: bytes, raw: bytes) -> Signer:
    """A row. Raises FormatUnknown for a later version, Damaged."""
    if len(public) != PUBLIC_BYTES:
        raise Damaged(what="the key of a signer record")
    (flags, reason, since, until), _ = _SIGNER.unpack(raw)
    known = Reason(reason) if reason in list(Reason) else Reason.REPLACED  # a later program's reason is only told
    return Signer(public, Instant(since), known, Instant(until), bool(flags & _TOLD))


def find(reader: Reader, public: bytes) -> Signer | None:
    """One of them."""
    raw = reader.get(keys.signer(public))
    return None if raw is None else decode(public, bytes(raw))


def every(reader: Reader) -> list[Signer]:
    """All there ever were, the oldest first; the one that signs is the last one."""
    rows = reader.scan(keys.SIGNERS, prefix_stop(keys.SIGNERS))
    found = [decode(keys.signer_of(bytes(key)), bytes(value)) for key, value in rows]
    return sorted(found, key=lambda signer: (not signer.until, signer.since, signer.public))


def put(tx: Transaction, signer: Signer) -> None:
    """Remember one; manifests that are written from now on tell of it."""
    tx.put(keys.signer(signer.public), encode(signer))
    feeds.append(tx, Event(EventKind.SIGNER, Inode(0), Version(0)))


def begin(tx: Transaction, public: bytes, *, since: Instant, now: Instant, reason: Reason) -> None:
    """From *now* on the archive signs with this one and no other; *since* it may have, where that is not known.

    Whoever calls this has its private key: that it is the archive's own needs no target's word.
    """
    before = find(tx, public)
    for signer in every(tx):
        if not signer.until and signer.public != public:
            put(tx, dataclasses.replace(signer, until=now))
    found = before or Signer(public, since, reason)
    put(tx, dataclasses.replace(found, until=Instant(0), told=False))
