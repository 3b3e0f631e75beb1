"""`vna erase`: files go for good, on every target and in every version, and a signed certificate says so."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.cli import moments
from appliance.cli.asking import Asking
from appliance.cli.console import printable
from vnafs.domain.errors import InvalidArgument, NotFound, Refused, RequestInvalid, TooMuch
from vnafs.fs.erasure import FILES_MAX

DONE, NOT_YET = 0, 1
AT_ONCE = 64
SHOWN_MAX = 20
REMEMBERED_AT_ONCE = 1000


class _Found:
    """What is to be erased: inodes with all their names below what was asked for."""

    def __init__(self) -> None:
        self.files: dict[int, list[list[Any]]] = {}
        self.folders: dict[int, list[list[Any]]] = {}
        self.paths: dict[int, str] = {}
        """What an inode is called when it is refused."""

    def add(self, inode: int, path: str, name: list[Any] | None, *, is_directory: bool) -> None:
        """One name of an inode, or of one that is gone and has none."""
        names = (self.folders if is_directory else self.files).setdefault(inode, [])
        if name is not None and name not in names:
            names.append(name)
        self.paths.setdefault(inode, path)

    def batches(self) -> Iterator[list[list[Any]]]:
        """Files first, and then folders, what is inside before what is outside."""
        for rows in (list(self.files.items()), list(reversed(self.folders.items()))):
            for start in range(0, len(rows), AT_ONCE):
                yield [[inode, names] for inode, names in rows[start : start + AT_ONCE]]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.files) + len(self.folders)


def erase(args: argparse.Namespace, asking: Asking) -> int:
    """Erase files, or show erasures."""
    if args.list:
        return _every(asking)
    if args.status:
        return _status(args.status, asking)
    if args.certificate:
        return _certificate(args.certificate, args.out, asking)
    if not args.paths or not args.reason:
        raise RequestInvalid(method="vna erase", why="write vna erase PATH… --reason TEXT, or --list, --status ID")
    repository = _repository(args.paths, asking)
    found = _Found()
    client = asking.mount()
    for path in args.paths:
        _find(path, client, found, recursive=args.recursive)
    if found.count > FILES_MAX:
        limit = f"{FILES_MAX} files and folders"
        raise TooMuch(what="What was asked for", limit=limit, fix="Erase one folder after the other")
    if not found.count:
        raise NotFound(what="A file at or below what was asked for, now or in the time that is kept,")
    refused = [
        f"{printable(found.paths[inode])}: {why}"
        for batch in found.batches()
        for (inode, _), reasons in zip(
            batch, client.call("erase.refusals", repository=repository, files=batch), strict=True
        )
        for why in reasons
    ]
    if refused:
        more = [f"and {len(refused) - SHOWN_MAX} more reasons"] if len(refused) > SHOWN_MAX else []
        why = "; ".join([*refused[:SHOWN_MAX], *more])
        raise Refused(what=f"Erasing {found.count} files and folders", why=why)
    _confirm(args, asking, found)
    begun = client.call("erase.begin", repository=repository, reason=args.reason)
    stayed: list[list[str]] = []
    done = 0
    with asking.console.progress("erasing") as advance:
        for batch in found.batches():
            answer = client.call("erase.add", id=begun["id"], files=batch)
            stayed += [
                [found.paths[inode], why] for (inode, _), those in zip(batch, answer, strict=True) for why in those
            ]
            done += len(batch)
            advance(done, found.count, "")
    result = client.call("erase.finish", id=begun["id"])

    def say() -> None:
        for path, why in stayed[:SHOWN_MAX]:
            asking.console.say(f"{printable(path)} stays: {why}")
        asking.console.say(
            f"Erasure {result['id']}: {result['files']} files and folders are gone from the tree. "
            f"`vna erase --status {result['id']}` says when every target is without them."
        )

    asking.console.result({**result, "stayed": stayed}, say)
    return NOT_YET if stayed else DONE


def _repository(paths: Sequence[str], asking: Asking) -> int:
    tops = {asking.below_mount(path).split("/")[0] for path in paths}
    if len(tops) > 1:
        raise InvalidArgument(why=f"one erasure is of one repository, not of {', '.join(sorted(tops))}")
    return os.lstat(os.path.join(asking.configuration.mount, tops.pop())).st_ino


def _find(path: str, client: Any, found: _Found, *, recursive: bool) -> None:
    """Everything at a path, or what is remembered of it; with *recursive* everything below."""
    whole = os.path.abspath(path)
    folder, name = os.path.split(whole)
    if not os.path.lexists(whole):
        if not os.path.isdir(folder):
            raise NotFound(what=path)
        gone = client.call("erase.remembered", directory=os.stat(folder).st_ino, name=name)
        if not gone:
            raise NotFound(what=f"{path}, now or in the time that is kept,")
        _remembered(gone, whole, client, found, recursive=recursive)
        return
    status = os.lstat(whole)
    is_directory = os.path.isdir(whole) and not os.path.islink(whole)
    if is_directory and not recursive:
        raise InvalidArgument(why=f"{path} is a directory; say --recursive for it and all that is below it")
    found.add(status.st_ino, whole, [os.stat(folder).st_ino, name], is_directory=is_directory)
    if not is_directory:
        return
    waiting = [(whole, status.st_ino)]
    while waiting:
        here, inode = waiting.pop()
        with os.scandir(here) as listing:
            for entry in listing:
                inside = entry.is_dir(follow_symlinks=False)
                number = entry.stat(follow_symlinks=False).st_ino
                found.add(number, entry.path, [inode, entry.name], is_directory=inside)
                if inside:
                    waiting.append((entry.path, number))
        _remembered(_all_remembered(client, inode), here, client, found, recursive=True)


def _remembered(rows: Sequence[Sequence[Any]], path: str, client: Any, found: _Found, *, recursive: bool) -> None:
    waiting = list(rows)
    while waiting:
        inode, name, is_directory = waiting.pop()
        if inode in found.folders or inode in found.files:
            continue
        found.add(inode, f"{path} (deleted: {printable(name)})", None, is_directory=is_directory)
        if is_directory and recursive:
            waiting += _all_remembered(client, inode)


def _all_remembered(client: Any, directory: int) -> list[list[Any]]:
    rows: list[list[Any]] = []
    page: list[list[Any]] = client.call("erase.remembered", directory=directory)
    while page:
        rows += page
        if len(page) < REMEMBERED_AT_ONCE:
            break
        page = client.call("erase.remembered", directory=directory, after=page[-1][1])
    return rows


def _confirm(args: argparse.Namespace, asking: Asking, found: _Found) -> None:
    if args.yes:
        return
    ask = asking.console.asker()
    if ask is None:
        raise RequestInvalid(method="vna erase", why="what is erased never comes back; say --yes")
    what = f"{len(found.files)} files and {len(found.folders)} folders, with every version that is kept"
    if ask(f"Erase {what}? They never come back. Type yes: ").strip() != "yes":
        raise Refused(what="Erasing", why="nobody typed yes; nothing was erased")


def _every(asking: Asking) -> int:
    rows = asking.mount().call("erase.list")

    def table() -> None:
        if not rows:
            asking.console.say("Nothing was erased.")
            return
        asking.console.table(
            ["erasure", "since", "files", "tree", "reason"],
            [[row["id"], moments.shown(row["since_ns"]), row["files"], _stage(row), row["reason"]] for row in rows],
        )

    asking.console.result(rows, table)
    return DONE


def _stage(row: Mapping[str, Any]) -> str:
    return "done" if row["stage"] == "over" else str(row["stage"])


def _status(name: str, asking: Asking) -> int:
    """0 when nothing of it is left anywhere, 1 while something is."""
    row = asking.tierd().call("erase.status", id=name)

    def say() -> None:
        console = asking.console
        files = f"{row['files']} files and folders, since {moments.shown(row['since_ns'])}: {row['reason']}"
        console.say(f"Erasure {row['id']}: {printable(files)}")
        if row["completed_ns"]:
            console.say(f"Complete since {moments.shown(row['completed_ns'])}.")
        elif row["stage"] == "taking":
            console.say("Files are still being added to it.")
        elif row["waits"]:
            console.say("It waits: the repository's tripwire was touched, or it is being rolled back.")
        elif row["packs_left"]:
            console.say(f"{row['packs_left']} packs with bytes of it are being emptied.")
        shared = sum(1 for content in row["contents"] if content["also_of_other_files"])
        if shared:
            console.say(f"{shared} of {len(row['contents'])} contents stay: they are the bytes of other files too.")
        console.table(
            ["target", "seen without it", "what is left", "locked until"],
            [
                [
                    one["name"],
                    moments.shown(one["proven_ns"]) if one["proven_ns"] else "",
                    one["why"],
                    moments.shown(one["locked_until_ns"]) if one["locked_until_ns"] and not one["proven_ns"] else "",
                ]
                for one in row["targets"]
            ],
        )
        for mirror, said in row["mirrors"]:
            console.say(f"Mirror {mirror}: {said}.")

    asking.console.result(row, say)
    return DONE if row["completed_ns"] else NOT_YET


def lines(found: Mapping[str, Any]) -> list[str]:
    """What `vna status` says of erasures: nothing where none is pending."""
    row = found["oldest"]
    if row is None:
        return []
    since = f"since {moments.shown(row['since_ns'])}"
    which = f"the oldest, {row['id']}, {since}," if found["pending"] > 1 else f"{row['id']}, {since},"
    return [f"erasures pending: {found['pending']}; {which} {_waits_for(row)}"]


def _waits_for(row: Mapping[str, Any]) -> str:
    """What one erasure waits for; `vna erase --status` says more."""
    if row["stage"] == "taking":
        return "is still being given its files"
    if row["frozen"]:
        return "waits: the repository's tripwire was touched, or it is being rolled back"
    waiting = [_target(one) for one in row["targets"]]
    packs = f"{row['packs_left']} packs to be emptied" if row["packs_left"] else ""
    if not packs and not waiting:
        return f"waits for local files or a mirror: `vna erase --status {row['id']}`"
    targets = f"target{'s' if len(waiting) > 1 else ''} {', '.join(waiting)}" if waiting else ""
    return f"waits for {' and '.join(filter(None, [packs, targets]))}"


def _target(one: Mapping[str, Any]) -> str:
    said = [printable(one["why"])] if one["why"] else []
    if one["locked_until_ns"]:
        said.append(f"locked until {moments.shown(one['locked_until_ns'])}")
    return f"{one['name']} ({', '.join(said)})" if said else str(one["name"])


def _certificate(name: str, out: str | None, asking: Asking) -> int:
    from appliance.cli import receipts  # noqa: PLC0415 - loads a library that no other command needs
    from vnafs.receipts import jws  # noqa: PLC0415

    answer = asking.tierd().call("erase.certify", id=name)
    payload = jws.unverified(answer["certificate"])
    written = receipts.write(out or f"erasure-{payload['erasure']}", answer["certificate"])

    def say() -> None:
        if answer["key_is_new"]:
            asking.console.say("This archive has a new key; `vna receipt --public-key` prints what verifies it.")
        if answer["no_timestamp"]:
            asking.console.say(f"No timestamp by a third party: {printable(answer['no_timestamp'])}.")
        state = f"complete since {payload['completed']}" if payload["complete"] else "pending: it says what is left"
        asking.console.say(f"Erasure {payload['erasure']} is {state}. Written: {', '.join(map(printable, written))}")

    asking.console.result({**answer, "written": written, "complete": payload["complete"]}, say)
    return DONE if payload["complete"] is True else NOT_YET
