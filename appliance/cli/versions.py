"""`vna versions|undelete`: what there was, and having it again."""

from __future__ import annotations

import argparse
import stat
import time
from collections.abc import Mapping
from typing import Any

from appliance.cli import console, moments
from appliance.cli.asking import Asking


def every(args: argparse.Namespace, asking: Asking) -> int:
    """Show every version that was at a path; of a directory what was deleted in it."""
    answer = asking.mount().call("versions.list", path=asking.below_mount(args.path))
    rows = answer["versions"]

    def show() -> None:
        if not rows:
            asking.console.say("Nothing was deleted there in the time that is kept.")
            return
        asking.console.table(
            ["name" if answer["directory"] else "version", "from", "until", "size", "sha256", ""],
            [
                [
                    row["name"] if answer["directory"] else row["version"],
                    moments.shown(row["since_ns"]),
                    "now" if row["ended_ns"] is None else moments.shown(row["ended_ns"]),
                    console.size(row["size_bytes"]) if stat.S_ISREG(row["mode"]) else _kind(row["mode"]),
                    (row["sha256"] or "")[:16],
                    "" if row["kept"] else "not kept",
                ]
                for row in rows
            ],
        )

    asking.console.result(rows, show)
    return 0


def undelete(args: argparse.Namespace, asking: Asking) -> int:
    """Bring back a file that was deleted, or a version that was overwritten."""
    made: Mapping[str, Any] = asking.mount().call(
        "versions.undelete",
        path=asking.below_mount(args.path),
        at_ns=None if args.at is None else moments.moment_ns(args.at, now_ns=time.time_ns()),
        version=args.version,
        to=None if args.to is None else asking.below_mount(args.to),
        replace=args.replace,
    )
    where = args.to or args.path
    asking.console.result(
        made,
        lambda: asking.console.say(f"{console.printable(where)} is back; its bytes are recalled when it is opened."),
    )
    return 0


def _kind(mode: int) -> str:
    return {stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "special")
