"""What mount answers about retention: committing files, legal holds, and what protects a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Asker, Method
from appliance.control.tree import Run
from vnafs.domain.errors import NotFound
from vnafs.domain.ids import Inode
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.retention import Guarded
from vnafs.index.holds import Hold

AUDIT_AT_ONCE = 1000


def retention_methods(filesystem: Filesystem, run: Run) -> list[Method]:
    """Their declarations; *run* runs work where the tree may be touched."""
    retentions = filesystem.retentions

    def retain(params: Mapping[str, Any], asker: Asker) -> list[bool]:
        files = [(Inode(inode), Inode(place)) for inode, place in params["files"]]
        return list(
            run(
                lambda: retentions.retain(
                    files,
                    until_ns=params.get("until_ns"),
                    seconds=params.get("seconds"),
                    shorten=bool(params.get("shorten")),
                    reason=str(params.get("reason") or ""),
                    by=asker.who,
                )
            )
        )

    def of(params: Mapping[str, Any], _: object) -> list[dict[str, Any]]:
        inodes = [Inode(inode) for inode in params["inodes"]]

        def look() -> list[dict[str, Any]]:
            found = []
            for inode in inodes:
                try:
                    found.append(guarded(retentions.of(inode)))
                except NotFound:
                    continue  # removed meanwhile
            return found

        return list(run(look))

    def add(params: Mapping[str, Any], asker: Asker) -> dict[str, Any]:
        inode, name, reason = Inode(params["inode"]), str(params["id"]), str(params["reason"])
        return held(run(lambda: retentions.hold(inode, name, reason, asker.who)))

    def remove(params: Mapping[str, Any], asker: Asker) -> None:
        inode, name, reason = Inode(params["inode"]), str(params["id"]), str(params["reason"])
        run(lambda: retentions.release(inode, name, reason, asker.who))

    def every(_: Mapping[str, Any], __: object) -> list[dict[str, Any]]:
        return [
            {**held(hold), "path": wire.text(path)}
            for hold, path in run(lambda: [(hold, filesystem.path_hint(hold.inode)) for hold in retentions.holds()])
        ]

    def audit(params: Mapping[str, Any], _: object) -> list[dict[str, Any]]:
        after = int(params.get("after") or 0)
        return [{"number": number, **what} for number, what in run(lambda: retentions.audit(after, AUDIT_AT_ONCE))]

    return [
        Method("retention.retain", retain, role="administrator", audit="retention:files:retained"),
        Method("retention.of", of, role="viewer"),
        Method("retention.audit", audit, role="administrator"),
        Method("hold.add", add, role="administrator", audit="retention:hold:added"),
        Method("hold.remove", remove, role="administrator", audit="retention:hold:removed"),
        Method("hold.list", every, role="viewer"),
    ]


def guarded(found: Guarded) -> dict[str, Any]:
    """What protects an inode, as the wire carries it."""
    retention = found.retention
    return {
        "inode": found.inode,
        "mode": None if retention is None else retention.mode.value,
        "until_ns": None if retention is None else retention.until_ns,
        "since_ns": None if retention is None else retention.since_ns,
        "who": None if retention is None else retention.by.shown(),
        "over": found.is_over,
        "holds": [held(hold) for hold in found.holds],
    }


def held(hold: Hold) -> dict[str, Any]:
    """A hold as the wire carries it."""
    return {
        "id": hold.name,
        "inode": hold.inode,
        "directory": hold.is_directory,
        "since_ns": hold.since_ns,
        "reason": hold.reason,
    }
