"""What mount answers besides the tree's own calls: repositories, recall of a whole file, its own status."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from appliance.control.server import Asker, Method
from appliance.control.tree import Run
from vnafs.domain.errors import InvalidArgument
from vnafs.domain.ids import Inode, Version
from vnafs.domain.repositories import Acknowledgement, OnTrip, Repository
from vnafs.domain.retention import RetentionMode
from vnafs.fs.filesystem import Filesystem

RecallWhole = Callable[[Inode, Version], None]


def mount_methods(
    filesystem: Filesystem, run: Run, recall: RecallWhole, refused: Callable[[], Mapping[str, int]]
) -> list[Method]:
    """Their declarations; *run* runs work where the tree may be touched, *recall* blocks its own thread.

    *refused* counts recalls that were refused, by reason.
    """
    repositories = filesystem.repositories

    def every(_: Mapping[str, Any], __: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = run(lambda: [shown(filesystem, one) for one in repositories.list()])
        return rows

    def add(params: Mapping[str, Any], _: object) -> dict[str, Any]:
        made: dict[str, Any] = run(
            lambda: shown(
                filesystem,
                repositories.add(
                    str(params["name"]),
                    acknowledgement=acknowledgement(params.get("acknowledgement", "durable")),
                    copies_min=int(params.get("copies_min", 1)),
                    encrypted=bool(params.get("encrypted", False)),
                    **_given(params),
                ),
            )
        )
        return made

    def change(params: Mapping[str, Any], asker: Asker) -> dict[str, Any]:
        def apply() -> dict[str, Any]:
            known = repositories.named(str(params["name"]))
            changes: dict[str, Any] = _given(params)
            if params.get("acknowledgement") is not None:
                changes["acknowledgement"] = acknowledgement(params["acknowledgement"])
            if params.get("copies_min") is not None:
                changes["copies_min"] = int(params["copies_min"])
            for budget in ("recall_bytes_per_day", "recall_requests_per_day"):
                if params.get(budget) is not None:
                    changes[budget] = int(params[budget])
            reset = bool(params.get("reset_tripwire"))
            reason = str(params.get("reason") or "")
            rules = dataclasses.replace(known, **changes)
            return shown(filesystem, repositories.set(rules, reset_tripwire=reset, reason=reason, by=asker.who))

        changed: dict[str, Any] = run(apply)
        return changed

    def remove(params: Mapping[str, Any], _: object) -> None:
        run(lambda: repositories.remove(repositories.named(str(params["name"])).id))

    def recalled(params: Mapping[str, Any], _: object) -> None:
        facts = run(lambda: filesystem.facts(Inode(params["inode"])))
        recall(facts.inode, facts.version)

    def status(_: Mapping[str, Any], __: object) -> dict[str, Any]:
        return {
            "handles_open": filesystem.handles_open,
            "drops_pending": filesystem.drops_pending,
            "failure": str(filesystem.failure or ""),
            "repositories": every({}, None),
            "recalls_refused": dict(refused()),
            "retention_lag_seconds": filesystem.retention_lag_seconds,
        }

    return [
        Method("repository.list", every, role="viewer"),
        Method("repository.add", add, role="administrator", audit="repository:rules:added"),
        Method("repository.set", change, role="administrator", audit="repository:rules:changed"),
        Method("repository.remove", remove, role="administrator", audit="repository:rules:removed"),
        Method("file.recall", recalled, audit="file:bytes:recalled"),
        Method("mount.status", status, role="viewer"),
    ]


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """The rules about what is kept, and how much, that were said. Raises InvalidArgument."""
    numbers = (
        "versions_kept_seconds",
        "tripwire_per_minute",
        "retention_seconds",
        "autocommit_seconds",
        "quota_bytes",
        "quota_files",
    )
    found: dict[str, Any] = {name: int(params[name]) for name in numbers if params.get(name) is not None}
    if params.get("tripwire") is not None:
        try:
            found["tripwire"] = OnTrip(params["tripwire"])
        except ValueError:
            known = ", ".join(one.value for one in OnTrip)
            raise InvalidArgument(why=f"a tripwire is one of {known}, not {params['tripwire']!r}") from None
    if params.get("retention") is not None:
        try:
            found["retention"] = RetentionMode(params["retention"])
        except ValueError:
            known = ", ".join(one.value for one in RetentionMode)
            raise InvalidArgument(why=f"a retention is one of {known}, not {params['retention']!r}") from None
        if found["retention"] is RetentionMode.OFF:
            found = {"retention_seconds": 0, "autocommit_seconds": 0, **found}
    return found


def acknowledgement(value: str) -> Acknowledgement:
    """Raises InvalidArgument."""
    try:
        return Acknowledgement(value)
    except ValueError:
        known = ", ".join(level.value for level in Acknowledgement)
        raise InvalidArgument(why=f"{value!r} is no acknowledgement level; known are {known}") from None


def shown(filesystem: Filesystem, repository: Repository) -> dict[str, Any]:
    """A repository as the wire carries it, with the inodes and bytes it has."""
    used = filesystem.used(repository.id)
    return {
        "id": repository.id,
        "name": repository.name,
        "acknowledgement": repository.acknowledgement.value,
        "copies_min": repository.copies_min,
        "encrypted": repository.encrypted,
        "recall_bytes_per_day": repository.recall_bytes_per_day,
        "recall_requests_per_day": repository.recall_requests_per_day,
        "quota_bytes": repository.quota_bytes,
        "quota_files": repository.quota_files,
        "used_bytes": used.size_bytes,
        "used_files": used.rows,
        "versions_kept_seconds": repository.versions_kept_seconds,
        "tripwire": repository.tripwire.value,
        "tripwire_per_minute": repository.tripwire_per_minute,
        "retention": repository.retention.value,
        "retention_seconds": repository.retention_seconds,
        "autocommit_seconds": repository.autocommit_seconds,
        "rolling_to_ns": repository.rolling_to_ns,
        "tripped_ns": repository.tripped_ns,
        "tripped_why": repository.tripped_why,
    }
