"""What the credential of an S3 target can do that it should not, tried on one small object of its own.

Harmless: the object has a name of its own under `probe/` and a lock of seconds, and settings of the bucket are only
written as they were read. One thread.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.ids import TargetName
from vnafs.domain.locks import Powers
from vnafs.targets.s3_errors import NOT_TOLD, status_of, translate
from vnafs.targets.s3_probe import KEPT

LOCK_SECONDS = 60
"""Of the object that is tried on: a server whose clock is a little off still takes it."""


class S3Powers:
    """One look at one credential; *client* is its boto3 client, *prefix* ends with a slash or is empty."""

    def __init__(self, name: TargetName, client: Any, bucket: str, prefix: str) -> None:
        self._name = name
        self._client = client
        self._bucket = bucket
        self._object = {"Bucket": bucket, "Key": f"{prefix}{KEPT}/powers"}

    def powers(self, clock: Clock) -> Powers:
        """Raises TargetRefused when not even an object can be put, TargetUnavailable."""
        try:
            versioning = self._told("get_bucket_versioning").get("Status") == "Enabled"
            lock = self._told("get_object_lock_configuration").get("ObjectLockConfiguration", {})
            locks = lock.get("ObjectLockEnabled") == "Enabled"
            default = lock.get("Rule", {}).get("DefaultRetention", {})
            can_delete, can_remove = self._can_delete(versioning=versioning)
            can_lock, can_shorten = self._can_lock(clock) if locks else (None, None)
            return Powers(
                can_delete=can_delete,
                can_remove_versions=can_remove,
                can_lock=can_lock,
                can_shorten=can_shorten,
                can_configure=self._can_configure(versioning=versioning, lock=lock if locks else {}),
                default_retention=_shown(default),
            )
        except (ClientError, BotoCoreError) as error:
            raise translate(error, self._name, "probing the credential", clock) from error

    def _can_delete(self, *, versioning: bool) -> tuple[bool, bool | None]:
        """Whether it can make an object go, and, where versions are kept, remove one for good."""
        version = self._client.put_object(**self._object, Body=b"powers").get("VersionId")
        can_remove = None
        if version is not None and versioning:
            can_remove = self._may(self._client.delete_object, **self._object, VersionId=version)
        marker = self._answer(self._client.delete_object, **self._object)
        if marker is not None and can_remove and "VersionId" in marker:
            self._may(self._client.delete_object, **self._object, VersionId=marker["VersionId"])
        return marker is not None, can_remove

    def _can_lock(self, clock: Clock) -> tuple[bool, bool | None]:
        """Whether it can lock, and whether it can shorten such a lock."""
        now = dt.datetime.fromtimestamp(clock.now() // NANOSECONDS, dt.UTC)
        until, sooner = (now + dt.timedelta(seconds=seconds) for seconds in (LOCK_SECONDS, LOCK_SECONDS // 2))
        lock: dict[str, Any] = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until}
        put = self._answer(self._client.put_object, **self._object, Body=b"powers", **lock)
        if put is None:
            return False, None
        version: dict[str, Any] = {**self._object, "VersionId": put["VersionId"]}
        shorter = {"Mode": "GOVERNANCE", "RetainUntilDate": sooner}
        can_shorten = False
        for bypass in (False, True):
            told = {"BypassGovernanceRetention": True} if bypass else {}
            can_shorten |= self._may(self._client.put_object_retention, **version, **told, Retention=shorter)
            can_shorten |= self._may(self._client.delete_object, **version, **told)
        return True, can_shorten

    def _can_configure(self, *, versioning: bool, lock: dict[str, Any]) -> bool | None:
        """Whether it can write settings of the bucket: those that are there, again. None when none are."""
        can = None
        if versioning:
            setting: dict[str, Any] = {"VersioningConfiguration": {"Status": "Enabled"}}
            can = self._may(self._client.put_bucket_versioning, Bucket=self._bucket, **setting)
        if lock:
            setting = {"ObjectLockConfiguration": lock}
            can = self._may(self._client.put_object_lock_configuration, Bucket=self._bucket, **setting) or bool(can)
        return can

    def _may(self, call: Callable[..., Any], **parameters: Any) -> bool:
        """Whether a request is allowed."""
        return self._answer(call, **parameters) is not None

    def _answer(self, call: Callable[..., Any], **parameters: Any) -> dict[str, Any] | None:
        """The answer to a request; None when it is refused."""
        try:
            found: dict[str, Any] = call(**parameters)
        except ClientError as error:
            if status_of(error) in NOT_TOLD | {401}:
                return None
            raise
        return found

    def _told(self, operation: str) -> dict[str, Any]:
        """One fact about the bucket; empty when it is unknown, unset or not ours to ask."""
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket)
        except ClientError as error:
            if status_of(error) not in NOT_TOLD:
                raise
            return {}
        return answer


def _shown(default: dict[str, Any]) -> str:
    if not default:
        return ""
    length = f"{default['Days']} days" if "Days" in default else f"{default.get('Years', '?')} years"
    return f"{length}, {str(default.get('Mode', '')).lower()}"
