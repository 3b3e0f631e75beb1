"""`vna drill`: the worst day rehearsed on real copies, with the recovery key and never with the local one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from appliance.cli import asking as surroundings
from appliance.cli.console import age, printable, size
from appliance.config import Configuration
from vnafs import store as archive_store
from vnafs.content import keyring
from vnafs.domain.clock import NANOSECONDS, SystemClock
from vnafs.domain.errors import (
    DaemonUnreachable,
    Damaged,
    KeyMissing,
    NoSpace,
    NotFound,
    Refused,
    TargetError,
    VnaError,
)
from vnafs.domain.faults import NoFaults
from vnafs.domain.ids import TargetName
from vnafs.index.drills import every as drills_held
from vnafs.local import keyfile
from vnafs.targets.address import parse_address
from vnafs.targets.credentials import find_credentials
from vnafs.targets.open import open_target

if TYPE_CHECKING:
    from vnafs.pipeline.keys import Keys
    from vnafs.targets.port import Target
    from vnafs.upkeep.drill import Drill

SCRATCH = "drill"
EXIT_STOPPED = 143
"""128 and SIGTERM, as shells say it."""


def drill(args: argparse.Namespace, asking: surroundings.Asking) -> int:
    """Hold one on each target, or on one. Raises NotFound, Refused, KeyMissing, KeyWrong, what a target raises."""
    from vnafs.upkeep import drill as work  # noqa: PLC0415 - loads what no other command needs

    signal.signal(signal.SIGTERM, _stop)  # what is in the scratch folder goes, whoever ends us
    configuration = asking.configuration
    chosen = [row for row in configuration.targets if args.target in {"", row.name}]
    if args.due:
        chosen = [row for row in chosen if _is_due(row.name, configuration)]
    if not chosen and not args.due:
        raise NotFound(what=f"Target {args.target}" if args.target else "A target")
    held: list[dict[str, Any]] = []
    passed = True
    for row in chosen:
        address = parse_address(row.url, file=configuration.file, key="target.url")
        credentials = find_credentials(
            address, file=row.credentials_file, environ=asking.environ, key="target.credentials_file"
        )
        target = open_target(TargetName(row.name), address, credentials, SystemClock())
        began, expected = SystemClock().now(), _sent(row.name, asking)
        with contextlib.closing(target):
            try:
                found = _held(target, args, asking)
            except VnaError as problem:
                if not isinstance(problem, Damaged | NotFound | TargetError) and not args.due:
                    raise  # nothing is known of the target: the key is missing, the disk is full
                found = work.Drill(row.name, began, problems=[str(problem)])
        if found.number < expected and not found.problems:
            found.problems.append(f"it has segments up to {found.number}, and {expected} were sent to it")
        passed &= found.passed
        held.append({**dataclasses.asdict(found), "passed": found.passed})
        with contextlib.suppress(DaemonUnreachable):  # it may be held beside an archive that does not run
            asking.tierd().call("drill.held", drill=held[-1])

    def show() -> None:
        for row in held:
            _show(asking, row)

    asking.console.result(held, show)
    return 0 if passed else Damaged.exit_code


def _stop(*_: object) -> NoReturn:
    raise SystemExit(EXIT_STOPPED)


def _sent(name: str, asking: surroundings.Asking) -> int:
    """The last segment that the target is known to have; 0 where nobody can say."""
    try:
        status = asking.tierd().call("tiering.status")
    except DaemonUnreachable:
        return 0
    row = status["manifests"]["targets"].get(name)
    return 0 if row is None else int(row["number"])


def _is_due(name: str, configuration: Configuration) -> bool:
    """Whether the last drill on a target, whatever it came to, is longer ago than the period."""
    period = configuration.drill.period_seconds
    store = archive_store.read_store(configuration.archive)
    try:
        with store.read() as reader:
            last = max((row["began_ns"] for row in drills_held(reader) if row["target"] == name), default=0)
    finally:
        store.close()
    return period > 0 and SystemClock().now() - last > period * NANOSECONDS


def _held(target: Target, args: argparse.Namespace, asking: surroundings.Asking) -> Drill:
    from vnafs.upkeep import drill as work  # noqa: PLC0415 - loads what no other command needs

    configuration = asking.configuration
    files_max = configuration.drill.files if args.files is None else args.files
    base = args.scratch or os.path.join(configuration.archive, SCRATCH)
    _require_room(configuration, base)
    archive_store.sweep(base)
    key_ring = _keys(target, args.key or configuration.drill.key_file)
    live = archive_store.read_namespace(configuration.archive)
    try:
        with archive_store.scratch(base) as (engines, folders), asking.console.progress("drill") as advance:
            return work.Rehearsal(
                target,
                live,
                engines,
                folders,
                key_ring,
                dice=random.SystemRandom(),
                clock=SystemClock(),
                progress=lambda what, done, total: advance(done, total, what),
            ).hold(files_max)
    finally:
        live.close()


def _require_room(configuration: Configuration, base: str) -> None:
    """Raises NoSpace unless a second index fits beside everything else."""
    os.makedirs(base, mode=0o700, exist_ok=True)
    folders = (configuration.folder(name) for name in ("namespace", "store"))
    needed = sum(entry.stat().st_blocks * 512 for folder in folders for entry in os.scandir(folder))
    disk = os.statvfs(base)
    if disk.f_bavail * disk.f_frsize < needed + configuration.spool.reserve_bytes:
        raise NoSpace(why=f"a second index takes up to {size(needed)}; name another disk with --scratch")


def _keys(target: Target, key_file: str) -> Keys | None:
    """What the recovery key opens on the target; None where nothing is encrypted. Raises KeyMissing, Refused."""
    from vnafs.pipeline.keys import Keys, unlocked_from  # noqa: PLC0415 - loads a crypto library

    if not any(target.list(keyring.KEYRINGS)):
        if key_file:
            raise NotFound(what=f"A keyring on target {target.name}")
        return None
    if not key_file:
        raise KeyMissing(what="This archive", why="name a file with its recovery key with --key or [drill] key_file")
    unlocked = unlocked_from(target, keyring.secret_of(keyfile.read_secret(key_file, key="--key")))
    if unlocked is None:
        return None
    if unlocked.opened_by != keyring.RECOVERY:
        raise Refused(
            what="The drill", why="this key is the local one, which is lost on that day; use the recovery key"
        )
    return Keys(unlocked, save=_keep_nothing, random=os.urandom, clock=SystemClock(), faults=NoFaults())


def _keep_nothing(_: bytes) -> None:
    raise Refused(what="Changing keys", why="a drill only reads")


def _show(asking: surroundings.Asking, row: dict[str, Any]) -> None:
    say = asking.console.say
    say(
        f"{'PASSED' if row['passed'] else 'FAILED'}: target {printable(row['target'])}, "
        f"index of {row['files']} files in {age(row['index_seconds'])}, first file whole after "
        f"{age(row['first_file_seconds'])}, {row['files_read']} files of {size(row['bytes_read'])} read back"
    )
    say(f"  {row['rows_equal']} rows equal, {row['changed_since']} changed since, {row['differences']} differ")
    for line in [*row["problems"], *row["examples"]]:
        say(f"  {printable(line)}")


def lines(status: Mapping[str, Any], period_seconds: float) -> list[str]:
    """What the last rehearsal on each target came to, or that it is time for one."""
    found = []
    last = {row["target"]: row for row in status["drills"]}
    for name in (row["name"] for row in status["targets"]):
        held = last.get(name)
        if held is None:
            found.append(f"a restore from {name} was never rehearsed: `vna drill`")
            continue
        seconds = (SystemClock().now() - held["began_ns"]) / NANOSECONDS
        what = f"a restore from {name} was rehearsed {age(seconds)} ago"
        if not held["passed"]:
            found.append(
                f"WARNING: {what} and FAILED: {held['differences']} differences, {held['unreadable']} files unreadable"
            )
        elif period_seconds and seconds > 2 * period_seconds:
            found.append(f"WARNING: {what}, which is too long: `vna drill`")
        else:
            found.append(f"{what}: index back in {age(held['index_seconds'])}, {held['files_read']} files read back")
    return found
