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
    path, client = asking.below_mount(args.path), asking.mount()
    answer = client.call("versions.list", path=path)
    rows = list(answer["versions"])
    while answer["after"]:
        answer = client.call("versions.list", path=path, after=answer["after"])
        rows += answer["versions"]

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


def rollback(args: argparse.Namespace, asking: Asking) -> int:
    """Make a repository's tree what it was at a time; with --dry-run say what that would do."""
    to_ns = moments.moment_ns(args.to, now_ns=time.time_ns())
    method = "rollback.preview" if args.dry_run else "rollback.run"
    with asking.console.progress("names looked at") as advance:
        answer = asking.mount().call(
            method, name=args.repository, to_ns=to_ns, on_event=lambda event: advance(event["done"], None, "")
        )
    counts = answer["counts"]

    def show() -> None:
        say = asking.console.say
        would = "would be" if args.dry_run else "are"
        for outcome, text in OUTCOMES.items():
            if counts.get(outcome):
                say(f"{counts[outcome]} names {text.format(would=would)}")
            for path in answer.get("samples", {}).get(outcome, ()):
                say(f"    {console.printable(path)}")
        if not args.dry_run:
            before = moments.exact(answer["since_ns"] - 1)
            say(f"{args.repository} is what it was at {moments.shown(to_ns)}.")
            say(f"To undo this: vna rollback {args.repository} --to {before}")

    asking.console.result({**answer, "to_ns": to_ns}, show)
    return 0


OUTCOMES = {
    "unchanged": "{would} as they are",
    "restored": "{would} back with the bytes of then",
    "moved": "{would} back where they were",
    "removed": "{would} gone, as they came later (they are kept)",
    "newer": "{would} of a later time: what they led to then had not been packed",
    "lost": "cannot come back: nothing is kept of what they led to",
    "guarded": "stay where they are, retained or held",
}


def _kind(mode: int) -> str:
    return {stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "special")
