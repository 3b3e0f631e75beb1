"""`vna receipt`: signed receipts for senders, and their verification on a machine without an archive."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.cli.asking import Asking
from appliance.cli.console import Console, printable
from appliance.keys import is_encrypted
from vnafs import store as archive_store
from vnafs.domain.errors import AlreadyExists, InvalidArgument, NotFound, NotYet, RequestInvalid, VnaError
from vnafs.index.signers import LABELS
from vnafs.receipts import erasurepage, jws, keys, page, publickeys
from vnafs.receipts.document import moment
from vnafs.receipts.publickeys import PublicKey

POLL_SECONDS = 0.5
DONE, NOT_YET = 0, 1


def receipt(args: argparse.Namespace, asking: Asking) -> int:
    """Write a receipt and its page; 0 when everything in it is safe to delete at the sender."""
    if args.public_keys:
        return _history(asking)
    if args.public_key:
        return _public_key(asking)
    if not args.paths:
        raise RequestInvalid(method="vna receipt", why="name the files or folders that it is for")
    paths = [_below_mount(path, asking.configuration.mount) for path in args.paths]
    until = time.monotonic() + args.timeout
    tierd = asking.tierd()
    with asking.console.progress("waiting for copies") as advance:
        asking.tierd().call("tiering.flush")
        while True:
            found = tierd.call("receipt.standing", paths=paths, seconds_max=max(0.0, until - time.monotonic()))
            advance(found["files"] - found["not_safe"], found["files"], "")
            if not found["not_safe"] or time.monotonic() + POLL_SECONDS >= until:
                break
            time.sleep(POLL_SECONDS)
    answer = tierd.call("receipt.issue", paths=paths, seconds_max=max(1.0, until - time.monotonic()))
    payload = jws.unverified(answer["receipt"])
    written = write(args.out or f"receipt-{payload['receipt'][:8]}", answer["receipt"])
    asking.console.result(
        {**answer, "written": written, "safe_to_delete": payload["safe_to_delete"]},
        lambda: _show(asking.console, payload, answer, written),
    )
    return DONE if payload["safe_to_delete"] else NOT_YET


def _below_mount(path: str, mount: str) -> str:
    """As the archive names it: relative to the mount. Links outside of it are followed, those inside are not."""
    folder, name = os.path.split(os.path.abspath(path))
    whole = os.path.join(os.path.realpath(folder), name)
    inside = os.path.relpath(whole, os.path.realpath(mount))
    if not os.path.lexists(path):
        raise NotFound(what=path)
    if inside.split(os.sep)[0] == os.pardir:
        raise InvalidArgument(why=f"{path} is not below the mount {mount}")
    return inside


def write(base: str, envelope: Mapping[str, Any]) -> list[str]:
    """A signed envelope and its page, neither in place of another; their paths. Raises AlreadyExists."""
    texts = {f"{base}.json": jws.canonical(dict(envelope)).decode() + "\n", f"{base}.html": page.render(envelope)}
    for path in texts:
        if os.path.lexists(path):
            raise AlreadyExists(what=path)
    for path, text in texts.items():
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise AlreadyExists(what=path) from None
        except OSError as problem:
            raise VnaError(why=f"writing {path}: {problem.strerror}") from problem
    return list(texts)


def _show(console: Console, payload: Mapping[str, Any], answer: Mapping[str, Any], written: Sequence[str]) -> None:
    if answer["key_is_new"]:
        console.say(
            "This archive has a new key for receipts; `vna receipt --public-key` prints what verifies them. Receipts "
            "from before verify with the key from before; `vna receipt --public-keys` prints all there ever were."
        )
    if answer["no_timestamp"]:
        console.say(f"No timestamp by a third party: {printable(answer['no_timestamp'])}.")
    count = len(payload["files"])
    if payload["safe_to_delete"]:
        console.say(f"Safe to delete at the sender: {count} files, as of {payload['as_of']}.")
    else:
        console.say(f"Not safe to delete at the sender: {payload['files_not_safe']} of {count} files.")
        for row in [row for row in payload["files"] if not row["safe_to_delete"]][:20]:
            console.say(f"keep {printable(row.get('path') or row['path_base64'])}: {printable(row['why'])}")
    console.say(f"Written: {', '.join(map(printable, written))}")


def _public_keys(asking: Asking) -> list[PublicKey]:
    """Every key that receipts of the archive were signed with; the last one signs now. Raises NotYet."""
    configuration = asking.configuration
    rows = archive_store.signers_of(configuration.archive)
    known = [
        PublicKey(
            publickeys.from_bytes(row.public),
            moment(row.since),
            moment(row.until) if row.until else "",
            LABELS[row.reason],
            row.told,
        )
        for row in rows
    ]
    if not known and is_encrypted(configuration):
        raise NotYet(what="The key of receipts", why="it is on record once the archive has been started")
    if not known:
        known = [PublicKey(keys.ensure(configuration.folder("keys"))[0].public_key())]
    return known


def _public_key(asking: Asking) -> int:
    key = _public_keys(asking)[-1].key
    pem = publickeys.pem(key)
    answer = {"pem": pem, "jwk": jws.jwk(key), "key": jws.key_id(key)}
    asking.console.result(answer, lambda: asking.console.say(pem.rstrip()))
    return DONE


def _history(asking: Asking) -> int:
    """All public keys there ever were, as a file that `verify --key` takes."""
    known = _public_keys(asking)
    text = publickeys.text(known)
    rows = [
        {
            "key": one.name,
            "jwk": jws.jwk(one.key),
            "pem": publickeys.pem(one.key),
            "from": one.since,
            "until": one.until or None,
            "why": one.why,
            "told_by_target": one.told,
        }
        for one in known
    ]
    asking.console.result({"pem": text, "keys": rows}, lambda: asking.console.say(text.rstrip()))
    return DONE


def verify(args: argparse.Namespace, console: Console) -> int:
    """Check a receipt or certificate with a public key: 0 when it is right and says yes, 1 when it says not yet."""
    from vnafs.receipts import verifying  # noqa: PLC0415 - no other command needs it

    if len(args.paths) != 2 or not args.key:
        raise RequestInvalid(method="vna receipt verify", why="write vna receipt verify FILE --key PUBLIC")
    found = verifying.verify(args.paths[1], args.key, args.timestamp_ca or "")
    payload = found.payload
    stamp = None if found.stamp is None else {"time": str(found.stamp.time), "trusted": found.stamp.trusted}
    is_erasure = payload["type"] == erasurepage.TYPE
    is_well = payload["complete" if is_erasure else "safe_to_delete"] is True

    def show() -> None:
        what = f"erasure {payload['erasure']}" if is_erasure else f"receipt {payload['receipt']}"
        console.say(f"The signature is right: archive {payload['archive']}, {what}.")
        if found.key.since:
            console.say(f"The archive signed with this key from {found.key.since} until {found.key.until or 'now'}.")
        if found.key.told:
            console.say(
                "warning: this key is known only from a target that is not encrypted; whoever could write there could "
                "have put it. Compare it with a public key that you had from the archive before it was restored."
            )
        if found.stamp is None:
            console.say("No timestamp by a third party.")
        else:
            trusted = "" if found.stamp.trusted else ", by nobody whom --timestamp-ca named"
            console.say(f"Timestamp: {found.stamp.time}{trusted}.")
        if is_erasure:
            console.say(f"Erased, complete since {payload['completed']}." if is_well else "Not complete yet.")
            return
        verdict = "Safe" if payload["safe_to_delete"] is True else f"Not safe ({payload['files_not_safe']} files)"
        console.say(f"{verdict} to delete at the sender, as of {payload['as_of']}: {len(payload['files'])} files.")

    key = {
        "key": found.key.name,
        "from": found.key.since or None,
        "until": found.key.until or None,
        "told_by_target": found.key.told,
    }
    console.result({"receipt": payload, "timestamp": stamp, "key": key}, show)
    return DONE if is_well else NOT_YET
