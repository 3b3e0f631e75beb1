"""`vna target add|list|test|remove`: edits the configuration file and tells tierd to follow it."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping
from typing import Any

from appliance.cli import tables
from appliance.cli.asking import Asking
from vnafs.domain.clock import SystemClock
from vnafs.domain.errors import AlreadyExists, ConfigurationInvalid, DaemonUnreachable, NotFound
from vnafs.domain.ids import TargetName
from vnafs.targets.address import Address, parse_address
from vnafs.targets.credentials import Credentials, find_credentials
from vnafs.targets.open import check_lock, open_target


def add(args: argparse.Namespace, asking: Asking) -> int:
    """Add a target; a running tierd back-fills it at once."""
    configuration = asking.configuration
    if any(target.name == args.name for target in configuration.targets):
        raise AlreadyExists(what=f"Target {args.name}")
    address = parse_address(args.url, file="(arguments)", key="URL")
    file = os.path.abspath(args.credentials_file) if args.credentials_file else ""
    credentials = find_credentials(address, file=file, environ=asking.environ, key="--credentials-file")
    removal = os.path.abspath(args.removal_credentials_file) if args.removal_credentials_file else ""
    if removal:
        find_credentials(address, file=removal, environ={}, key="--removal-credentials-file")
    if check_lock(address, args.lock_seconds, args.lock_mode, file="(arguments)", key=f"target {args.name}"):
        _need_locks(args, address, credentials)
    values: dict[str, Any] = {"name": args.name, "url": args.url}
    if file:
        values["credentials_file"] = file
    if removal:
        values["removal_credentials_file"] = removal
    if args.lock_seconds:
        values |= {"lock_seconds": args.lock_seconds, "lock_mode": args.lock_mode}
    tables.add(asking, "target", values)
    asking.console.result({"added": args.name}, lambda: asking.console.say(f"Target {args.name} is added."))
    return 0


def _need_locks(args: argparse.Namespace, address: Address, credentials: Credentials) -> None:
    """Raises ConfigurationInvalid when the bucket has no Object Lock; TargetError when it does not answer."""
    with contextlib.closing(open_target(TargetName(args.name), address, credentials, SystemClock())) as target:
        has_locks = target.probe().object_lock
    if not has_locks:
        raise ConfigurationInvalid(
            file="(arguments)",
            key="--lock-seconds",
            value=str(args.lock_seconds),
            why="the bucket has no Object Lock, or the credential may not ask (s3:GetBucketObjectLockConfiguration)",
            fix="Leave it out, or use a bucket with Object Lock",
        )


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show every target, how it does and what waits for it."""
    try:
        rows = asking.tierd().call("targets.status")
    except DaemonUnreachable:
        rows = [{"name": t.name, "url": t.url, "reachable": None, "why": ""} for t in asking.configuration.targets]
    asking.console.result(
        rows,
        lambda: asking.console.table(
            ["target", "url", "reachable", "packs waiting", "removals", "why"],
            [
                [
                    row["name"],
                    row["url"],
                    {True: "yes", False: "no", None: "tierd is not running"}[row["reachable"]],
                    row.get("packs_waiting", ""),
                    row.get("removals_queued", ""),
                    row["why"],
                ]
                for row in rows
            ],
        ),
    )
    return 0


def test(args: argparse.Namespace, asking: Asking) -> int:
    """Write, read and remove small objects on a target; show what it can do, and what the daily credential can."""
    found = asking.tierd().call("targets.test", name=args.name)
    asking.console.result(found, lambda: show_tested(found, asking))
    return 0


def show_tested(found: Mapping[str, Any], asking: Asking) -> None:
    """For people."""
    answers = {True: "yes", False: "no", None: "unknown, or nothing to ask", "": "none"}
    rows = {name: seen for name, seen in found.items() if name not in {"credential", "warnings", "identity"}}
    rows["default retention"] = found["credential"]["default_retention"]
    rows |= {f"credential {name}": can for name, can in found["credential"].items() if name.startswith("can_")}
    shown = [[name.replace("_", " "), answers.get(seen, str(seen))] for name, seen in rows.items()]
    asking.console.table(["capability", "seen"], shown)
    for warning in found["warnings"]:
        asking.console.say(f"Warning: {warning}.")


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Let a target count no more; refused while it holds the only verified copy of anything."""
    configuration = asking.configuration
    if all(target.name != args.name for target in configuration.targets):
        raise NotFound(what=f"Target {args.name}")
    asking.tierd().call("targets.retire", name=args.name)
    tables.remove(asking, "target", args.name)
    asking.console.result({"removed": args.name}, lambda: asking.console.say(f"Target {args.name} is removed."))
    return 0
