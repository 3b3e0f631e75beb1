"""`vna retain|retention|hold`: what may be neither changed nor removed, and why."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.cli import moments
from appliance.cli.actors import said
from appliance.cli.asking import Asking
from appliance.cli.console import printable
from vnafs.domain.errors import InvalidArgument, NotFound

DONE = 0
AT_ONCE = 256
SHOWN_MAX = 20
_LENGTH = re.compile(r"(\d+)(s|min|h|d|y)")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "y": 365 * 86400}


def length_seconds(text: str) -> int:
    """Seconds of `30d`, `10y`, `90s`. Raises InvalidArgument."""
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(why=f"{text!r} is no length of time; write 90s, 15min, 12h, 30d or 10y")
    return int(found[1]) * _UNITS[found[2]]


def length(seconds: int) -> str:
    """The other way round, in the largest unit that fits."""
    for unit, size in reversed(_UNITS.items()):
        if seconds % size == 0 and seconds:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def retain(args: argparse.Namespace, asking: Asking) -> int:
    """Commit files, or retain them for longer; with --shorten for less, where that may be."""
    if os.path.isdir(args.path) and not args.recursive:
        raise InvalidArgument(why=f"{args.path} is a directory; say --recursive for all files below it")
    if args.shorten and not args.reason:
        raise InvalidArgument(why="--shorten needs a --reason")
    until_ns = None if args.until is None else moments.moment_ns(args.until, now_ns=time.time_ns())
    seconds = None if args.length is None else length_seconds(args.length)
    inodes = asking.inodes([args.path])
    places: dict[str, int] = {}
    changed = 0
    client = asking.mount()
    with asking.console.progress("retaining") as advance:
        for done, batch in _batches(list(inodes.items())):
            files = []
            for inode, path in batch:
                folder = os.path.dirname(os.path.abspath(path))
                if folder not in places:
                    places = {folder: os.stat(folder).st_ino}
                files.append([inode, places[folder]])
            answer = client.call(
                "retention.retain",
                files=files,
                until_ns=until_ns,
                seconds=seconds,
                shorten=args.shorten,
                reason=args.reason or "",
            )
            changed += sum(answer)
            advance(done, len(inodes), "")
    result = {"files": len(inodes), "changed": changed}
    same = f"; {len(inodes) - changed} were retained for as long already" if changed < len(inodes) else ""
    asking.console.result(result, lambda: asking.console.say(f"{changed} files are retained{same}."))
    return DONE


def show(args: argparse.Namespace, asking: Asking) -> int:
    """Show what protects a file, or every protected file in a folder; with --audit what was done, by whom and why."""
    if args.audit:
        return _audit(asking)
    if args.path is None:
        raise InvalidArgument(why="vna retention needs a PATH, or --audit")
    inodes = asking.inodes([args.path])
    client = asking.mount()
    rows: list[dict[str, Any]] = []
    for _, batch in _batches(list(inodes)):
        rows += [
            {**row, "path": inodes[row["inode"]]}
            for row in client.call("retention.of", inodes=batch)
            if row["mode"] is not None or row["holds"]
        ]

    def table() -> None:
        if not rows:
            asking.console.say("Nothing there is retained or held.")
            return
        asking.console.table(
            ["path", "retention", "until", "holds", "by"],
            [[row["path"], *shown(row), said(row["who"])] for row in rows],
        )

    asking.console.result(rows, table)
    return DONE


def shown(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Retention, its date and the holds of one file."""
    mode = row["mode"] or "none"
    until = "" if row["until_ns"] is None else moments.shown(row["until_ns"])
    holds = ", ".join(sorted({hold["id"] for hold in row["holds"]}))
    return ("over" if row["over"] else mode), until, holds or "none"


def _audit(asking: Asking) -> int:
    client = asking.mount()
    rows: list[dict[str, Any]] = []
    while page := client.call("retention.audit", after=rows[-1]["number"] if rows else 0):
        rows += page
    asking.console.result(
        rows,
        lambda: asking.console.table(
            ["when", "who", "inode", "what", "reason"],
            [
                [moments.shown(row["at_ns"]), said(row.get("who")), row["inode"], _action(row), row.get("reason", "")]
                for row in rows
            ],
        ),
    )
    return DONE


def _action(row: Mapping[str, Any]) -> str:
    """What was done; of changed rules which, and of many files how many."""
    more = [row["id"]] if "id" in row else []
    more += [f"{name} {before} to {now}" for name, (before, now) in sorted(row.get("changed", {}).items())]
    more += [f"{row['files']} files"] if row.get("files", 1) != 1 else []
    return f"{row['action']} {', '.join(more)}".rstrip()


# -- holds -------------------------------------------------------------------------------------------------------


def add_hold(args: argparse.Namespace, asking: Asking) -> int:
    """Lay a legal hold on a file, a directory or a repository."""
    made = asking.mount().call("hold.add", inode=_inode(args.path, asking), id=args.id, reason=args.reason)
    asking.console.result(made, lambda: asking.console.say(f"{printable(args.path)} is under hold {args.id}."))
    return DONE


def remove_hold(args: argparse.Namespace, asking: Asking) -> int:
    """Take a legal hold away."""
    inode = _inode(args.path, asking)
    client = asking.mount()
    client.call("hold.remove", inode=inode, id=args.id, reason=args.reason)
    [left] = client.call("retention.of", inodes=[inode]) or [{"holds": []}]
    names = sorted({hold["id"] for hold in left["holds"]})

    def say() -> None:
        still = f"; it is still under {', '.join(names)}" if names else ""
        asking.console.say(f"Hold {args.id} is removed from {printable(args.path)}{still}.")

    asking.console.result({"removed": args.id, "holds": names}, say)
    return DONE


def holds(args: argparse.Namespace, asking: Asking) -> int:
    """Show all holds, or those that a file or directory is under."""
    client = asking.mount()
    if args.path is None:
        rows = client.call("hold.list")
    else:
        rows = [
            {**hold, "path": args.path}
            for row in client.call("retention.of", inodes=[_inode(args.path, asking)])
            for hold in row["holds"]
        ]

    def table() -> None:
        if not rows:
            asking.console.say("There is no hold.")
            return
        asking.console.table(
            ["hold", "path", "since", "reason"],
            [[row["id"], row["path"], moments.shown(row["since_ns"]), row["reason"]] for row in rows],
        )

    asking.console.result(rows, table)
    return DONE


def _inode(path: str, asking: Asking) -> int:
    asking.below_mount(path)
    if not os.path.lexists(path):
        raise NotFound(what=path)
    return os.lstat(path).st_ino


def _batches(items: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Some of them at a time, and how many there were by then."""
    for start in range(0, len(items), AT_ONCE):
        batch = list(items[start : start + AT_ONCE])
        yield start + len(batch), batch
