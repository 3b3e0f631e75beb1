"""Schemas and named values: older environments are brought up in steps, newer ones refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from vnafs.domain.errors import Damaged, FormatUnknown, IndexBroken
from vnafs.index import keys, meta
from vnafs.index.engine import Engine, Transaction
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.migrations import Migration, migrate, resume, set_resume

START = Migration(1, "the first schema", lambda _tx: True)


def upper(tx: Transaction) -> bool:
    """Ten rows at a time."""
    for done, (key, value) in enumerate(tx.scan(resume(tx) or b"row", b"rox")):
        if done == 10:
            set_resume(tx, key)
            return False
        tx.put(key, value + b"!")
    return True


UPPER = Migration(2, "values end in an exclamation mark", upper)


def an_old_environment(engine: Engine, rows: int) -> None:
    migrate(engine, [START], what="here")
    with engine.write() as tx:
        for number in range(rows):
            tx.put(b"row%03d" % number, b"v")


def values(engine: Engine) -> list[bytes]:
    with engine.read() as reader:
        return [value for _, value in reader.scan(b"row", b"rox")]


def test_a_new_environment_starts_at_the_last_schema() -> None:
    engine = MemoryEngine()
    assert migrate(engine, [START, UPPER], what="here") == 2
    with engine.read() as reader:
        assert meta.get_int(reader, meta.SCHEMA) == 2
        assert meta.get_bytes(reader, "schema.resume") is None


def test_an_old_environment_is_brought_up_once() -> None:
    engine = MemoryEngine()
    an_old_environment(engine, rows=25)
    for _ in range(2):
        assert migrate(engine, [START, UPPER], what="here") == 2
        assert values(engine) == [b"v!"] * 25


def test_a_newer_environment_is_refused() -> None:
    engine = MemoryEngine()
    migrate(engine, [START, UPPER], what="the index of mount")
    with pytest.raises(FormatUnknown, match="the index of mount has format version 2; this program reads up to 1"):
        migrate(engine, [START], what="the index of mount")


def test_rows_without_a_schema_are_not_ours() -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        tx.put(keys.meta("fsid"), b"x")
    with pytest.raises(IndexBroken, match="no schema"):
        migrate(engine, [START], what="here")


def test_gaps_in_the_list_are_a_mistake_of_the_programmer() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        migrate(MemoryEngine(), [START, Migration(3, "", upper)], what="here")


def test_a_migration_that_dies_anywhere_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = LogSettings(segment_bytes=1 << 16)
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=log)) as engine:
        an_old_environment(engine, rows=35)
    for _ in range(10):
        steps = 0

        def dies(tx: Transaction) -> bool:
            nonlocal steps
            steps += 1
            done = upper(tx)
            if steps == 2 and not done:
                raise KeyboardInterrupt
            return done

        with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=log)) as engine:
            try:
                migrate(engine, [START, Migration(2, "", dies)], what="here")
            except KeyboardInterrupt:
                continue
            break
    with contextlib.closing(LmdbEngine(str(tmp_path / "index"), log=log)) as engine:
        assert values(engine) == [b"v!"] * 35
        assert engine.synced == engine.position


def test_named_values_keep_their_type() -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        meta.set_int(tx, "n", (1 << 64) - 1)
        meta.set_bytes(tx, "b", b"xyz")
        assert meta.get_int(tx, "n") == (1 << 64) - 1
        assert meta.get_bytes(tx, "b") == b"xyz"
        assert meta.get_int(tx, "missing") is None
        meta.remove(tx, "n")
        assert meta.get_bytes(tx, "n") is None
        with pytest.raises(Damaged):
            meta.get_int(tx, "b")
