"""`vna target add|list|test|remove`: edits the configuration file and tells tierd to follow it."""

from __future__ import annotations

import argparse
import os

import tomlkit
from tomlkit.items import AoT

from appliance import config
from appliance.cli.archives import write
from appliance.cli.asking import Asking
from appliance.config import Configuration
from vnafs.domain.errors import AlreadyExists, DaemonUnreachable, NotFound
from vnafs.targets.address import parse_address
from vnafs.targets.credentials import find_credentials


def add(args: argparse.Namespace, asking: Asking) -> int:
    """Add a target; a running tierd back-fills it at once."""
    configuration = asking.configuration
    if any(target.name == args.name for target in configuration.targets):
        raise AlreadyExists(what=f"Target {args.name}")
    address = parse_address(args.url, file="(arguments)", key="URL")
    file = os.path.abspath(args.credentials_file) if args.credentials_file else ""
    find_credentials(address, file=file, environ=asking.environ, key="--credentials-file")
    document = _read(configuration)
    table = tomlkit.table()
    table.update({"name": args.name, "url": args.url})
    if file:
        table["credentials_file"] = file
    existing = document.get("target")
    if not isinstance(existing, AoT):
        existing = tomlkit.aot()
        document["target"] = existing
    existing.append(table)
    _replace(asking, document)
    asking.console.result({"added": args.name}, lambda: asking.console.say(f"Target {args.name} is added."))
    return 0


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show every target, how it does and what waits for it."""
    try:
        rows = asking.tierd().call("targets.status")
    except DaemonUnreachable:
        rows = [{"name": t.name, "url": t.url, "reachable": None, "why": ""} for t in asking.configuration.targets]
    asking.console.result(
        rows,
        lambda: asking.console.table(
            ["target", "url", "reachable", "packs waiting", "why"],
            [
                [
                    row["name"],
                    row["url"],
                    {True: "yes", False: "no", None: "tierd is not running"}[row["reachable"]],
                    row.get("packs_waiting", ""),
                    row["why"],
                ]
                for row in rows
            ],
        ),
    )
    return 0


def test(args: argparse.Namespace, asking: Asking) -> int:
    """Write, read and remove small objects on a target and show what it can do."""
    found = asking.tierd().call("targets.test", name=args.name)
    asking.console.result(
        found,
        lambda: asking.console.table(
            ["capability", "seen"], [[name.replace("_", " "), "yes" if seen else "no"] for name, seen in found.items()]
        ),
    )
    return 0


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Let a target count no more; refused while it holds the only verified copy of anything."""
    configuration = asking.configuration
    if all(target.name != args.name for target in configuration.targets):
        raise NotFound(what=f"Target {args.name}")
    asking.tierd().call("targets.retire", name=args.name)
    document = _read(configuration)
    kept = tomlkit.aot()
    for table in document["target"].unwrap():
        if table["name"] != args.name:
            item = tomlkit.table()
            item.update(table)
            kept.append(item)
    del document["target"]
    if kept:
        document.add("target", kept)
    _replace(asking, document)
    asking.console.result({"removed": args.name}, lambda: asking.console.say(f"Target {args.name} is removed."))
    return 0


def _read(configuration: Configuration) -> tomlkit.TOMLDocument:
    with open(configuration.file, encoding="utf-8") as stream:
        return tomlkit.load(stream)


def _replace(asking: Asking, document: tomlkit.TOMLDocument) -> None:
    configuration = asking.configuration
    config.parse(document.unwrap(), archive=configuration.archive, file=configuration.file)
    write(configuration.file, document)
    try:
        asking.tierd().call("targets.reload")
    except DaemonUnreachable:
        asking.console.say("tierd is not running; it follows when it starts.")
