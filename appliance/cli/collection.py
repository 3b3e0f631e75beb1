"""`vna collect`: what no file needs any more, and what removing it comes to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from appliance.cli.asking import Asking
from appliance.cli.console import size
from appliance.cli.moments import shown

GIGABYTE = 1_000_000_000
MONTH_SECONDS = 30 * 86400


def collect(args: argparse.Namespace, asking: Asking) -> int:
    """Say what collecting would come to; without --dry-run have it look at all packs now, too."""
    with asking.console.progress("looking at packs") as advance:
        plan = asking.tierd().call(
            "collect.plan", on_event=lambda event: advance(event["done"], None, ""), strays=args.strays
        )
    if not args.dry_run and plan["enabled"]:
        asking.tierd().call("collect.hurry")
    asking.console.result(plan, lambda: _show(asking, plan, dry_run=args.dry_run))
    return 0


def _show(asking: Asking, plan: Mapping[str, Any], *, dry_run: bool) -> None:
    say = asking.console.say
    say(f"{plan['packs']} packs")
    say(f"no file needs {plan['dead']} of them ({size(plan['dead_bytes'])})")
    say(
        f"little is needed of {plan['thin']} ({size(plan['thin_bytes'])}): {size(plan['thin_live_bytes'])} of contents "
        "are packed again"
    )
    if plan["condemned"]:
        say(f"{plan['condemned']} are condemned; the first may go on {shown(plan['removable_ns'])}")
    for row in plan["targets"]:
        if row["removals_waiting"]:
            say(f"target {row['name']}: {row['removals_waiting']} objects are still to go")
        for line in _early(row):
            say(line)
        if row["strays"] is not None:
            say(f"target {row['name']}: {row['strays']} packs that this index does not know; they are never removed")
    for name in plan["frozen"]:
        say(f"WARNING: repository {name} loses nothing: its tripwire was touched, or it is being rolled back")
    if not plan["enabled"]:
        say("nothing is collected: [collection] after_seconds is 0")
    elif not dry_run:
        say("tierd looks at all packs now; `vna status` says how it goes")


def _early(row: Mapping[str, Any]) -> list[str]:
    """What it costs that objects go before their provider stops charging for them."""
    if not row["early_packs"]:
        return []
    gigabyte_months = row["early_byte_seconds"] / GIGABYTE / MONTH_SECONDS
    line = (
        f"target {row['name']}: {row['early_packs']} packs are charged for longer than they are there already, "
        f"{gigabyte_months:.3f} GB-months in all"
    )
    if row["price_per_gigabyte_month"]:
        line += f" ({gigabyte_months * row['price_per_gigabyte_month']:.2f} at the price in vnafs.toml)"
    return [line, f"target {row['name']}: they stay until that is over, so they cost nothing more by going"]
