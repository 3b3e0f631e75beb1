"""`vna service render` and `vna unmount`: what a service manager needs of an archive."""

from __future__ import annotations

import argparse
import os
import sys

from appliance.cli.asking import Asking
from appliance.service.units import archive_of, units
from appliance.shares import files, sessions
from appliance.system import run
from vnafs import store as archive_store
from vnafs.domain.errors import Refused
from vnafs.fuse.stale import take_away

DONE, NOT_YET = 0, 1


def render(args: argparse.Namespace, asking: Asking) -> int:
    """Write the units, or say which differ. Raises Refused."""
    folder = os.path.abspath(args.into)
    texts = units(asking.configuration.archive, sys.executable)
    for name, text in texts.items():
        there = archive_of(files.read(folder, name))
        if not args.check and there and there != archive_of(text):
            path = os.path.join(folder, name)
            raise Refused(what=f"Writing {path}", why=f"it serves {there}, and a machine one archive: remove it first")
    names = files.differing(folder, texts) if args.check else files.write(folder, texts)
    answer = {"into": folder, "differ" if args.check else "written": names, "files": sorted(texts)}

    def show() -> None:
        if not names:
            asking.console.say(f"Everything in {folder} is as it should be.")
        for name in names:
            asking.console.say(f"{os.path.join(folder, name)} {'differs' if args.check else 'is written'}")
        if names and not args.check:
            asking.console.say("Then: systemctl daemon-reload && systemctl enable --now vnafs.service")

    asking.console.result(answer, show)
    return NOT_YET if args.check and names else DONE


def unmount(_: argparse.Namespace, asking: Asking) -> int:
    """Take away what is mounted. Raises ArchiveBusy while it is served, Refused."""
    configuration = asking.configuration
    with archive_store.served_by_nobody(configuration.archive):
        is_there = take_away(configuration.mount)
        told = sessions.close(configuration.shares, run) if is_there else []

    def show() -> None:
        what = "is not mounted any more" if is_there else "had nothing of ours mounted"
        asking.console.say(f"{configuration.mount} {what}.")
        if told:
            asking.console.say(f"Clients of {', '.join(told)} were told to connect again.")

    asking.console.result({"mount": configuration.mount, "unmounted": is_there, "shares_closed": told}, show)
    return DONE
