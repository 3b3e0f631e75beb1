"""Repositories: the rules of each top-level directory, in the namespace so that they change with the tree.

The record is JSON behind a version byte: there are few of them, and administrators' tools read them. Reads and
changes happen in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import RepositoryId
from vnafs.domain.repositories import (
    TRIPWIRE_PER_MINUTE,
    VERSIONS_KEPT_SECONDS,
    Acknowledgement,
    OnTrip,
    Repository,
)
from vnafs.domain.retention import RetentionMode
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORD_VERSION = 1
_GUARDED_VERSION = 2
"""Of a repository in which something may be retained or held: no program that knows nothing of that may serve it."""
STANDING = ("rolling_to_ns", "rolling_since_ns", "limbo", "tripped_ns", "tripped_why", "was_guarded")
"""Fields that are no rules; written only where they say something."""


def put(tx: Transaction, repository: Repository) -> None:
    """Store a repository's rules, new or changed."""
    body: dict[str, object] = {
        "name": repository.name,
        "acknowledgement": repository.acknowledgement.value,
        "copies_min": repository.copies_min,
        "retention_class": repository.retention_class,
        "encrypted": repository.encrypted,
        "recall_bytes_per_day": repository.recall_bytes_per_day,
        "recall_requests_per_day": repository.recall_requests_per_day,
        "quota_bytes": repository.quota_bytes,
        "quota_files": repository.quota_files,
        "versions_kept_seconds": repository.versions_kept_seconds,
        "tripwire": repository.tripwire.value,
        "tripwire_per_minute": repository.tripwire_per_minute,
    }
    body |= {name: getattr(repository, name) for name in STANDING if getattr(repository, name)}
    version = _RECORD_VERSION
    if repository.is_guarded:
        version = _GUARDED_VERSION
        body |= {
            "retention": repository.retention.value,
            "retention_seconds": repository.retention_seconds,
            "autocommit_seconds": repository.autocommit_seconds,
        }
    tx.put(keys.repository(repository.id), bytes([version]) + json.dumps(body).encode())


def find(reader: Reader, number: RepositoryId) -> Repository | None:
    """One repository's rules, or None if there is no such repository."""
    record = reader.get(keys.repository(number))
    return None if record is None else _decode(number, record)


def delete(tx: Transaction, number: RepositoryId) -> None:
    """Forget a repository's rules."""
    tx.delete(keys.repository(number))


def every(reader: Reader) -> Iterator[Repository]:
    """All repositories, oldest first."""
    for key, record in reader.scan(keys.REPOSITORIES, prefix_stop(keys.REPOSITORIES)):
        yield _decode(RepositoryId(keys.number_of(key)), record)


def _decode(number: RepositoryId, record: bytes) -> Repository:
    if record[0] not in {_RECORD_VERSION, _GUARDED_VERSION}:
        raise FormatUnknown(what="a repository record", found=record[0], known=_GUARDED_VERSION)
    body = json.loads(record[1:])
    return Repository(
        number,
        body["name"],
        Acknowledgement(body["acknowledgement"]),
        body["copies_min"],
        body["retention_class"],
        body.get("versions_kept_seconds", VERSIONS_KEPT_SECONDS),
        OnTrip(body.get("tripwire", OnTrip.ALERT.value)),
        body.get("tripwire_per_minute", TRIPWIRE_PER_MINUTE),
        encrypted=bool(body.get("encrypted", False)),
        recall_bytes_per_day=body.get("recall_bytes_per_day", 0),  # older records have none
        recall_requests_per_day=body.get("recall_requests_per_day", 0),
        quota_bytes=body.get("quota_bytes", 0),
        quota_files=body.get("quota_files", 0),
        retention=RetentionMode(body.get("retention", RetentionMode.OFF.value)),
        retention_seconds=body.get("retention_seconds", 0),
        autocommit_seconds=body.get("autocommit_seconds", 0),
        **{name: body[name] for name in STANDING if name in body},
    )
