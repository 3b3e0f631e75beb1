"""Who did it: in the row of a committed file, and in what is noted of deeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.control.erasure import erasure_methods
from appliance.control.mount import mount_methods
from appliance.control.retention import retention_methods
from appliance.control.rollback import rollback_methods
from appliance.control.server import Asker, Method
from appliance.control.versions import version_methods
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_retention import DAY, NS, deeds, file_in, rules
from vnafs.domain.actors import SYSTEM, Actor, Door, at_mount
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.repositories import OnTrip
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.caller import Caller
from vnafs.fs.settings import Settings
from vnafs.fs.tripwire import Harm

BOB = Caller(1001, 1001)
ROOT = Actor(Door.COMMAND, 0, "root", 1000, "jane")
JANE = Actor(Door.COMMAND, 1000, "jane")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))
    rules(made, retention=RetentionMode.GOVERNANCE)
    return made


def by_of(tree: Tree, inode: Inode) -> Actor:
    found = tree.fs.retentions.of(inode).retention
    assert found is not None
    return found.by


def test_a_committed_file_says_whose_call_through_the_mount_it_was_also_after_a_crash(tree: Tree) -> None:
    inode = tree.file(b"f", b"bytes")
    later = tree.clock.now() + 30 * DAY * NS
    tree.fs.setattr(inode, AttributeChanges(atime_ns=later), BOB)
    tree.fs.setattr(inode, AttributeChanges(mode=0o400), ALICE)
    assert by_of(tree, inode) == at_mount(ALICE.uid)
    tree.fs.setattr(inode, AttributeChanges(atime_ns=later + DAY * NS), BOB)
    tree.crash()
    assert by_of(tree, inode) == at_mount(BOB.uid), "who gave it the date that it has"


def test_what_was_committed_by_itself_says_so(tree: Tree) -> None:
    rules(tree, retention_seconds=20 * DAY, autocommit_seconds=100)
    inode = file_in(tree, tree.r, b"f")
    tree.clock.sleep(200)
    for _ in range(5):
        tree.fs.upkeep()
    assert by_of(tree, inode) == SYSTEM


def test_a_command_is_noted_with_who_gave_it(tree: Tree) -> None:
    number = Inode(tree.fs.repositories.add("g", retention=RetentionMode.GOVERNANCE, uid=ALICE.uid).id)
    files = [file_in(tree, number, name) for name in (b"a", b"b")]
    wanted = [(file, Inode(0)) for file in files]
    tree.fs.retentions.retain(wanted, seconds=20 * DAY, by=JANE)
    tree.fs.retentions.retain(wanted, seconds=20 * DAY, by=ROOT)
    [noted] = deeds(tree, "retained")
    assert (noted["files"], noted["who"]) == (2, JANE.shown())
    assert [by_of(tree, file) for file in files] == [Actor(Door.COMMAND, JANE.uid)] * 2
    tree.fs.retentions.retain(wanted[:1], seconds=5 * DAY, shorten=True, reason="a mistake", by=ROOT)
    [noted] = deeds(tree, "shortened")
    assert noted["who"] == {
        "by": "command", "uid": 0, "login": "root", "on_behalf_of": {"uid": 1000, "login": "jane", "claimed": True},
    }  # fmt: skip
    assert by_of(tree, files[0]).uid == 0


def test_a_tripwire_is_touched_by_itself_and_reset_by_somebody(tree: Tree) -> None:
    rules(tree, tripwire=OnTrip.READ_ONLY, tripwire_per_minute=1)
    for number in range(3):
        tree.file(b"%d" % number, b"bytes")
    for _ in range(3):
        tree.fs._core.harmed(RepositoryId(tree.r), Harm.DELETED)
    tree.fs.upkeep()
    [touched] = deeds(tree, "tripwire touched")
    assert touched["who"] == {"by": "system"}
    assert "deleted" in touched["reason"]
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(known, reset_tripwire=True, by=JANE)
    [reset] = deeds(tree, "tripwire reset")
    assert reset["who"] == JANE.shown()
    tree.fs.repositories.set(dataclasses.replace(known, copies_min=2), by=ROOT)
    changed = deeds(tree, "rules changed")[-1]
    assert (changed["changed"], changed["who"]) == ({"copies_min": [1, 2]}, ROOT.shown())
    tree.fs.repositories.set(tree.fs.repositories.get(RepositoryId(tree.r)), reset_tripwire=True, by=JANE)
    assert len(deeds(tree, "tripwire reset")) == 1, "nothing was there to be reset"


# -- over the control socket ---------------------------------------------------------------------------------------


def methods_of(tree: Tree) -> dict[str, Method]:
    def run(work: Callable[[], Any]) -> Any:
        found = work()
        tree.fs.rollbacks.step()  # as upkeep does beside it
        return found

    every = [
        *retention_methods(tree.fs, run),
        *mount_methods(tree.fs, run, lambda _, __: None, dict),
        *version_methods(tree.fs, run),
        *rollback_methods(tree.fs, run, sleep=lambda _: None),
        *erasure_methods(tree.fs, run),
    ]
    return {method.name: method for method in every}


def test_whatever_is_asked_for_over_the_control_socket_is_noted_with_who_asked(tree: Tree) -> None:
    inode = file_in(tree, tree.r, b"f")
    gone = file_in(tree, tree.r, b"gone")
    tree.fs.unlink(tree.r, b"gone")
    before = tree.clock.now()
    tree.clock.sleep(10)
    asker = cast("Asker", SimpleNamespace(who=ROOT))
    methods = methods_of(tree)

    def ask(name: str, /, **params: object) -> Any:
        assert methods[name].audit, "the line in the log, too, says who asked"
        return methods[name].call(params, asker)

    ask("versions.undelete", path="r/gone")
    ask("retention.retain", files=[[inode, tree.r]], seconds=20 * DAY)
    ask("retention.retain", files=[[inode, tree.r]], seconds=10 * DAY, shorten=True, reason="why")
    ask("hold.add", inode=inode, id="case", reason="a letter")
    ask("hold.remove", inode=inode, id="case", reason="the end")
    ask("repository.set", name="r", copies_min=2)
    ask("repository.set", name="r", retention="off", reason="why")
    ask("erase.begin", repository=tree.r, reason="request")
    ask("rollback.run", name="r", to_ns=before)
    noted = [what for _, what in tree.fs.retentions.audit(0, 100)][1:]
    assert [what["action"] for what in noted] == [
        "undeleted", "retained", "shortened", "held", "released", "rules changed", "weakened", "rules changed",
        "erasure", "rollback",
    ]  # fmt: skip
    assert all(what["who"] == ROOT.shown() for what in noted)
    assert gone not in {what["inode"] for what in noted}, "what came back is a file of its own"
    assert b"gone" not in repr(noted).encode(), "no name of a file is noted"
