"""Headers that lean on another one of their pack, through the whole pipeline and back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import studies
from tests.model.collectworld import Collecting
from tests.model.pipelineworld import World
from tests.model.test_collect_days import ROUND_SECONDS
from tests.model.test_pipeline_days import A, B, until_replicated
from vnafs.content import bases, packfile
from vnafs.content.bases import Base, Bases
from vnafs.content.codecs import Encoded
from vnafs.content.source import Buffer
from vnafs.domain.errors import Damaged, RecallBudgetSpent
from vnafs.domain.ids import WHOLE, ObjectName, Span, pack_object_name
from vnafs.domain.recipes import Codec, PieceRef, Recipe


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def world(home: Path, request: pytest.FixtureRequest) -> World:
    return World(home, target_names=("a", "b"), encrypted=request.param)


def a_study(images: int = 6) -> dict[bytes, bytes]:
    return {b"%d" % number: item.data for number, item in enumerate(studies.real_ct_study()[:images])}


def store(world: World, files: dict[bytes, bytes]) -> None:
    for name, data in files.items():
        world.write(name, data)
    for name in files:
        until_replicated(world, name, 60)
    world.settle()


def gone(world: World, files: dict[bytes, bytes]) -> None:
    """On the targets only."""
    for name in files:
        assert world.evict(name)
    world.tiering.shelf.shed()


def recipe_of(world: World, name: bytes) -> Recipe:
    facts = world.fs.facts(world.inode(name))
    assert facts.sha256 is not None
    found = world.tiering.recaller._recipe(facts.sha256, facts.repository)
    world.tiering.recaller.forget_recipes()
    return found


def leaning(world: World, files: dict[bytes, bytes]) -> list[tuple[bytes, PieceRef, Base]]:
    """Names, pieces and bases of the files whose header leans on another one."""
    found = []
    for name in files:
        ref = recipe_of(world, name).pieces[0]
        if ref.codec is Codec.ZSTD_AFTER_BASE:
            asked: list[Base] = []
            pack = world.tiering.recaller._pack(ref.pack)
            stored = world.tiering.shelf.read(pack, Span(ref.offset, ref.stored_bytes), recalls=False)
            with contextlib.suppress(_NothingMore):
                packfile.open_piece(ref, stored, _noting(asked), world.tiering.recaller._cipher(pack))
            found.append((name, ref, asked[0]))
    return found


class _NothingMore(Exception):
    """The end of a look."""


def _noting(asked: list[Base]) -> Callable[[Base], bytes]:
    def note(base: Base) -> bytes:
        asked.append(base)
        raise _NothingMore

    return note


def reads_of(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """What is read of packs on either target from now on."""
    spans: list[Span] = []
    for target in world.targets.values():

        def get(name: ObjectName, span: Span = WHOLE, get: Any = target.get) -> Iterator[bytes]:
            if name.startswith("packs/"):
                spans.append(span)
            return get(name, span)  # type: ignore[no-any-return]

        monkeypatch.setattr(target, "get", get)
    return spans


def test_a_study_whose_headers_lean_on_one_comes_back_bit_for_bit(world: World) -> None:
    files = a_study()
    store(world, files)
    found = leaning(world, files)
    assert len(found) == len(files) - 1
    assert len({(ref.pack, base) for _, ref, base in found}) == 1
    gone(world, files)
    assert {name: world.read(name) for name in files} == files


def test_one_file_of_a_study_takes_one_more_read_and_the_next_one_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = a_study()
    store(world, files)
    (one, first, base), (other, second, _), *_ = leaning(world, files)
    gone(world, files)
    spans = reads_of(world, monkeypatch)
    assert world.read(one) == files[one]
    assert [span for span in spans if span.offset == base.offset] == [Span(base.offset, base.stored_bytes)]
    read_bytes = sum(span.length or 0 for span in spans)
    needed = recipe_of(world, one)
    assert read_bytes < sum(ref.stored_bytes for ref in needed.pieces) + base.stored_bytes + 1000
    assert first.pack == second.pack
    world.tiering.recaller._piece(first)  # recipe_of made it forget the base
    spans.clear()
    assert world.read(other) == files[other]
    assert not [span for span in spans if span.offset == base.offset]


def test_a_base_that_rotted_on_one_target_comes_from_the_other(world: World) -> None:
    files = a_study()
    store(world, files)
    (name, ref, base), *_ = leaning(world, files)
    gone(world, files)
    world.rot(A, pack_object_name(ref.pack), base.offset + base.stored_bytes // 2)
    world.rot(B, pack_object_name(ref.pack), ref.offset + ref.stored_bytes - 5)
    assert world.read(name) == files[name], "each target has one of the two"


@pytest.mark.parametrize("place", [0, 8, 16, 20, 30])
def test_what_rotted_everywhere_is_an_error_and_never_another_header(world: World, place: int) -> None:
    files = a_study(3)
    store(world, files)
    (name, ref, _), *_ = leaning(world, files)
    gone(world, files)
    for target in (A, B):
        world.rot(target, pack_object_name(ref.pack), ref.offset + place)
    with pytest.raises(Damaged):
        world.read(name)


def test_a_base_that_rotted_everywhere_is_an_error_for_all_that_lean_on_it(world: World) -> None:
    files = a_study(4)
    store(world, files)
    found = leaning(world, files)
    gone(world, files)
    _, ref, base = found[0]
    for target in (A, B):
        world.rot(target, pack_object_name(ref.pack), base.offset + base.stored_bytes // 2)
    for name, *_ in found:
        with pytest.raises(Damaged):
            world.read(name)


def test_the_budget_counts_the_base_before_anything_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    files = a_study(3)
    store(world, files)
    (name, _, base), *_ = leaning(world, files)
    own = sum(ref.stored_bytes for ref in recipe_of(world, name).pieces)
    gone(world, files)
    repository = world.fs.repositories.named("share")
    used = world.tiering.budgets.used(repository.id).size_bytes
    budget = used + own + 1000
    world.fs.repositories.set(dataclasses.replace(repository, recall_bytes_per_day=budget))
    facts = world.fs.facts(world.inode(name))
    assert facts.sha256 is not None
    recaller = world.tiering.recaller
    recaller._recipe(facts.sha256, facts.repository)
    spans = reads_of(world, monkeypatch)
    with pytest.raises(RecallBudgetSpent):
        recaller.recall(world.inode(name), facts.version, facts.sha256, facts.repository)
    assert not spans
    raised = budget + bases.RAW_BYTES_MAX
    world.fs.repositories.set(dataclasses.replace(repository, recall_bytes_per_day=raised))
    before = world.tiering.budgets.used(repository.id).size_bytes
    assert world.read(name) == files[name]
    charged = world.tiering.budgets.used(repository.id).size_bytes - before
    assert charged == sum(span.length or 0 for span in spans) >= own + base.stored_bytes


def test_a_header_leans_on_nothing_when_its_pack_is_closed_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = Bases.lean
    leant = []

    def slow(self: Bases, raw: Buffer) -> Encoded | None:
        found = lean(self, raw)
        leant.append(found)
        world.tiering.packer.close_aged(everything=True)
        return found

    files = a_study(4)
    with monkeypatch.context() as patched:
        patched.setattr(Bases, "lean", slow)
        store(world, files)
    assert any(leant)
    assert not leaning(world, files)
    gone(world, files)
    assert {name: world.read(name) for name in files} == files


def test_the_file_whose_header_is_the_base_may_go_and_the_others_stay(home: Path) -> None:
    world = Collecting(home, pack_target_bytes=256 * 1024)
    world.keep(0)
    files = a_study(8)
    for name, data in files.items():
        world.write(name, data)
    world.settle()
    world.manifests.step()
    found = leaning(world, files)
    leaners = {name for name, *_ in found}
    kept = found[0][0]
    assert len(leaners) < len(files)
    for name in files:
        assert world.evict(name)
        if name != kept:
            world.unlink(name)
    world.expire()
    world.collect(2 * ROUND_SECONDS)
    assert world.collector.collected.repacked
    assert pack_object_name(found[0][1].pack) not in world.stored(A)
    assert not leaning(world, {kept: files[kept]})
    assert world.read(kept) == files[kept]
