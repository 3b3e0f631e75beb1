"""What mount answers about erasures: whether files may go, their going, and what was erased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Asker, Method
from appliance.control.tree import Run
from vnafs.domain.errors import InvalidArgument
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.fs.erasure import Wanted
from vnafs.fs.filesystem import Filesystem
from vnafs.index.erasures import Erasure


def erasure_methods(filesystem: Filesystem, run: Run) -> list[Method]:
    """Their declarations; *run* runs work where the tree may be touched."""
    erasures = filesystem.erasures

    def refusals(params: Mapping[str, Any], _: object) -> list[list[str]]:
        repository, wanted = RepositoryId(params["repository"]), _wanted(params)
        return [list(why) for why in run(lambda: erasures.refusals(repository, wanted))]

    def begin(params: Mapping[str, Any], asker: Asker) -> dict[str, Any]:
        repository, reason = RepositoryId(params["repository"]), str(params["reason"])
        return shown(run(lambda: erasures.begin(repository, reason, asker.who)))

    def add(params: Mapping[str, Any], _: object) -> list[list[str]]:
        number, wanted = number_of(params["id"]), _wanted(params)
        return [list(why) for why in run(lambda: erasures.add(number, wanted))]

    def finish(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        return shown(run(lambda: erasures.finish(number_of(params["id"]))))

    def remembered(params: Mapping[str, Any], _: object) -> list[list[Any]]:
        name, after = wire.name(params.get("name") or ""), wire.name(params.get("after") or "")
        found = run(lambda: erasures.remembered(Inode(params["directory"]), name, after))
        return [[one.inode, wire.text(one.name), one.is_directory] for one in found]

    def every(_: Mapping[str, Any], __: object) -> list[dict[str, Any]]:
        return [shown(erasure) for erasure in run(erasures.every)]

    return [
        Method("erase.refusals", refusals, role="administrator"),
        Method("erase.begin", begin, role="administrator", audit="erasure:files:begun"),
        Method("erase.add", add, role="administrator", audit="erasure:files:erased"),
        Method("erase.finish", finish, role="administrator", audit="erasure:files:complete"),
        Method("erase.remembered", remembered, role="administrator"),
        Method("erase.list", every, role="viewer"),
    ]


def _wanted(params: Mapping[str, Any]) -> list[Wanted]:
    return [
        Wanted(Inode(inode), tuple((Inode(parent), wire.name(name)) for parent, name in names))
        for inode, names in params["files"]
    ]


def number_of(text: str) -> int:
    """The number of an erasure, from what it is called. Raises InvalidArgument."""
    try:
        return int(text, 16)
    except ValueError:
        raise InvalidArgument(why=f"{text!r} is no id of an erasure; see `vna erase --list`") from None


def shown(erasure: Erasure) -> dict[str, Any]:
    """An erasure as the wire carries it."""
    return {
        "id": erasure.id,
        "repository": erasure.repository,
        "stage": erasure.stage.name.lower(),
        "since_ns": erasure.since_ns,
        "files": erasure.files,
        "reason": erasure.reason,
    }
