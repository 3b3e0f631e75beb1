"""`vna quarantine list|remove`: damaged bytes that were kept when they were replaced."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from appliance.cli import console as shown
from appliance.cli import moments
from appliance.cli.asking import Asking
from vnafs.domain.errors import InvalidArgument

REMOVED_AT_ONCE = 256


def every(_: argparse.Namespace, asking: Asking) -> int:
    """List what is there: what it was, where, since when, and why."""
    rows = _rows(asking)

    def show() -> None:
        asking.console.table(
            ["id", "since", "what", "from", "size", "why"],
            [
                [
                    row["id"],
                    moments.shown(row["when_ns"]),
                    f"{row['kind']} {row['path'] or row['name']}".strip(),
                    row["origin"],
                    shown.size(row["size_bytes"]),
                    _why(row),
                ]
                for row in rows
            ],
        )
        if rows:
            asking.console.say(f"their bytes are in {asking.configuration.folder('quarantine')}/ID.bytes")
        else:
            asking.console.say("Nothing is in quarantine.")

    asking.console.result(rows, show)
    return 0


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Remove some, or all that is there, for good. Raises NotFound, InvalidArgument."""
    if bool(args.ids) == args.all:
        raise InvalidArgument(why="name ids that `vna quarantine list` shows, or say --all")
    wanted = [row["id"] for row in _rows(asking)] if args.all else list(dict.fromkeys(args.ids))
    removed = 0
    for begin in range(0, len(wanted), REMOVED_AT_ONCE):
        removed += asking.tierd().call("quarantine.remove", ids=wanted[begin : begin + REMOVED_AT_ONCE])["removed"]
    asking.console.result({"removed": removed}, lambda: asking.console.say(f"{removed} removed."))
    return 0


def lines(answer: Mapping[str, Any]) -> list[str]:
    """What `vna status` says of it; nothing while it is empty."""
    if not answer["count"]:
        return []
    return [
        f"in quarantine: {answer['count']} damaged things ({shown.size(answer['size_bytes'])}), the first since "
        f"{moments.shown(answer['oldest_ns'])}; see `vna quarantine list`"
    ]


def _rows(asking: Asking) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while page := asking.tierd().call("quarantine.list", after=rows[-1]["id"] if rows else ""):
        rows += page
    return rows


def _why(row: Mapping[str, Any]) -> str:
    holes = f" ({shown.size(row['unreadable_bytes'])} of it could not be read)" if row["unreadable_bytes"] else ""
    return f"{row['why']}{holes}"
