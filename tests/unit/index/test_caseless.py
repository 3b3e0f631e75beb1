"""Names that differ in case alone, found without reading their directory."""

import pytest

from vnafs.domain.ids import Inode
from vnafs.index import caseless, entries, keys, migrations
from vnafs.index.engine import prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.entries import Entry

TOP, OTHER = Inode(100), Inode(200)
FILE = 8


def tree(*names, parent=TOP):
    engine = MemoryEngine()
    with engine.write() as tx:
        for cookie, name in enumerate(names, 16):
            entries.put(tx, parent, name.encode(), Entry(Inode(1000 + cookie), cookie, FILE))
    return engine


def found(engine, name, parent=TOP):
    with engine.read() as reader:
        other = entries.find_caseless(reader, parent, name.encode())
    return None if other is None else other.decode()


def rows(engine):
    with engine.read() as reader:
        return [key for key, _ in reader.scan(keys.FOLDED, prefix_stop(keys.FOLDED))]


@pytest.mark.parametrize("asked", ["IM0001.DCM", "im0001.dcm", "Im0001.dCM"])
@pytest.mark.parametrize("made", ["IM0001.DCM", "im0001.dcm", "iM0001.Dcm"])
def test_a_name_is_found_by_every_case_of_it(made, asked):
    assert found(tree("a", made, "Z"), asked) == made


@pytest.mark.parametrize(
    ("made", "asked"), [("Müller", "MÜLLER"), ("ЮЖЩИ", "южщи"), ("ÅNGSTRÖM", "ångström"), ("患者A", "患者a")]
)
def test_letters_of_other_scripts_have_two_cases_too(made, asked):
    assert found(tree(made), asked) == made


@pytest.mark.parametrize(("made", "asked"), [("strasse", "straße"), ("ﬁle", "file"), ("K", "\u212a"), ("\u0131", "I")])
def test_what_only_looks_alike_is_another_name(made, asked):
    assert found(tree(made), asked) is None


def test_the_very_name_comes_first_then_the_one_in_lower_case_then_the_oldest():
    engine = tree("AB", "aB", "ab")
    assert [found(engine, name) for name in ("AB", "aB", "ab", "Ab")] == ["AB", "aB", "ab", "ab"]
    assert found(tree("AB", "aB"), "ab") == "AB"


def test_a_name_that_is_gone_or_elsewhere_is_not_found():
    engine = tree("IMAGE")
    assert found(engine, "image", OTHER) is None
    with engine.write() as tx:
        entries.delete(tx, TOP, b"IMAGE", entries.find(tx, TOP, b"IMAGE"))
    assert found(engine, "image") is None
    assert rows(engine) == []


def test_names_without_upper_case_cost_no_row():
    assert rows(tree("1.2.840.10008.dcm", "série", "患者", "ß")) == []
    assert len(rows(tree("IM1"))) == 1


def test_names_that_are_no_utf8_are_folded_in_their_ascii_letters():
    engine = MemoryEngine()
    with engine.write() as tx:
        entries.put(tx, TOP, b"A\xe4", Entry(Inode(1), 16, FILE))
        assert entries.find_caseless(tx, TOP, b"a\xe4") == b"A\xe4"
        assert entries.find_caseless(tx, TOP, b"a\xc4") is None


def test_two_names_with_one_digest_are_told_apart(monkeypatch):
    monkeypatch.setattr(caseless, "rows_of", lambda parent, _: keys.folded(parent, b"same"))
    engine = tree("ONE", "TWO")
    assert (found(engine, "two"), found(engine, "three")) == ("TWO", None)


def test_the_longest_name_fits_a_key():
    name = "Ä" * 127
    assert found(tree(name), name.lower()) == name
    assert max(map(len, rows(tree(name)))) == 21


def test_names_of_an_older_archive_get_their_rows_in_bounded_steps():
    names = [f"IM{number:04}" for number in range(25)] + ["lower"]
    engine = tree(*names)
    wanted = rows(engine)
    with engine.write() as tx:
        for key in wanted:
            tx.delete(key)
    steps, done = 0, False
    while not done:
        with engine.write() as tx:
            done = entries.fold_names(tx, at_once=10)
        steps += 1
    assert rows(engine) == wanted
    assert steps == 3
    with engine.read() as reader:
        assert migrations.resume(reader)
