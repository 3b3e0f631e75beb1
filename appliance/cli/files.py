"""`vna status|wait|evict|recall|verify|lost`: what became of files and their copies."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.cli import console as shown
from appliance.cli import drills, erasure, mirrors, quarantine, retention
from appliance.cli.asking import Asking
from vnafs.domain.errors import DaemonUnreachable, VnaError
from vnafs.domain.files import FileState

POLL_SECONDS = 0.25
CLOSING_SECONDS = 2.0
"""For Linux to tell of a close, before a file counts as open."""
EVICTED_AT_ONCE = 64
VERIFYING_SECONDS = 60.0
"""Copying takes so long at most where all is well; what is late by less is no reason to warn."""
LAG_SHOWN_SECONDS = 3600
DONE, NOT_YET, REFUSED, DAMAGED = 0, 1, 3, 4


def status(args: argparse.Namespace, asking: Asking) -> int:
    """Show the whole archive, or one file."""
    if args.path:
        return _file_status(args.path, asking)
    mount, tierd = asking.mount().call("mount.status"), asking.tierd().call("tiering.status")
    answer = {"archive": asking.configuration.archive, "mount": asking.configuration.mount, **mount, **tierd}
    answer["mirrors"] = asking.tierd().call("mirrors.status")

    def show() -> None:
        say = asking.console.say
        say(f"archive {answer['archive']}, mounted at {answer['mount']}")
        files = answer["files"]
        say(
            f"files: {files['open']} open, {files['sealed']} sealed, {files['packed']} packed, "
            f"{files['replicated']} replicated and local"
        )
        oldest = answer["oldest_unprotected_seconds"]
        say(f"oldest bytes without enough verified copies: {shown.age(oldest) if oldest else 'none'}")
        late = asking.configuration.file_system.unprotected_seconds_max + VERIFYING_SECONDS
        if oldest > late:
            say("WARNING: bytes are unprotected for longer than file_system.unprotected_seconds_max; see `vna lost`")
        for line in (
            *_suspects_shown(answer["staying_open"]["suspects"]),
            *_staying_open(answer["staying_open"], late),
            *_over_shown(answer["versions_to_pack"]),
        ):
            say(line)
        if answer["manifests"]["superseded"]:
            say(f"READ-ONLY: {answer['manifests']['superseded']}")
        elif answer["stalled"]:
            say(f"waiting: {answer['stalled']}")
        if answer["manifests"]["why"]:
            say(f"WARNING: the last changes were not recorded for targets: {answer['manifests']['why']}")
        say(_scrub_shown(answer["scrub"]))
        if answer["collected"]["removed"]:
            say(_collected_shown(answer["collected"]))
        period_seconds = asking.configuration.drill.period_seconds
        for line in (
            *quarantine.lines(answer["quarantine"]),
            *drills.lines(answer, period_seconds),
            *erasure.lines(answer["erasures"]),
            *_recalls_shown(answer),
            *_repositories_shown(answer),
        ):
            say(line)
        if answer["retention_lag_seconds"] > LAG_SHOWN_SECONDS:
            lag = shown.age(answer["retention_lag_seconds"])
            say(f"the clock of retention is {lag} behind this machine's: what is retained stays as much longer")
        if answer["failure"]:
            say(f"FAILED: {answer['failure']}")
        asking.console.table(
            ["repository", "acknowledgement", "copies", "encrypted"],
            [
                [r["name"], r["acknowledgement"], r["copies_min"], "yes" if r["encrypted"] else "NO"]
                for r in answer["repositories"]
            ],
        )
        asking.console.table(
            ["target", "reachable", "packs waiting", "removals", "manifests", "why"],
            [
                [
                    t["name"],
                    "yes" if t["reachable"] else "no",
                    t["packs_waiting"],
                    t["removals_queued"],
                    _manifests_of(t["name"], answer["manifests"]),
                    t["why"],
                ]
                for t in answer["targets"]
            ],
        )
        mirrors.table(asking, answer["mirrors"])

    asking.console.result(answer, show)
    return DONE


def _repositories_shown(answer: Mapping[str, Any]) -> list[str]:
    """Those in which clients may change nothing, or in which very much was changed."""
    lines = []
    for repository in answer["repositories"]:
        if repository["rolling_to_ns"]:
            lines.append(f"READ-ONLY: repository {repository['name']} is being rolled back")
        if repository["tripped_ns"]:
            is_frozen = repository["tripwire"] == "readonly"
            lines.append(
                f"{'READ-ONLY' if is_frozen else 'ALERT'}: repository {repository['name']}: "
                f"{repository['tripped_why']}, at {_time(repository['tripped_ns'])}; nothing kept there expires. "
                f"`vna rollback {repository['name']} --to TIME --dry-run` shows what came of it; "
                f"`vna repository set {repository['name']} --reset-tripwire` ends this"
            )
    return lines


def _manifests_of(target: str, manifests: Mapping[str, Any]) -> str:
    """How far one target is with what rebuilds the index."""
    there = manifests["targets"].get(target)
    if there is None or there["snapshot"] is None:
        return "none yet"
    behind = manifests["number"] - there["number"]
    return f"{behind} behind" if behind else "up to date"


def _scrub_shown(found: Mapping[str, Any]) -> str:
    """What was looked at again since tierd began."""
    wrong = found["copies_damaged"] + found["files_damaged"] + found["manifests_damaged"]
    seen = (
        f"looked at again since tierd began: {found['copies']} copies, {found['files']} local files, "
        f"{found['manifests']} manifest objects"
    )
    return f"WARNING: {seen}; {wrong} were wrong" if wrong else seen


def _collected_shown(found: Mapping[str, Any]) -> str:
    """What was removed since tierd began; `vna collect --dry-run` says what else could be."""
    return (
        f"collected since tierd began: {found['removed']} packs ({shown.size(found['removed_bytes'])}) that no file "
        f"needed, {found['repacked']} contents packed again"
    )


def _recalls_shown(answer: Mapping[str, Any]) -> list[str]:
    """Budgets, and who was refused since mount began; nothing where there is neither."""
    rules = {row["name"]: row for row in answer["repositories"]}
    lines = []
    for used in answer["recalled_today"]:
        rule = rules[used["repository"]]
        limit_bytes, limit = rule["recall_bytes_per_day"], rule["recall_requests_per_day"]
        lines.append(
            f"recalled today: {used['repository']} {shown.size(used['size_bytes'])}"
            f" of {shown.size(limit_bytes) if limit_bytes else 'any'}, {used['requests']} requests of {limit or 'any'}"
        )
    refused = {code: times for code, times in answer["recalls_refused"].items() if times}
    if refused:
        said = ", ".join(f"{times} {_REFUSED.get(code, code)}" for code, times in sorted(refused.items()))
        lines.append(f"recalls refused since mount began: {said}")
    return lines


_REFUSED = {
    "RecallBudgetSpent": "past a budget",
    "RecallForbidden": "to processes or users that never recall",
    "Rehydrating": "while bytes come back from an archive class",
}


def _suspects_shown(count: int) -> list[str]:
    """Files whose bytes nobody can vouch for."""
    if not count:
        return []
    return [f"DAMAGED: the local disk did not keep all bytes of {count} files; `vna lost` names them: write them anew"]


def _staying_open(standing: Mapping[str, Any], late_seconds: float) -> list[str]:
    """What there is to say of files that nobody lets be sealed."""
    lines = []
    if standing["without_copy"]:
        oldest = standing["without_copy_oldest_seconds"]
        lines.append(
            f"{'WARNING: ' if oldest > late_seconds else ''}files that stay open and have no copy at all: "
            f"{standing['without_copy']}, the first for {shown.age(oldest)}"
        )
    if standing["with_copy"]:
        oldest = standing["copy_oldest_seconds"]
        since = f", changed since the oldest copy was made {shown.age(oldest)} ago" if oldest else ""
        lines.append(
            f"{'WARNING: ' if oldest > late_seconds else ''}files that stay open and are protected as they were: "
            f"{standing['with_copy']}{since}"
        )
    return lines


def _over_shown(versions: int) -> list[str]:
    return [f"versions that were overwritten or deleted and are to be packed: {versions}"] if versions else []


def _file_status(path: str, asking: Asking) -> int:
    inodes = asking.inodes([path])
    rows = []
    for inode, file in inodes.items():
        facts = asking.mount().call("tree.facts", inode=inode)
        state = FileState(facts["state"])
        is_protected = state >= FileState.REPLICATED
        rows.append(
            {
                "path": file,
                "inode": inode,
                "version": facts["version"],
                "state": state.label,
                "size_bytes": facts["size_bytes"],
                "sha256": facts["sha256"],
                "rehydrating": asking.tierd().call("tiering.rehydrating", inode=inode),
                "retention": next(iter(asking.mount().call("retention.of", inodes=[inode])), None),
                "copies": asking.tierd().call("tiering.copies", inode=inode),
                "copy_as_of": None if is_protected else asking.tierd().call("tiering.copy_as_of", inode=inode),
            }
        )
    asking.console.result(rows, lambda: _files_table(asking, rows))
    return DONE


def _files_table(asking: Asking, rows: Sequence[Mapping[str, Any]]) -> None:
    """With what protects them, where something does."""
    is_guarded = any(row["retention"] and (row["retention"]["mode"] or row["retention"]["holds"]) for row in rows)
    asking.console.table(
        ["path", "state", "size", "sha256", "copies", *(["retention", "until", "holds"] if is_guarded else [])],
        [
            [
                row["path"],
                _state(row),
                shown.size(row["size_bytes"]),
                (row["sha256"] or "")[:16],
                _copies(row),
                *(retention.shown(row["retention"]) if is_guarded and row["retention"] else ()),
            ]
            for row in rows
        ],
    )


def _state(row: Mapping[str, Any]) -> str:
    thaw = row["rehydrating"]
    if row["state"] != FileState.STUB.label or thaw is None:
        return str(row["state"])
    return f"rehydrating, expected by {_time(thaw['until'])}"


def _copies(row: Mapping[str, Any]) -> str:
    older = row["copy_as_of"]
    if row["copies"] or older is None:
        return _targets(row["copies"]) or "none"
    return f"protected as of {_time(older['as_of'])}: {_targets(older['copies'])}"


def _targets(copies: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(copy["target"] for copy in copies)


def _time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))


def wait(args: argparse.Namespace, asking: Asking) -> int:
    """Wait until every file is sealed and has N copies."""
    deadline = time.monotonic() + args.timeout
    pending: Mapping[str, Any] = {"done": False}
    waits = "the daemons"
    most = 0
    flushed = False
    with asking.console.progress("waiting for") as advance:
        while True:
            try:
                asking.mount().call("tree.fold")
                pending = asking.tierd().call("tiering.pending", copies=args.copies)
                waits = _waits(pending, args.copies)
                if not flushed and not pending["open"] and pending["sealed"]:
                    asking.tierd().call("tiering.flush")
                    flushed = True
                work = pending["open"] + pending["sealed"] + pending["packs"]
                most = max(most, work)
                advance(most - work, most, waits)
            except DaemonUnreachable as problem:
                waits = str(problem)
            if pending["done"] or time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
    done = bool(pending["done"])
    answer = {**pending, "waits_for": "" if done else waits}
    asking.console.result(
        answer,
        lambda: asking.console.say(
            f"Every file has {args.copies} verified {'copy' if args.copies == 1 else 'copies'}."
            if done
            else f"Not yet: waiting for {waits}."
        ),
    )
    return DONE if done else NOT_YET


def _waits(pending: Mapping[str, Any], copies: int) -> str:
    if pending["targets"] < copies:
        return f"{copies} copies, but there are only {pending['targets']} targets"
    parts = []
    if pending["open"]:
        parts.append(f"{pending['open']} files open or not quiet yet")
    if pending["sealed"]:
        parts.append(f"{pending['sealed']} files to be packed")
    if pending["packs"]:
        parts.append(f"{pending['packs']} packs ({shown.size(pending['pack_bytes'])}) with fewer than {copies} copies")
    if pending["suspects"]:
        parts.append(f"{pending['suspects']} files that the local disk did not keep (`vna lost` names them)")
    if pending["without_bytes"]:
        parts.append(f"{pending['without_bytes']} files that were restored without bytes (`vna lost` names them)")
    return ", ".join(parts) or "nothing"


def evict(args: argparse.Namespace, asking: Asking) -> int:
    """Let local bytes go that are safely elsewhere."""
    inodes = asking.inodes(args.paths)
    asking.mount().call("tree.fold")
    refused = dict.fromkeys(inodes, "")
    with asking.console.progress("evicting") as advance:
        for moment_seconds in (0.0, CLOSING_SECONDS):  # once more, for what was closed a moment ago
            waiting, refused = list(refused), {}
            for start in range(0, len(waiting), EVICTED_AT_ONCE):
                batch = waiting[start : start + EVICTED_AT_ONCE]
                wait_seconds = 0.0 if start else moment_seconds
                answer = asking.tierd().call("tiering.evict", inodes=batch, wait_seconds=wait_seconds)
                advance(start + len(batch), len(waiting), "")
                refused |= {row["inode"]: row["why"] for row in answer["refused"]}
    evicted = len(inodes) - len(refused)
    rows = [{"path": inodes[inode], "why": why} for inode, why in refused.items()]

    def show() -> None:
        asking.console.say(f"{evicted} files evicted.")
        for row in rows[:20]:
            asking.console.say(f"refused: {shown.printable(row['path'])}: {row['why']}")
        if len(rows) > 20:
            asking.console.say(f"… and {len(rows) - 20} more")

    asking.console.result({"evicted": evicted, "refused": rows}, show)
    return REFUSED if refused else DONE


def recall(args: argparse.Namespace, asking: Asking) -> int:
    """Bring local bytes back."""
    inodes = asking.inodes(args.paths)
    failed: list[dict[str, str]] = []
    worst = DONE
    client = asking.mount()
    with asking.console.progress("recalling") as advance:
        for done, (inode, path) in enumerate(inodes.items(), 1):
            try:
                client.call("file.recall", inode=inode)
            except VnaError as problem:
                failed.append({"path": path, "why": str(problem)})
                worst = max(worst, problem.exit_code)
            advance(done, len(inodes), "")

    def show() -> None:
        asking.console.say(f"{len(inodes) - len(failed)} files are here.")
        for row in failed[:20]:
            asking.console.say(f"failed: {shown.printable(row['path'])}: {row['why']}")

    asking.console.result({"recalled": len(inodes) - len(failed), "failed": failed}, show)
    return worst


def verify(args: argparse.Namespace, asking: Asking) -> int:
    """Read copies again and compare: of some files, or of everything."""
    inodes = list(asking.inodes(args.paths)) if args.paths else None
    asking.mount().call("tree.fold")
    with asking.console.progress("verifying") as advance:
        answer = asking.tierd().call(
            "tiering.verify",
            inodes=inodes,
            on_event=lambda event: advance(event["done"], event["total"], "packs"),
        )

    def show() -> None:
        asking.console.say(f"{answer['checked']} copies of packs are right.")
        for kind in ("damaged", "unreachable"):
            for row in answer[kind]:
                asking.console.say(f"{kind}: pack {row['pack']} on target {row['target']}: {row['why']}")

    asking.console.result(answer, show)
    if answer["damaged"]:
        return DAMAGED
    return NOT_YET if answer["unreachable"] else DONE


def lost(_: argparse.Namespace, asking: Asking) -> int:
    """List acknowledged files without a verified copy: what would go with the local disk."""
    asking.mount().call("tree.fold")
    rows: list[dict[str, Any]] = []
    after = None
    client = asking.tierd()
    while page := client.call("tiering.lost", after=after, limit=1000):
        after = page[-1].pop("after")
        for row in page:
            row.pop("after", None)
            rows.append(row)
    asking.console.result(
        rows,
        lambda: (
            asking.console.table(
                ["path", "size", "changed", "state", "copy"],
                [
                    [
                        os.path.join(asking.configuration.mount, row["path"]),
                        shown.size(row["size_bytes"]),
                        _time(row["mtime_ns"]),
                        "NOT KEPT by the local disk" if row["is_suspect"] else row["state"],
                        f"as of {_time(row['copy_as_of'])}" if row["copy_as_of"] else "none at all",
                    ]
                    for row in rows
                ],
            )
            if rows
            else asking.console.say("Every acknowledged file has a verified copy.")
        ),
    )
    return DONE
