"""`vna share add|list|remove|render|break-glass`: the configuration file, and what Samba and NFS servers read."""

from __future__ import annotations

import argparse
import os
import uuid
from typing import Any

from appliance import system
from appliance.cli import tables
from appliance.cli.asking import Asking
from appliance.config import Configuration
from appliance.domain import accounts
from appliance.shares import files
from appliance.shares.settings import ACCOUNT_LENGTH_MAX, ShareSettings, both_write
from vnafs.domain.errors import AlreadyExists, DaemonUnreachable, NotFound, Refused

DONE, NOT_YET = 0, 1


def add(args: argparse.Namespace, asking: Asking) -> int:
    """Name a share. Raises AlreadyExists, NotFound, ConfigurationInvalid."""
    if any(share.name.casefold() == args.name.casefold() for share in asking.configuration.shares):
        raise AlreadyExists(what=f"Share {args.name}")
    repository, _, folder = args.place.partition("/")
    _require(repository, folder, asking)
    values: dict[str, Any] = {"name": args.name, "repository": repository, "protocol": args.protocol}
    given = {
        "folder": folder,
        "read_only": args.read_only,
        "hosts": args.hosts,
        "users": args.users,
        "case_sensitive": args.case_sensitive,
        "encryption": args.encryption,
        "squash": args.squash,
        "owner": args.owner,
        "security": args.security,
        "versions": args.versions,
        "both_write_because": args.both_write_because,
    }
    values |= {key: value for key, value in given.items() if value}
    if not args.previous_versions:
        values["previous_versions"] = False
    if args.protocol == "nfs":
        values["fsid"] = str(uuid.uuid4())
    tables.add(asking, "share", values)
    _said(asking, {"added": args.name}, f"Share {args.name} is added; `vna share render` writes it for servers.")
    return DONE


def _require(repository: str, folder: str, asking: Asking) -> None:
    try:
        rows = asking.mount().call("repository.list")
    except DaemonUnreachable:
        asking.console.say("The mount is not running; nobody looked whether that repository is there.")
        return
    if repository not in {row["name"] for row in rows}:
        raise NotFound(what=f"Repository {repository}")
    path = os.path.join(asking.configuration.mount, repository, folder)
    if not os.path.isdir(path):
        raise NotFound(what=f"Folder {path}")


def every(_: argparse.Namespace, asking: Asking) -> int:
    """Show every share."""
    configuration = asking.configuration
    rows = [_row(share, configuration) for share in configuration.shares]
    columns = ["share", "protocol", "path", "access", "for", "how"]
    asking.console.result(
        rows, lambda: asking.console.table(columns, [[row[key] for key in ("name", *columns[1:])] for row in rows])
    )
    return DONE


def _row(share: ShareSettings, configuration: Configuration) -> dict[str, Any]:
    if share.protocol == "smb":
        whom = [*share.users, *(f"from {host}" for host, _ in share.clients)]
        how = ["case-sensitive"] if share.case_sensitive else []
        how += [f"encryption {share.encryption}"]
        how += ["Previous Versions"] if share.previous_versions else []
    else:
        whom = list(share.hosts)
        how = [f"squash {share.squash}", *([f"as {share.owner}"] if share.owner else [])]
        how += [":".join(share.security), " and ".join(share.versions)]
    how += [f"glass broken by {share.break_glass}"] if share.break_glass else []
    if share.both_write_because:
        both = "both write" if both_write(share, configuration.shares) else "by SMB and NFS"
        how += [f"{both}: {share.both_write_because}"]
    return {
        "name": share.name,
        "protocol": share.protocol,
        "path": os.path.join(configuration.mount, share.place),
        "access": "read and write" if share.is_written else "read",
        "for": ", ".join(whom) or "who can log in",
        "how": ", ".join(how),
    }


def remove(args: argparse.Namespace, asking: Asking) -> int:
    """Share it no more, once that is rendered. Raises NotFound, ConfigurationInvalid."""
    found = [share for share in asking.configuration.shares if share.name == args.name]
    if not found:
        raise NotFound(what=f"Share {args.name}")
    _remove_account(found[0].break_glass, asking)
    tables.remove(asking, "share", args.name)
    said = f"Share {args.name} is removed; servers show it until `vna share render` and their reload."
    _said(asking, {"removed": args.name}, said)
    return DONE


def break_glass(args: argparse.Namespace, asking: Asking) -> int:
    """Make or remove the account that opens a share without the domain. Raises NotFound, Refused."""
    found = [share for share in asking.configuration.shares if share.name == args.name]
    if not found:
        raise NotFound(what=f"Share {args.name}")
    before = found[0].break_glass
    account = args.account or before or _account_of(args.name)
    if args.remove:
        _remove_account(before, asking)
        tables.set_key(asking, "share", args.name, "break_glass", "")
        said = f"Nobody breaks the glass of share {args.name} any more, once `vna share render` has written that."
        _said(asking, {"removed": before}, said)
        return DONE
    if before not in {"", account}:
        raise Refused(what=f"Another account for share {args.name}", why=f"it has {before}; --remove that one first")
    accounts.check_name(account)  # whoever the configuration names may do everything, so nothing is written before
    password = asking.console.password(f"Password of {account}: ", is_new=True)
    accounts.check_password(account, password)
    tables.set_key(asking, "share", args.name, "break_glass", account)
    accounts.make(account, password, system.run)
    user = f"{asking.configuration.domain.machine.upper()}\\{account}"
    said = f"{user} may do everything in share {args.name}, once `vna share render` has written that. Keep it sealed."
    _said(asking, {"account": account, "user": user}, said)
    return DONE


def _remove_account(account: str, asking: Asking) -> None:
    """Before the configuration forgets its name, so that a command that fails can be repeated. Raises Refused."""
    if account and not accounts.remove(account, system.run):
        asking.console.say(f"Account {account} was not made here; it stays.")


def _account_of(name: str) -> str:
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in name.casefold())
    return f"glass-{plain}"[:ACCOUNT_LENGTH_MAX].rstrip("-")


def render(args: argparse.Namespace, asking: Asking) -> int:
    """Write what servers read, or say what differs. Raises Refused."""
    configuration = asking.configuration
    folder = os.path.abspath(args.into) if args.into else folder_of(configuration)
    texts = texts_of(configuration)
    names = files.differing(folder, texts) if args.check else files.write(folder, texts)
    answer = {"into": folder, "differ" if args.check else "written": names, "files": sorted(texts)}

    def show() -> None:
        if not names:
            asking.console.say(f"Everything in {folder} is as it should be.")
        for name in names:
            told = "differs" if args.check else f"is for {files.USES[name]}"
            asking.console.say(f"{os.path.join(folder, name)} {told}")

    asking.console.result(answer, show)
    return NOT_YET if args.check and names else DONE


def folder_of(configuration: Configuration) -> str:
    """Where servers' files are."""
    return configuration.sharing.folder or configuration.folder("shares")


def texts_of(configuration: Configuration) -> dict[str, str]:
    """What is to be in them. Raises Refused."""
    return files.render(configuration.sharing, configuration.shares, configuration.mount, configuration.domain)


def _said(asking: Asking, answer: dict[str, Any], text: str) -> None:
    asking.console.result(answer, lambda: asking.console.say(text))
