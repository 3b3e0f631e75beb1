"""What mount answers about the past: versions of a path, and bringing them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Asker, Method
from appliance.control.tree import Run
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.versions import Shown


def version_methods(filesystem: Filesystem, run: Run) -> list[Method]:
    """Their declarations; *run* runs work where the tree may be touched."""
    versions = filesystem.versions

    def history(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        path = wire.name(params["path"])

        after = wire.name(params.get("after") or "")

        def look() -> dict[str, Any]:
            if not versions.is_directory(path):
                return {"directory": False, "versions": [shown(one) for one in versions.history(path)], "after": ""}
            found, go_on = versions.deleted_in(path, after)
            return {"directory": True, "versions": [shown(one) for one in found], "after": wire.text(go_on)}

        return dict(run(look))

    def undelete(params: Mapping[str, Any], asker: Asker) -> dict[str, Any]:
        to = params.get("to")
        return shown(
            run(
                lambda: versions.undelete(
                    wire.name(params["path"]),
                    at_ns=params.get("at_ns"),
                    label=params.get("version"),
                    to=None if to is None else wire.name(to),
                    replace=bool(params.get("replace")),
                    by=asker.who,
                )
            )
        )

    return [
        Method("versions.list", history, role="viewer"),
        Method("versions.undelete", undelete, audit="versions:file:undeleted"),
    ]


def shown(found: Shown) -> dict[str, Any]:
    """A version as the wire carries it."""
    return {
        "name": wire.text(found.name),
        "version": found.label,
        "inode": found.inode,
        "since_ns": found.since_ns,
        "ended_ns": found.ended_ns,
        "mode": found.mode,
        "size_bytes": found.size_bytes,
        "mtime_ns": found.mtime_ns,
        "sha256": None if found.sha256 is None else found.sha256.hex(),
        "kept": found.is_kept,
    }
