"""What a receipt says: custody of some files at one moment, as plain values that are signed as they are.

FORMAT.md, part 4, describes every member. Knows no key, no index and no target.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.copies import VerifiedBy
from vnafs.domain.custody import Custody, CustodyCopy, may_delete
from vnafs.domain.recipes import EMPTY

VERSION = 1
HOW = {VerifiedBy.TARGET_CHECKSUM: "checksum by the target", VerifiedBy.READ_BACK: "read back"}


@dataclasses.dataclass(frozen=True, slots=True)
class Occasion:
    """What a receipt says besides its files."""

    receipt: bytes
    """16 random bytes: its name."""
    archive: bytes
    """16 bytes: the archive's identity."""
    begun: Instant
    """Everything that was answered before this was looked at."""
    as_of: Instant
    """Nothing was looked at after this."""
    asked: tuple[bytes, ...]
    """The paths that were asked for, below the mount."""
    public_key: dict[str, str]
    """As a JWK; whoever verifies compares it with one that came another way."""


def document(occasion: Occasion, files: Sequence[Custody]) -> dict[str, Any]:
    """The payload of a receipt."""
    repositories = {file.repository.id: file.repository for file in files}
    shown = [_file(file) for file in files]
    safe = sum(1 for row in shown if row["safe_to_delete"])
    return {
        "type": "vnafs-receipt",
        "version": VERSION,
        "receipt": occasion.receipt.hex(),
        "archive": occasion.archive.hex(),
        "begun": moment(occasion.begun),
        "as_of": moment(occasion.as_of),
        "asked": [_path(path) for path in occasion.asked],
        "public_key": occasion.public_key,
        "repositories": [
            {
                "name": repository.name,
                "acknowledgement": repository.acknowledgement.value,
                "copies_min": repository.copies_min,
            }
            for _, repository in sorted(repositories.items())
        ],
        "files": shown,
        "files_safe": safe,
        "files_not_safe": len(shown) - safe,
        "size_bytes": sum(file.size_bytes for file in files),
        "safe_to_delete": bool(shown) and safe == len(shown),
    }


def _file(file: Custody) -> dict[str, Any]:
    decision = may_delete(file)
    return {
        **_path(file.path),
        "repository": file.repository.name,
        "size_bytes": file.size_bytes,
        "modified": moment(file.mtime_ns),
        "state": file.state.label,
        "sha256": None if file.sha256 is None else file.sha256.hex(),
        "copies": [] if file.sha256 == EMPTY else [_copy(copy) for copy in file.copies],
        "holds": list(file.holds),
        "safe_to_delete": decision.yes,
        "why": decision.why,
    }


def _copy(copy: CustodyCopy) -> dict[str, Any]:
    return {
        "target": copy.target,
        "verified": moment(copy.verified),
        "verified_by": [HOW[how] for how in sorted(copy.verified_by) if how in HOW],
        "names_recorded": copy.names_recorded,
    }


def _path(path: bytes) -> dict[str, str]:
    """As in packs (F-13): exact, whatever bytes it has."""
    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path_base64": base64.b64encode(path).decode("ascii")}


def moment(nanoseconds: int) -> str:
    """A time as RFC 3339 writes it, in UTC, cut to the second, which never says later than it was."""
    seconds = nanoseconds // NANOSECONDS
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    try:
        return (epoch + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return "unknown"
