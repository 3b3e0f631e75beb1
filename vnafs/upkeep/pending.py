"""Pending: which erasures are not proven yet, and what the oldest of them waits for. From rows alone, in a moment.

Asks no target and walks over no files, so it knows nothing of local traces and mirrors: `Eraser.standing` looks at
these. Changes nothing; any thread.
"""

from __future__ import annotations

import dataclasses

from vnafs.domain.clock import Instant
from vnafs.domain.errors import NotFound
from vnafs.domain.ids import RepositoryId, TargetName
from vnafs.index import erasing, erasures, packs, targets
from vnafs.index.engine import Engine, Reader
from vnafs.index.erasures import Erasure, Stage
from vnafs.pipeline.namespace import Namespace


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """One target that was not seen without what was erased."""

    target: TargetName
    why: str
    """What is there still, or why it could not be looked at; nothing where it was not looked at yet."""
    until: Instant
    """When a lock there ends; 0: none is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """The erasures of which something may be left somewhere; at least one."""

    count: int
    oldest: Erasure
    is_frozen: bool
    """The oldest waits for its repository: a tripwire was touched there, or it is being rolled back."""
    packs_left: int
    """Packs with bytes of the oldest that are not emptied yet."""
    targets: tuple[Waiting, ...]
    """Those that the oldest waits for, in order of number."""


def pending(namespace: Engine, store: Engine) -> Pending | None:
    """What there is to say of erasures; None where none is pending."""
    with namespace.read() as reader:
        known = list(erasures.every(reader))
    with store.read() as reader:
        left = [one for one in known if not erasing.is_completed(reader, one.number)]
        if not left:
            return None
        oldest = min(left, key=lambda one: (one.since_ns, one.number))
        return Pending(
            len(left),
            oldest,
            _is_frozen(namespace, oldest.repository),
            _packs_left(reader, oldest.number),
            # as long as files are added to it nobody looks at any target
            () if oldest.stage is Stage.TAKING else _waiting(reader, oldest.number),
        )


def _is_frozen(namespace: Engine, repository: RepositoryId) -> bool:
    try:
        return Namespace(namespace).repository(repository).loses_nothing
    except NotFound:
        return False


def _packs_left(reader: Reader, erasure: int) -> int:
    return sum(
        1
        for number, identity in erasing.packs_of(reader, erasure)
        if (pack := packs.get(reader, number)) is not None and pack.id == identity
    )


def _waiting(reader: Reader, erasure: int) -> tuple[Waiting, ...]:
    seen = erasing.there(reader, erasure)
    found = []
    for number, row in sorted(targets.current(reader).items()):
        there = seen.get(number)
        if there is None or not there.proven:
            found.append(Waiting(row.name, there.why if there else "", there.until if there else Instant(0)))
    return tuple(found)
