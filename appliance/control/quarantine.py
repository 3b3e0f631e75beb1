"""What tierd answers about the quarantine: what is in it, and what shall go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.control import wire
from appliance.control.server import Emit, Method
from vnafs.domain.errors import InvalidArgument, NotFound
from vnafs.domain.ids import Inode
from vnafs.index.engine import Engine
from vnafs.local.quarantine import Kept, Kind, Quarantine
from vnafs.pipeline.namespace import Namespace

REMOVED_AT_ONCE_MAX = 1000
ROWS_AT_ONCE = 1000


def quarantine_methods(quarantine: Quarantine, namespace: Engine) -> list[Method]:
    """Their declarations."""
    tree = Namespace(namespace)

    def listed(params: Mapping[str, Any], _: Emit) -> list[dict[str, Any]]:
        """What there is, the oldest first, after the one of *after*; in pages."""
        after = _number(params["after"]) if params.get("after") else 0
        kept = [one for one in quarantine.every() if one.id > after]
        return [_row(quarantine, tree, one) for one in kept[:ROWS_AT_ONCE]]

    def remove(params: Mapping[str, Any], _: Emit) -> dict[str, Any]:
        """Remove some for good. Raises NotFound, before anything is removed, when one is not there."""
        wanted = [_number(text) for text in params["ids"]]
        if len(wanted) > REMOVED_AT_ONCE_MAX:
            raise InvalidArgument(why=f"{len(wanted)} at once are more than {REMOVED_AT_ONCE_MAX}")
        missing = set(wanted) - {kept.id for kept in quarantine.every()}
        if missing:
            raise NotFound(what=f"{min(missing):016x} in quarantine")
        return {"removed": quarantine.remove(wanted)}

    return [
        Method("quarantine.list", listed, role="viewer"),
        Method("quarantine.remove", remove, role="administrator", audit="quarantine:bytes:removed"),
    ]


def summary(quarantine: Quarantine) -> dict[str, int]:
    """How much is in it, and since when, for status."""
    every = quarantine.every()
    return {
        "count": len(every),
        "size_bytes": sum(kept.size_bytes for kept in every),
        "oldest_ns": every[0].when if every else 0,
    }


def _number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise InvalidArgument(why=f"{text!r} is not an id that `vna quarantine list` shows") from None


def _row(quarantine: Quarantine, tree: Namespace, kept: Kept) -> dict[str, Any]:
    about, path = kept.about, ""
    if about.kind is Kind.FILE:
        try:
            path = wire.text(tree.described(Inode(about.inode)).path)
        except NotFound:
            path = ""  # it was removed since
    return {
        "id": f"{kept.id:016x}",
        "when_ns": kept.when,
        "kind": about.kind.value,
        "name": about.name,
        "path": path,
        "origin": about.origin,
        "why": about.why,
        "size_bytes": kept.size_bytes,
        "unreadable_bytes": kept.unreadable_bytes,
        "sha256": kept.sha256.hex(),
        "expected_sha256": about.expected_sha256.hex(),
        "bytes": quarantine.path(kept.id),
    }
