"""How an environment of an older schema becomes one of today's, in steps that a crash may interrupt anywhere.

Each environment has its own list, numbered from 1 without gaps. A step is a function of a transaction that does a
bounded piece of the work and says whether it is done; where it stopped it keeps in the environment itself (its
rows, or `resume`), in the same transaction. The schema number rises in the transaction that finishes a step.
Version numbers inside records (`records.py`) need no migration: this is for rows that move or vanish.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from vnafs.domain.errors import FormatUnknown, IndexBroken
from vnafs.index import meta
from vnafs.index.engine import Engine, Transaction

_log = logging.getLogger(__name__)

RESUME = "schema.resume"
_EVERYTHING = (b"\x01", b"\xff" * 512)


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """From schema *version* - 1 to *version*."""

    version: int
    name: str
    step: Callable[[Transaction], bool]
    """Does one bounded piece; True when nothing is left to do. May keep where it stopped with `set_resume`."""


def resume(tx: Transaction) -> bytes:
    """Where the running migration stopped; empty at its beginning."""
    return meta.get_bytes(tx, RESUME) or b""


def set_resume(tx: Transaction, where: bytes) -> None:
    """Remember where the running migration stops for now."""
    meta.set_bytes(tx, RESUME, where)


def migrate(engine: Engine, migrations: Sequence[Migration], *, what: str) -> int:
    """Bring the environment to the last schema in *migrations*; a new, empty one starts there. Returns it.

    The result survives loss of power when this returns. *what* names the environment in errors. Raises
    FormatUnknown when the environment is newer than this program, IndexBroken when it is not ours at all.
    """
    newest = len(migrations)
    if [migration.version for migration in migrations] != list(range(1, newest + 1)):
        raise ValueError("migrations are numbered from 1 without gaps")
    with engine.read() as reader:
        found = meta.get_int(reader, meta.SCHEMA)
        used = next(reader.scan(*_EVERYTHING), None) is not None
    if found is None:
        if used:
            raise IndexBroken(what=what, why="it has rows but no schema number")
        with engine.write() as tx:
            meta.set_int(tx, meta.SCHEMA, newest)
    elif found > newest:
        raise FormatUnknown(what=what, found=found, known=newest)
    else:
        for migration in migrations[found:]:
            _run(engine, migration)
    engine.sync(engine.position)
    return newest


def _run(engine: Engine, migration: Migration) -> None:
    _log.info("migration started", extra={"schema": migration.version, "migration": migration.name})
    done = False
    while not done:
        with engine.write() as tx:
            done = migration.step(tx)
            if done:
                meta.set_int(tx, meta.SCHEMA, migration.version)
                meta.remove(tx, RESUME)
    _log.info("migration finished", extra={"schema": migration.version, "migration": migration.name})
