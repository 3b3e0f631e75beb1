"""`vna init`, and how a configuration file is written."""

from __future__ import annotations

import argparse
import os

import tomlkit
from tomlkit.items import AoT

from appliance import config, keys, system
from appliance.cli.console import Console
from appliance.control.mount import acknowledgement
from vnafs import store as archive_store
from vnafs.domain.clock import SystemClock
from vnafs.domain.errors import AlreadyExists, ConfigurationInvalid
from vnafs.domain.faults import NoFaults
from vnafs.fs.settings import Settings
from vnafs.local.replacement import replace
from vnafs.targets.address import parse_address

HEADER = """vnafs archive: configuration. `vna status` shows what runs with it; daemons read it at start,
targets also with `vna target add|remove`. Every key that is not here has its default, see README.md."""


def init(args: argparse.Namespace, console: Console) -> int:
    """Write DIR/vnafs.toml and an empty archive with one repository. Raises AlreadyExists, ConfigurationInvalid."""
    archive = os.path.abspath(args.directory)
    file = os.path.join(archive, config.FILE_NAME)
    if os.path.exists(file):
        raise AlreadyExists(what=f"An archive in {archive}")
    level = acknowledgement(args.ack)
    encrypted = args.encryption == "on"
    if encrypted and not args.recovery_key:
        raise ConfigurationInvalid(
            file="(arguments)",
            key="--recovery-key",
            value="nothing",
            why="an encrypted archive can only be restored with its recovery key",
            fix="Name a new file for it, print it, and keep it away from this machine",
        )
    document = tomlkit.document()
    for line in HEADER.splitlines():
        document.add(tomlkit.comment(line))
    document.add("version", tomlkit.item(1))
    document.add("mount", tomlkit.item(os.path.abspath(args.mount)))
    found = _targets(args.target or [])
    if found:
        document.add("target", found)
    if encrypted and args.key_file:
        document.add("encryption", tomlkit.item({"key_file": os.path.abspath(args.key_file)}))
    configuration = config.parse(document.unwrap(), archive=archive, file=file)
    os.makedirs(archive, mode=0o700, exist_ok=True)
    keys.forget(configuration)  # of an attempt that was cut short: nothing was written with them
    archive_store.make(archive)
    engine = archive_store.open_namespace(archive)
    try:
        if encrypted:
            identity = archive_store.archive_id(engine, archive)
            keys.make(configuration, identity, os.path.abspath(args.recovery_key), console.asker())
        tree = archive_store.open_tree(
            archive,
            engine,
            Settings(),
            clock=SystemClock(),
            faults=NoFaults(),
            copies_of=lambda _, __: (),
            boot_id=system.boot_id(),
        )
        # twice is the most that a site can ask for by adding targets later; one is what it has now
        copies = max(1, min(2, len(configuration.targets)))
        tree.repositories.add(
            args.repository,
            acknowledgement=level,
            copies_min=copies,
            encrypted=encrypted,
            uid=os.geteuid(),
            gid=os.getegid(),
        )
        tree.close()
    finally:
        engine.close()
    archive_store.make_receipt_key(archive)
    write(file, document)
    answer = {
        "archive": archive,
        "configuration": file,
        "repository": args.repository,
        "mount": configuration.mount,
        "encrypted": encrypted,
    }

    def show() -> None:
        if encrypted:
            console.say(
                f"What leaves this machine is encrypted. The recovery key is in {os.path.abspath(args.recovery_key)}: "
                "print it and keep it elsewhere. Without it nobody can restore this archive, whoever they are."
            )
        else:
            console.say("Copies are not encrypted: whoever can read a target can read the images.")
        console.say(f"Archive {archive} is ready. Start it with: vna serve --archive {archive}")

    console.result(answer, show)
    return 0


def _targets(texts: list[str]) -> AoT:
    """NAME=URL of each. Raises ConfigurationInvalid."""
    found = tomlkit.aot()
    for text in texts:
        name, separator, url = text.partition("=")
        if not separator:
            raise ConfigurationInvalid(
                file="(arguments)", key="--target", value=text, why="is not NAME=URL", fix="For example a=file:///srv/a"
            )
        parse_address(url, file="(arguments)", key="--target")
        table = tomlkit.table()
        table.update({"name": name, "url": url})
        found.append(table)
    return found


def write(file: str, document: tomlkit.TOMLDocument) -> None:
    """Replace a configuration file in one step, synced."""
    replace(file, tomlkit.dumps(document).encode(), mode=0o600)
