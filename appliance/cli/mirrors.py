"""`vna mirror add|list|test|remove`, and what `vna status` says of mirrors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from appliance import keys
from appliance.cli import console as shown
from appliance.cli import tables
from appliance.cli.asking import Asking
from vnafs.domain.errors import AlreadyExists, DaemonUnreachable, NotFound, Refused
from vnafs.targets.address import parse_address
from vnafs.targets.credentials import find_credentials


def add(args: argparse.Namespace, asking: Asking) -> int:
    """Add a mirror; a running tierd fills it at once."""
    configuration = asking.configuration
    if any(mirror.name == args.name for mirror in configuration.mirrors):
        raise AlreadyExists(what=f"Mirror {args.name}")
    address = parse_address(args.url, file="(arguments)", key="URL")
    file = os.path.abspath(args.credentials_file) if args.credentials_file else ""
    find_credentials(address, file=file, environ=asking.environ, key="--credentials-file")
    _refuse_secrets(args, asking)
    values: dict[str, Any] = {"name": args.name, "url": args.url}
    if args.repository:
        values["repositories"] = args.repository
    if args.plain:
        values["plain"] = True
    if args.removals != "follow":
        values["removals"] = args.removals
    if args.removals_after is not None:
        values["removals_after_seconds"] = args.removals_after
    if file:
        values["credentials_file"] = file
    tables.add(asking, "mirror", values)
    asking.console.result({"added": args.name}, lambda: asking.console.say(f"Mirror {args.name} is added."))
    return 0


def _refuse_secrets(args: argparse.Namespace, asking: Asking) -> None:
    """A mirror is plain text: of encrypted repositories only when that is said."""
    if not args.repository and (args.plain or not keys.is_encrypted(asking.configuration)):
        return
    rows = asking.mount().call("repository.list")
    for name in args.repository:
        if name not in {row["name"] for row in rows}:
            raise NotFound(what=f"Repository {name}")
    meant = [row for row in rows if not args.repository or row["name"] in args.repository]
    encrypted = [row["name"] for row in meant if row["encrypted"]]
    if encrypted and not args.plain:
        raise Refused(
            what=f"A mirror of {', '.join(encrypted)}",
            why="a mirror is plain text, and that is encrypted; say --plain, or name others with --repository",
        )


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show every mirror and how it does."""
    try:
        rows = asking.tierd().call("mirrors.status")
    except DaemonUnreachable:
        rows = [
            {"name": mirror.name, "url": mirror.url, "reachable": None, "why": "tierd is not running"}
            for mirror in asking.configuration.mirrors
        ]

    def show() -> None:
        asking.console.table(["mirror", "url"], [[row["name"], row["url"]] for row in rows])
        table(asking, rows)

    asking.console.result(rows, show)
    return 0


def table(asking: Asking, rows: Sequence[Mapping[str, Any]]) -> None:
    """How mirrors do, and what is in plain text; nothing where there are none."""
    if not rows:
        return
    for line in (line for row in rows for line in lines(row)):
        asking.console.say(line)
    asking.console.table(
        ["mirror", "reachable", "files", "waiting", "oldest", "why"],
        [
            [
                row["name"],
                {True: "yes", False: "no", None: ""}[row["reachable"]],
                f"{row['objects']}, {shown.size(row['size_bytes'])}" if "objects" in row else "",
                _waiting(row),
                shown.age(row["oldest_seconds"]) if row.get("oldest_seconds") else "",
                row["why"],
            ]
            for row in rows
        ],
    )


def lines(row: Mapping[str, Any]) -> list[str]:
    """What there is to warn of."""
    found = []
    if row.get("in_plain"):
        found.append(
            f"PLAIN TEXT: mirror {row['name']} has encrypted repositories as they are: {', '.join(row['in_plain'])}"
        )
    if row.get("left_out"):
        found.append(
            f"mirror {row['name']} leaves out encrypted repositories: {', '.join(row['left_out'])}; "
            "`plain = true` would mirror them as they are"
        )
    if row.get("held"):
        found.append(
            f"ALERT: mirror {row['name']} keeps {row['held']} names as they were, because a tripwire was touched; "
            "`vna repository set NAME --reset-tripwire` lets it follow"
        )
    return found


def _waiting(row: Mapping[str, Any]) -> str:
    if "waiting" not in row:
        return ""
    parts = [str(row["waiting"] + row["unread_events"])]
    if row["walks"]:
        parts.append(f"{row['walks']} folders to walk over")
    if row["failing"]:
        parts.append(f"{row['failing']} failing")
    return ", ".join(parts)


def test(args: argparse.Namespace, asking: Asking) -> int:
    """Look whether a mirror can be reached and is ours."""
    asking.tierd().call("mirrors.test", name=args.name)
    asking.console.result({"reachable": args.name}, lambda: asking.console.say(f"Mirror {args.name} can be reached."))
    return 0


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Mirror no more. What is on the mirror stays there."""
    if all(mirror.name != args.name for mirror in asking.configuration.mirrors):
        raise NotFound(what=f"Mirror {args.name}")
    if tables.remove(asking, "mirror", args.name):
        asking.tierd().call("mirrors.forget", name=args.name)
    said = f"Mirror {args.name} is removed; what is there stays."
    asking.console.result({"removed": args.name}, lambda: asking.console.say(said))
    return 0
