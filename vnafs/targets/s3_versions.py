"""The versions of objects in an S3 bucket that keeps them: which one is ours, and how all of them go.

An object is created exclusively and never written again, so the first version under a name is ours. Whoever steals
the credential can write over it, or hide it behind a delete marker; both add versions, and neither is looked at. Any
thread may call. Which version is first is remembered, for a limited number of names: it can only change by removal.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.errors import TargetError
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.domain.locks import FOR_EVER, locked
from vnafs.targets.s3_errors import NOT_TOLD, code_of, status_of, translate

_log = logging.getLogger(__name__)

REMEMBERED_MAX = 16_384
"""Names whose first version is known; about 4 MB."""


VERSIONS_AT_ONCE = 16
"""Of one name in one answer: mostly there is one, and servers read as far as they are asked to."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Version:
    id: str
    is_marker: bool


class S3Versions:
    """Of the objects of one target; *client* is its boto3 client."""

    def __init__(self, name: TargetName, client: Any, bucket: str, clock: Clock) -> None:
        self._name = name
        self._client = client
        self._bucket = bucket
        self._clock = clock
        self._lock = threading.Lock()
        self._first: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._are_kept: bool | None = None
        self._were_kept: bool | None = None

    def learn(self, *, versioning: bool) -> None:
        """What a probe saw of the bucket. Whether the credential may list versions is found out when it matters."""
        self._are_kept = None if versioning else False

    def are_kept(self) -> bool:
        """Whether the bucket keeps versions, and the credential may look at them. Asked once. Raises TargetError."""
        if self._are_kept is None:
            self._are_kept = self._ask()
        return self._are_kept

    def may_be_there(self) -> bool:
        """Whether there are versions to look at, also where they were kept once. Asked once. Raises TargetError."""
        if self._are_kept:
            return True
        if self._were_kept is None:
            self._were_kept = self._ask()
        return self._were_kept

    def _ask(self) -> bool:
        try:
            if not self._client.get_bucket_versioning(Bucket=self._bucket).get("Status"):
                return False
        except ClientError as error:
            if status_of(error) not in NOT_TOLD:
                raise translate(error, self._name, "asking for versioning", self._clock) from error
        except BotoCoreError as error:
            raise translate(error, self._name, "asking for versioning", self._clock) from error
        try:
            self._client.list_object_versions(Bucket=self._bucket, MaxKeys=1)
        except ClientError as error:
            if status_of(error) not in NOT_TOLD or code_of(error) == "NoSuchBucket":
                raise translate(error, self._name, "listing versions", self._clock) from error
            _log.warning("target_versions_not_listed", extra={"target": self._name, "why": code_of(error)})
            return False
        except BotoCoreError as error:
            raise translate(error, self._name, "listing versions", self._clock) from error
        return True

    def not_readable(self) -> None:
        """The credential may list versions and not read them: the newest is what there is."""
        _log.warning("target_versions_not_read", extra={"target": self._name})
        self._are_kept = False

    def first(self, key: str) -> str | None:
        """The id of the first version under *key*; None when there is none. Raises TargetError."""
        with self._lock:
            known = self._first.get(key)
            if known is not None:
                self._first.move_to_end(key)
                return known
        found = next((version.id for version in reversed(self._of(key)) if not version.is_marker), None)
        if found is not None:
            with self._lock:
                self._first[key] = found
                while len(self._first) > REMEMBERED_MAX:
                    self._first.popitem(last=False)
        return found

    def forget(self, key: str) -> None:
        """What was known of *key* is so no more."""
        with self._lock:
            self._first.pop(key, None)

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys with any bytes, in order, hidden ones too. Raises TargetError."""
        last = None
        for page in self._pages(prefix):
            for row in page.get("Versions", []):
                key = str(row["Key"])
                if key != last:
                    last = key
                    yield key

    def remove(self, key: str, name: ObjectName) -> None:
        """Remove all versions under *key*. Raises ObjectLocked, the first version untouched; TargetError.

        The newest go first: what was written over an object must never become the object.
        """
        for version in self._of(key):
            try:
                self._client.delete_object(Bucket=self._bucket, Key=key, VersionId=version.id)
            except ClientError as error:
                says_locked = "object lock" in str(error).lower()  # Amazon's gateway and Ceph's, in their own words
                until = None
                if status_of(error) == 403:
                    until = self._locked_until(key, version.id, says_locked=says_locked)
                if until is not None:
                    raise locked(self._name, name, until) from error
                raise translate(error, self._name, "deleting an object", self._clock) from error
            except BotoCoreError as error:
                raise translate(error, self._name, "deleting an object", self._clock) from error
        self.forget(key)

    def _locked_until(self, key: str, version: str, *, says_locked: bool) -> Instant | None:
        """Of a version that may not go; None when it is no lock that forbids it, or nobody can tell."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=key, VersionId=version)
        except (ClientError, BotoCoreError):
            return FOR_EVER if says_locked else None
        return lock_of(head, self._clock.now())

    def exists(self, key: str) -> bool:
        """Whether there is any version or delete marker under *key*. Raises TargetError."""
        return bool(self._of(key))

    def _of(self, key: str) -> list[_Version]:
        """Of exactly this key, newest first, and then the delete markers."""
        found: list[_Version] = []
        markers: list[_Version] = []
        for page in self._pages(key, MaxKeys=VERSIONS_AT_ONCE):
            rows = page.get("Versions", [])
            found += [_Version(row["VersionId"], is_marker=False) for row in rows if row["Key"] == key]
            gone = page.get("DeleteMarkers", [])
            markers += [_Version(row["VersionId"], is_marker=True) for row in gone if row["Key"] == key]
            if any(row["Key"] > key for row in (*rows, *gone)):
                break
        return found + markers

    def _pages(self, prefix: str, **options: int) -> Iterator[Mapping[str, Any]]:
        more: dict[str, str] = {}
        while True:
            try:
                page = self._client.list_object_versions(Bucket=self._bucket, Prefix=prefix, **options, **more)
            except (ClientError, BotoCoreError) as error:
                raise self._told(error) from error
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"]}
            if page.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = page["NextVersionIdMarker"]

    def _told(self, error: ClientError | BotoCoreError) -> TargetError:
        return translate(error, self._name, "listing versions", self._clock)


def lock_of(head: Mapping[str, Any], now: Instant) -> Instant | None:
    """Until when what HEAD describes is locked; None when it is not."""
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        return FOR_EVER
    until = head.get("ObjectLockRetainUntilDate")
    if not isinstance(until, dt.datetime):
        return None
    instant = Instant(int(until.timestamp() * NANOSECONDS))
    return instant if instant > now else None
