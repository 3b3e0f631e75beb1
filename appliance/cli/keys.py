"""`vna key list|rotate|renew|check`: the keys of an encrypted archive. No key is ever shown."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os

from appliance import keys
from appliance.cli.asking import Asking
from vnafs.content import keyring
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import KeyWrong, NotFound, Refused
from vnafs.local import keyfile


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show which keys there are, and which is used."""
    answer = asking.tierd().call("keys.list")
    names = {keyring.MANIFESTS: "(manifests)", keyring.RECEIPTS: "(receipts)"} | {
        row["id"]: row["name"] for row in asking.mount().call("repository.list")
    }
    latest = {row["repository"]: row["id"] for row in answer["keys"]}

    def show() -> None:
        rows = [
            [names.get(row["repository"], row["repository"]), row["id"], _day(row["created_ns"]),
             "used" if latest[row["repository"]] == row["id"] else
             "used before" if row["repository"] == keyring.RECEIPTS else "kept to read"]
            for row in answer["keys"]
        ]  # fmt: skip
        asking.console.table(["repository", "key", "made", ""], rows)
        asking.console.say(f"Keyring {answer['number']}, opened by: {', '.join(answer['secrets'])}.")
        for name, number in answer["targets"].items():
            newest = "the newest" if number == answer["number"] else f"number {number}, and the newest is on its way"
            asking.console.say(f"Target {name} has {newest}.")

    asking.console.result(answer, show)
    return 0


def rotate(args: argparse.Namespace, asking: Asking) -> int:
    """Use other keys for all that is written from now on, of one repository or of everything."""
    rows = {row["name"]: row["id"] for row in asking.mount().call("repository.list") if row["encrypted"]}
    if args.repository and args.repository not in rows:
        raise NotFound(what=f"An encrypted repository {args.repository}")
    wanted = [rows[args.repository]] if args.repository else [0, *rows.values()]
    made = [asking.tierd().call("keys.rotate", repository=number)["id"] for number in wanted]
    asking.console.result(
        {"keys": made}, lambda: asking.console.say(f"{len(made)} new keys are used from now on; older ones still read.")
    )
    return 0


def renew(args: argparse.Namespace, asking: Asking) -> int:
    """After a leak: another recovery key, another key file, another key for everything written from now on."""
    configuration = asking.configuration
    if configuration.encryption.key_environment:
        raise Refused(what="Renewing", why="the secret is in the environment; use encryption.key_file for it")
    recovery = os.urandom(keyring.RECOVERY_BYTES)
    recovery_file, path = os.path.abspath(args.recovery_key), keys.key_file(configuration)
    master = keys.new_secret()
    keys.secret(configuration, asking.environ)  # settles a change that was cut short
    keys.write_new(recovery_file, keyring.recovery_text(recovery), key="--recovery-key")
    is_asked = False
    try:
        ask = asking.console.asker()
        if ask is not None:
            keys.confirm(recovery, recovery_file, ask)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{keys.FRESH}")  # of a change that never came to pass: it opens nothing
        keys.write_new(f"{path}{keys.FRESH}", master, key="encryption.key_file")
        is_asked = True
        answer = asking.tierd().call(
            "keys.renew", master=keyring.secret_of(master.encode()).hex(), recovery=recovery.hex()
        )
    except BaseException:
        if _opens(configuration.folder("keys"), recovery):  # the answer was lost, not the change
            os.replace(f"{path}{keys.FRESH}", path)
        elif is_asked:
            asking.console.say(f"The keys may be renewed still: keep both, and try `vna key check {recovery_file}`.")
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(recovery_file)
        raise
    os.replace(f"{path}{keys.FRESH}", path)
    asking.console.result(
        answer,
        lambda: asking.console.say(
            f"The recovery key is now in {recovery_file}; the one before opens nothing that is packed from now on. "
            "What was packed before stays readable with it: older keyrings stay on the targets."
        ),
    )
    return 0


def check(args: argparse.Namespace, asking: Asking) -> int:
    """Whether a key opens this archive's keyring: try the paper before it is needed. Raises KeyWrong."""
    configuration = asking.configuration
    if not keys.is_encrypted(configuration):
        raise Refused(what="This", why="the archive is not encrypted")
    if args.file:
        text = keyfile.read_secret(args.file, key="FILE")
    else:
        ask = asking.console.asker()
        if ask is None:
            raise NotFound(what="A terminal to type the key at; name a file instead, which")
        text = ask("Type the key: ").encode()
    keyring.unlock(keyfile.load(configuration.folder("keys")), keyring.secret_of(text))
    asking.console.result({"opens": True}, lambda: asking.console.say("Yes: this key opens the archive."))
    return 0


def _opens(folder: str, secret: bytes) -> bool:
    try:
        keyring.unlock(keyfile.load(folder), secret)
    except KeyWrong:
        return False
    return True


def _day(instant: int) -> str:
    return dt.datetime.fromtimestamp(instant / NANOSECONDS, dt.UTC).strftime("%Y-%m-%d %H:%M")
