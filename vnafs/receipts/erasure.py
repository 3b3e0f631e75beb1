"""What a certificate of erasure says: plain values that are signed as they are, without names or paths.

FORMAT.md, part 4, describes every member. Knows no key, no index and no target.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from vnafs.domain.clock import Instant
from vnafs.receipts import erasurepage
from vnafs.receipts.document import moment

TYPE = erasurepage.TYPE
VERSION = 1
CONTENTS_MAX = 40_000
"""Told one by one, some 5 MB; a digest tells of all."""
HOW = "asked anew: nothing is under the names of the packs, and no manifest is as old as the erasure"


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """Which erasure, whose, and when."""

    certificate: bytes
    """16 random bytes: its name."""
    archive: bytes
    erasure: str
    repository: int
    reason: str
    files: int
    requested: int
    """Nanoseconds since 1970 UTC, as all times here."""
    completed: int
    """0: not yet."""
    as_of: Instant
    public_key: dict[str, str]


def certificate(subject: Subject, found: Mapping[str, Any]) -> dict[str, Any]:
    """The payload; *found* is what `vnafs.upkeep.erase` says of an erasure."""
    contents: Sequence[Mapping[str, Any]] = found["contents"]
    digest = hashlib.sha256(b"".join(bytes.fromhex(row["sha256"]) for row in contents))
    return {
        "type": TYPE,
        "version": VERSION,
        "certificate": subject.certificate.hex(),
        "archive": subject.archive.hex(),
        "erasure": subject.erasure,
        "repository": subject.repository,
        "reason": subject.reason,
        "requested": moment(subject.requested),
        "completed": moment(subject.completed) if subject.completed else None,
        "complete": bool(subject.completed),
        "as_of": moment(subject.as_of),
        "public_key": subject.public_key,
        "files": subject.files,
        "packs": found["packs"],
        "contents": [dict(row) for row in contents[:CONTENTS_MAX]],
        "contents_count": len(contents),
        "contents_sha256": digest.hexdigest(),
        "targets": [_target(row) for row in found["targets"]],
        "remains": list(_remains(found)),
    }


def _target(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "proven": moment(row["proven_ns"]) if row["proven_ns"] else None,
        "how": HOW if row["proven_ns"] else "",
        "locked_until": moment(row["locked_until_ns"]) if row["locked_until_ns"] and not row["proven_ns"] else None,
        "why": row["why"],
    }


def _remains(found: Mapping[str, Any]) -> list[str]:
    lines = []
    shared = sum(1 for row in found["contents"] if row["also_of_other_files"])
    if shared:
        lines.append(
            f"{shared} contents stay: they are also the bytes of other files of the repository, which were not erased."
        )
    lines += [
        f"Target {name} was taken out of this archive earlier. What is there is not known, and nothing was removed."
        for name in found["retired_targets"]
    ]
    if found.get("packs_left") or found.get("local_left"):
        lines.append(f"Not gone yet: {found['packs_left']} packs with bytes of it, {found['local_left']} local files.")
    lines += [f"Plain mirror {name}: {why}." for name, why in found["mirrors"]]
    lines += [
        "The same bytes in other repositories are other files; runs of bytes that other files have in common with what "
        "was erased, such as headers, stay with these.",
        "Of versions that the archive had forgotten before nothing is known: what bytes of them are left in packs go "
        "when these are collected.",
        "Backups, snapshots of disks and buckets, and copies that were made outside of vnafs are unknown to it; this "
        "certificate cannot speak for them.",
    ]
    return lines
