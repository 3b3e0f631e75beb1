"""`vna restore` and `vna adopt`: an archive from one target alone, and one that goes on after it was overtaken."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from appliance import config, keys
from appliance.cli.archives import HEADER, write
from appliance.cli.asking import Asking
from appliance.cli.console import Console, printable
from appliance.config import Configuration
from appliance.control import peers
from appliance.daemons import supervisor
from vnafs import store as archive_store
from vnafs.content import keyring, manifest
from vnafs.content.keyring import Unlocked
from vnafs.domain.clock import NANOSECONDS, SystemClock
from vnafs.domain.errors import AlreadyExists, ConfigurationInvalid, Damaged, KeyMissing, Refused
from vnafs.domain.ids import TargetName
from vnafs.index import repositories
from vnafs.local import keyfile
from vnafs.pipeline.keys import unlocked_from
from vnafs.targets.address import parse_address
from vnafs.targets.credentials import find_credentials
from vnafs.targets.open import open_target
from vnafs.targets.port import Target

NAME_OF_UNKNOWN = "restored"
"""Of the target restored from, where the archive's own configuration does not name it."""


def restore(args: argparse.Namespace, console: Console, environ: Mapping[str, str]) -> int:
    """Rebuild an archive in an empty folder, and serve it. Raises AlreadyExists, NotFound, ConfigurationInvalid."""
    archive = os.path.abspath(args.into)
    if os.path.isdir(archive) and os.listdir(archive):
        raise AlreadyExists(what=f"Something in {archive}")
    credentials = os.path.abspath(args.credentials_file) if args.credentials_file else ""
    source = _open(TargetName("source"), args.source, credentials, environ)
    try:
        return _restore(args, console, environ, archive, source)
    finally:
        source.close()


@dataclasses.dataclass(frozen=True, slots=True)
class _Chosen:
    """What the new archive will be configured as."""

    document: tomlkit.TOMLDocument
    configuration: Configuration
    name: TargetName
    """Of the target restored from."""
    left_out: tuple[tuple[str, str], ...]
    """Name and URL of the other targets."""
    mirrors: tuple[tuple[str, str], ...]
    """The same of all plain mirrors: one archive at a time may change what is there."""
    problems: tuple[str, ...]


def _choose(text: str, args: argparse.Namespace, archive: str) -> _Chosen:
    """Raises ConfigurationInvalid for what the arguments say, not for what was recorded."""
    file = os.path.join(archive, config.FILE_NAME)
    problems: list[str] = []
    try:
        recorded = tomlkit.parse(text)
    except TOMLKitError as problem:
        recorded = tomlkit.document()
        problems.append(f"the recorded configuration cannot be read, defaults are used instead: {problem}")
    known = [dict(table) for table in _tables(recorded, "target")]
    mirrors = tuple((str(t.get("name", "")), str(t.get("url", ""))) for t in _tables(recorded, "mirror"))
    document, name = _document(recorded, args, known)
    try:
        configuration = config.parse(document.unwrap(), archive=archive, file=file)
    except ConfigurationInvalid as problem:
        document, name = _document(tomlkit.document(), args, known)
        configuration = config.parse(document.unwrap(), archive=archive, file=file)  # else the arguments are wrong
        problems.append(f"the recorded configuration cannot be used, defaults are used instead: {problem}")
    others = ((str(t.get("name", "")), str(t.get("url", ""))) for t in known if t.get("url") != args.source)
    return _Chosen(document, configuration, TargetName(name), tuple(others), mirrors, tuple(problems))


def _tables(document: tomlkit.TOMLDocument, key: str) -> list[dict[str, Any]]:
    found = document.unwrap().get(key, [])
    return [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []


def _restore(
    args: argparse.Namespace, console: Console, environ: Mapping[str, str], archive: str, source: Target
) -> int:
    from vnafs.upkeep import plan  # noqa: PLC0415 - no other command needs them
    from vnafs.upkeep import restore as work  # noqa: PLC0415 - as above

    unlocked = _unlocked(source, args.key, may_be_older=args.older_key)
    secrets = None if unlocked is None else plan.secrets_of(unlocked)
    _choose(
        work.configuration(source, secrets), args, archive
    )  # before the long work, which a mistake would make futile
    os.makedirs(archive, mode=0o700, exist_ok=True)
    began = time.monotonic()
    namespace, store = archive_store.open_to_fill(archive)
    try:
        with console.progress("restoring") as advance:
            report = work.rebuild(
                source,
                args.source,
                namespace,
                store,
                name=lambda text: _choose(text, args, archive).name,
                clock=SystemClock(),
                progress=lambda what, done, total: advance(done, total, what),
                secrets=secrets,
            )
        # the file of the first key was on the lost machine alone; what was in a keyring is back
        unlocked, key_is_new = archive_store.sign_after_restore(archive, store, unlocked, clock=SystemClock())
        with namespace.read() as reader:
            wanting = {row.name: row.copies_min for row in repositories.every(reader) if row.copies_min > 1}
    finally:
        namespace.close()
        store.close()
    chosen = _choose(report.configuration, args, archive)
    report.problems += chosen.problems
    if unlocked is not None:
        keys.settle(chosen.configuration, unlocked)
    write(chosen.configuration.file, chosen.document)  # from here on this is an archive
    seconds = time.monotonic() - began
    age = max(0.0, time.time() - report.recorded_ns / NANOSECONDS)
    answer = {
        "archive": archive,
        "files": report.files,
        "files_without_bytes": report.without_bytes,
        "files_with_older_bytes": report.older_bytes,
        "packs": report.packs,
        "packs_missing": report.packs_missing,
        "segment": report.number,
        "recorded_seconds_ago": round(age),
        "problems": report.problems,
        "targets_left_out": [name for name, _ in chosen.left_out],
        "mirrors_left_out": [name for name, _ in chosen.mirrors],
        "repositories_wanting_copies": wanting,
        "receipt_key_is_new": key_is_new,
        "seconds": round(seconds, 1),
    }

    def show() -> None:
        for problem in report.problems:
            console.say(f"warning: {printable(problem)}")
        if report.without_bytes:
            console.say(
                f"warning: {report.without_bytes} files have no bytes on this target; they are there and cannot be "
                "read. `vna lost` names them."
            )
        if report.older_bytes:
            console.say(
                f"warning: {report.older_bytes} files are back as they were at an earlier moment: their newest bytes "
                "had not reached this target."
            )
        for name, url in chosen.left_out:
            console.say(
                f"Target {printable(name)} is left out for now; `vna target add {printable(name)} {printable(url)}` "
                "adds it back, with what it has. Should its manifests be younger than these, this archive says that it "
                "was overtaken: then stop it and decide with `vna adopt`."
            )
        for name, url in chosen.mirrors:
            console.say(
                f"Mirror {printable(name)} is left out for now; `vna mirror add {printable(name)} {printable(url)}` "
                "lets it follow this archive, once nothing else does."
            )
        for name, copies in wanting.items():
            console.say(
                f"Repository {printable(name)} wants {copies} copies of each file and there is one target: nothing new "
                "becomes replicated there until there are more targets, or until "
                f"`vna repository set {printable(name)} --copies 1`."
            )
        console.say(
            f"{report.files} files are back in {archive}, as recorded {round(age)} seconds ago ({seconds:.1f} s). "
            "Bytes come when they are read; copies are verified in the background."
        )
        if key_is_new:
            console.say(
                "Receipts are signed with a new key from now on: `vna receipt --public-key` prints what verifies them. "
                "`vna receipt --public-keys` prints those of earlier ones too, as this target has them."
            )

    console.result(answer, show)
    if args.serve:
        console.say(f"Serving at {chosen.configuration.mount}; SIGTERM or Ctrl-C stops it.")
        return supervisor.run(archive, {}, environ)
    return Damaged.exit_code if report.problems or report.without_bytes else 0


def _unlocked(source: Target, key_file: str, *, may_be_older: bool) -> Unlocked | None:
    """The keys of what is on a target; None where nothing is encrypted. Raises KeyMissing, KeyWrong."""
    if not any(source.list(keyring.KEYRINGS)):
        if key_file:
            raise Refused(
                what="Restoring", why="there is no keyring on this target: nothing is encrypted, or it was removed"
            )
        return None
    if not key_file:
        raise KeyMissing(what="What is on this target", why="name a file that holds its recovery key with --key")
    secret = keyring.secret_of(keyfile.read_secret(key_file, key="--key"))
    return unlocked_from(source, secret, may_be_older=may_be_older)


def _document(
    document: tomlkit.TOMLDocument, args: argparse.Namespace, known: list[dict[str, Any]]
) -> tuple[tomlkit.TOMLDocument, str]:
    """The configuration as it was recorded, with this mount and only the target restored from; and that one's name."""
    if "version" not in document:
        document = tomlkit.document()
        for line in HEADER.splitlines():
            document.add(tomlkit.comment(line))
        document.add("version", tomlkit.item(1))
    document["mount"] = os.path.abspath(args.mount)
    document.pop("encryption", None)  # a restored archive gets a key file of its own
    chosen = next((table for table in known if table.get("url") == args.source), {})
    chosen = {"name": NAME_OF_UNKNOWN, **chosen}
    credentials = os.path.abspath(args.credentials_file) if args.credentials_file else ""
    table = tomlkit.table()
    table.update({**chosen, "url": args.source})
    for secret in ("credentials_file", "removal_credentials_file"):  # paths of the machine that is gone
        table.pop(secret, None)
    if credentials:
        table["credentials_file"] = credentials
    found = tomlkit.aot()
    found.append(table)
    document.pop("target", None)
    document.pop("mirror", None)
    document.add("target", found)
    return document, str(chosen["name"])


def _open(name: TargetName, url: str, credentials_file: str, environ: Mapping[str, str]) -> Target:
    address = parse_address(url, file="(arguments)", key="--from")
    credentials = find_credentials(address, file=credentials_file, environ=environ, key="--credentials-file")
    return open_target(name, address, credentials, SystemClock())


def adopt(_: argparse.Namespace, asking: Asking) -> int:
    """Let this archive go on although its targets went on without it. Raises ArchiveBusy while it runs."""
    from vnafs.index import targets  # noqa: PLC0415 - no other command opens the index as its owner
    from vnafs.upkeep import adopt as work  # noqa: PLC0415

    configuration: Configuration = asking.configuration
    by = peers.actor(os.geteuid(), asking.on_behalf_of)
    secrets = _own_secrets(configuration, asking.environ)
    namespace = archive_store.open_namespace(configuration.archive)
    try:
        store = archive_store.open_store(configuration.archive)
        try:
            with store.read() as reader:
                numbers = {row.name: row.number for row in targets.current(reader).values()}
            away = sorted(numbers.keys() - {TargetName(t.name) for t in configuration.targets})
            if away:
                raise Refused(
                    what="Adopting",
                    why=f"{', '.join(away)} {'counts' if len(away) == 1 else 'count'} and cannot be asked how far the "
                    f"other run went there; write {'it' if len(away) == 1 else 'them'} into vnafs.toml again first",
                )
            places = {
                numbers[TargetName(t.name)]: _open(TargetName(t.name), t.url, t.credentials_file, asking.environ)
                for t in configuration.targets
                if TargetName(t.name) in numbers
            }
            report = work.adopt(namespace, store, places, clock=SystemClock(), by=by, secrets=secrets)
        finally:
            store.close()
    finally:
        namespace.close()
    asking.console.result(
        {"segment": report.number, "epoch": report.epoch, "copies_in_doubt": report.copies_in_doubt},
        lambda: asking.console.say(
            f"This archive goes on after segment {report.number}, in epoch {report.epoch}; {report.copies_in_doubt} "
            "copies are verified again. What only the other run stored stays on the targets and is not used."
        ),
    )
    return 0


def _own_secrets(configuration: Configuration, environ: Mapping[str, str]) -> manifest.Keys | None:
    """The keys of this archive's manifests; None where nothing is encrypted. Raises KeyWrong, ConfigurationInvalid."""
    from vnafs.upkeep import plan  # noqa: PLC0415 - as above

    secret = keys.secret(configuration, environ)
    if secret is None:
        return None
    return plan.secrets_of(keyring.unlock(keyfile.load(configuration.folder("keys")), secret))
