"""`vna mount|tierd|serve`: the commands that go on and on.

Who starts them anew wants them to begin at once, so this module loads nothing that only other commands need;
`python -m appliance` comes here first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from appliance import config, journal, system
from appliance.config import Configuration
from appliance.faults import faults_from
from appliance.service.systemd import manager_of
from vnafs.domain.errors import VnaError

if TYPE_CHECKING:
    from appliance.cli.asking import Asking

    Run = Callable[[argparse.Namespace, Asking], int]
else:
    Run = Callable

NAMES = ("mount", "tierd", "serve")
ARCHIVE_DEFAULT = "/var/lib/vnafs"
INTERRUPTED = 130


class Command(Protocol):
    """Adds one command."""

    def __call__(self, name: str, about: str, run: Run | None = None) -> argparse.ArgumentParser:
        """Its parser, for arguments of its own."""
        ...


def main(arguments: Sequence[str]) -> int:
    """Run one of them; its exit code."""
    environ = dict(os.environ)
    shared = common_of(environ)
    parser = argparse.ArgumentParser(prog="vna")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, run: Run | None = None) -> argparse.ArgumentParser:
        del run
        return commands.add_parser(name, parents=[shared], help=about, description=about)

    add(command)
    args = parser.parse_args(arguments)
    journal.begin(args.log_level)
    try:
        return run(args, config.load(args.archive), environ)
    except VnaError as problem:
        return _problem(problem.code, str(problem), problem.exit_code, as_json=args.json)
    except KeyboardInterrupt:
        return _problem("Interrupted", "interrupted; what was done stays done", INTERRUPTED, as_json=args.json)


def _problem(code: str, message: str, exit_code: int, *, as_json: bool) -> int:
    from appliance.cli.console import Console  # noqa: PLC0415 - as the module says

    Console(as_json=as_json).problem(code, message, exit_code)
    return exit_code


def common_of(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """What every command takes."""
    return common(environ.get("VNA_ARCHIVE", ARCHIVE_DEFAULT), "info", as_json=False)


def common(archive: str, level: str, *, as_json: bool | str) -> argparse.ArgumentParser:
    """What every command takes, with these defaults."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--archive",
        metavar="DIR",
        default=archive,
        help=f"the archive (or VNA_ARCHIVE; otherwise {ARCHIVE_DEFAULT})",
    )
    common.add_argument("--json", action="store_true", default=as_json, help="answer with one JSON document")
    common.add_argument("--log-level", default=level, choices=["debug", "info", "warning", "error"])
    return common


def add(command: Command) -> None:
    """Add them to a parser."""
    for name, about in (("mount", "serve the tree"), ("tierd", "seal, pack, replicate, evict and recall")):
        daemon = command(name, f"{about}, in the foreground")
        daemon.add_argument("--fault", metavar="POINT=kill[:COUNT]", help="for tests: die at a named point")
        daemon.add_argument("--keeper", default="", help=argparse.SUPPRESS)  # from `vna serve` to mount
    serve = command("serve", "mount and tierd together in the foreground; what dies is started again")
    about = "the service manager keeps the mount when this process ends (NOTIFY_SOCKET; see `service render`)"
    serve.add_argument("--keep-mount", action="store_true", help=about)


def run(args: argparse.Namespace, configuration: Configuration, environ: Mapping[str, str]) -> int:
    """Run the one that was named."""
    if args.command == "mount":
        return mount(args, configuration)
    if args.command == "tierd":
        return tierd(args, configuration, environ)
    return serve(configuration, environ, keep_mount=args.keep_mount)


def mount(args: argparse.Namespace, configuration: Configuration) -> int:
    """Serve the tree in the foreground."""
    from appliance.daemons import mount as daemon  # noqa: PLC0415 - needs libfuse, which a remote `vna status` does not

    return daemon.run(configuration, faults_from(args.fault), keeper=args.keeper)


def tierd(args: argparse.Namespace, configuration: Configuration, environ: Mapping[str, str]) -> int:
    """Tier in the foreground."""
    # Before the import: libraries start threads of their own, and one that does not block them would end us all.
    system.hold_stop_signals()
    from appliance.daemons import tierd as daemon  # noqa: PLC0415 - loads the object stores' libraries

    return daemon.run(configuration, environ, faults_from(args.fault))


def serve(configuration: Configuration, environ: Mapping[str, str], *, keep_mount: bool = False) -> int:
    """Run both under a supervisor."""
    from appliance.daemons import supervisor  # noqa: PLC0415 - the others are started by it

    manager, rest = manager_of(environ)
    return supervisor.run(configuration.archive, {}, rest, manager, keep_mount=keep_mount)
