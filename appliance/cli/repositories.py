"""`vna repository add|list|set|remove`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from appliance import keys
from appliance.cli import console as shown
from appliance.cli import sizes
from appliance.cli.asking import Asking
from appliance.cli.retention import length, length_seconds
from vnafs.domain.errors import Refused

DAY_SECONDS = 86400


def add(args: argparse.Namespace, asking: Asking) -> int:
    """Make a repository, which is a top-level directory of the mount."""
    has_keys = keys.is_encrypted(asking.configuration)
    if args.encryption == "on" and not has_keys:
        raise Refused(what="An encrypted repository", why="this archive has no keys; make one with --encryption on")
    encrypted = has_keys if args.encryption is None else args.encryption == "on"
    made = asking.mount().call("repository.add", name=args.name, encrypted=encrypted, **_rules(args))
    asking.console.result(made, lambda: _show(asking, [made]))
    return 0


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show all repositories and their rules."""
    rows = asking.mount().call("repository.list")
    asking.console.result(rows, lambda: _show(asking, rows))
    return 0


def change(args: argparse.Namespace, asking: Asking) -> int:
    """Change a repository's rules."""
    row = asking.mount().call(
        "repository.set",
        name=args.name,
        recall_bytes_per_day=args.recall_bytes_per_day,
        recall_requests_per_day=args.recall_requests_per_day,
        **_rules(args),
    )
    asking.mount().call("tree.fold")  # tierd reads the rules there
    asking.tierd().call("targets.reload")  # what counts as replicated may have changed
    asking.console.result(row, lambda: _show(asking, [row]))
    return 0


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Remove an empty repository."""
    asking.mount().call("repository.remove", name=args.name)
    asking.console.result({"removed": args.name}, lambda: asking.console.say(f"Repository {args.name} is removed."))
    return 0


def _rules(args: argparse.Namespace) -> dict[str, Any]:
    days = args.keep_versions
    return {
        "acknowledgement": args.ack,
        "copies_min": args.copies,
        "versions_kept_seconds": None if days is None else round(days * DAY_SECONDS),
        "tripwire": args.tripwire,
        "tripwire_per_minute": args.tripwire_per_minute,
        "reset_tripwire": getattr(args, "reset_tripwire", False),
        "quota_bytes": None if args.quota_bytes is None else sizes.size_bytes(args.quota_bytes),
        "quota_files": None if args.quota_files is None else sizes.number(args.quota_files),
        "retention": args.retention,
        "retention_seconds": None if args.retain_for is None else length_seconds(args.retain_for),
        "autocommit_seconds": None if args.autocommit_after is None else length_seconds(args.autocommit_after),
        "reason": getattr(args, "reason", None),
    }


def _show(asking: Asking, rows: Sequence[Mapping[str, Any]]) -> None:
    asking.console.table(
        [
            "repository",
            "acknowledgement",
            "copies",
            "encrypted",
            "used",
            "recall a day",
            "versions kept",
            "tripwire",
            "retention",
        ],
        [
            [
                row["name"],
                row["acknowledgement"],
                row["copies_min"],
                "yes" if row["encrypted"] else "NO",
                _used(row),
                _budget(row),
                f"{row['versions_kept_seconds'] / DAY_SECONDS:g} days",
                "TOUCHED" if row["tripped_ns"] else row["tripwire"],
                _retention(row),
            ]
            for row in rows
        ],
    )


def _used(row: Mapping[str, Any]) -> str:
    size_bytes, files = shown.size(row["used_bytes"]), str(row["used_files"])
    if row["quota_bytes"]:
        size_bytes += f" of {shown.size(row['quota_bytes'])}"
    if row["quota_files"]:
        files += f" of {row['quota_files']}"
    return f"{size_bytes}, {files} files"


def _retention(row: Mapping[str, Any]) -> str:
    parts = [str(row["retention"])]
    parts += [length(row["retention_seconds"])] if row["retention_seconds"] else []
    parts += [f"committed after {length(row['autocommit_seconds'])}"] if row["autocommit_seconds"] else []
    return ", ".join(parts)


def _budget(row: Mapping[str, Any]) -> str:
    size_bytes, requests = row["recall_bytes_per_day"], row["recall_requests_per_day"]
    parts = [shown.size(size_bytes)] if size_bytes else []
    parts += [f"{requests} requests"] if requests else []
    return ", ".join(parts) or "any"
