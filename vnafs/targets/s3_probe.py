"""What one S3 server really does, found by asking it to do the wrong thing with small objects.

Knows the wire, not our packs. One thread. Leaves nothing behind where the key may delete, else a fixed few objects of
1 KiB, which the next probe writes over.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import logging
import os
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.s3_errors import NOT_TOLD, code_of, status_of, translate

_log = logging.getLogger(__name__)

STALE_UPLOAD_SECONDS_MIN = 24 * 3600
KEPT = "probe/kept"
"""Where objects that cannot be removed are written over, probe after probe."""
_DATA = bytes(range(256)) * 4
"""Always the same: somebody else may probe the same place."""


class S3Probe:
    """One probe of one target; *client* is its boto3 client, *prefix* ends with a slash or is empty."""

    def __init__(self, name: TargetName, client: Any, bucket: str, prefix: str) -> None:
        self._name = name
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._directory = f"{prefix}{KEPT}"
        self._keys: list[str] = []
        self._versioned = False

    def capabilities(self, clock: Clock) -> Capabilities:
        """Raises TargetRefused when the bucket cannot be used at all, TargetUnavailable."""
        try:
            if removable(self._client, self._bucket, f"{self._prefix}{KEPT}/plain", _DATA):
                self._directory = f"{self._prefix}probe/{os.urandom(8).hex()}"
            plain = self._key("plain")
            self._put(plain)
            self._read_back(plain)
            self._versioned = self._setting("get_bucket_versioning").get("Status") == "Enabled"
            multipart = self._completes("parts", {})
            found = Capabilities(
                exclusive_create=self._refuses_taken(plain),
                exclusive_create_multipart=multipart and not self._completes("parts", {"IfNoneMatch": "*"}),
                checksum_sha256=self._checks_sha256(),
                checksum_md5=self._checks_md5(),
                multipart=multipart,
                versioning=self._versioned,
                object_lock=self._object_lock(),
                list_consistent=self._lists(plain),
            )
        except (ClientError, BotoCoreError) as error:
            raise translate(error, self._name, "probing", clock) from error
        finally:
            self._clean()
        self._abort_stale_uploads(clock)
        return found

    def _key(self, leaf: str) -> str:
        key = f"{self._directory}/{leaf}"
        if key not in self._keys:
            self._keys.append(key)
        return key

    def _put(self, key: str, **extra: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=_DATA, **extra)

    def _read_back(self, key: str) -> None:
        answer = self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=1-")
        if answer["Body"].read() != _DATA[1:]:
            raise TargetRefused(target=self._name, why="probing: it gives back other bytes than it was given")

    def _refused(self, key: str, *statuses: int, **extra: str) -> bool:
        """Whether a put is answered with one of *statuses*; other errors but "not implemented" are raised."""
        try:
            self._put(key, **extra)
        except ClientError as error:
            if status_of(error) in statuses:
                return True
            if status_of(error) == 501:
                return False
            raise
        return False

    def _refuses_taken(self, plain: str) -> bool:
        new = self._key("new")
        # One that stayed was put by the same conditional request, and by nothing else.
        if not self._is_there(new) and self._refused(new, 412, IfNoneMatch="*"):
            return False  # it refuses the header, not the name
        return self._refused(plain, 409, 412, IfNoneMatch="*")

    def _is_there(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if status_of(error) != 404:
                raise
            return False
        return True

    def _checks_sha256(self) -> bool:
        """A wrong one is refused, a right one is taken and given back."""
        right = base64.b64encode(hashlib.sha256(_DATA).digest()).decode()
        wrong = base64.b64encode(hashlib.sha256(b"not " + _DATA).digest()).decode()
        if not self._refused(self._key("sha256-wrong"), 400, ChecksumAlgorithm="SHA256", ChecksumSHA256=wrong):
            return False
        key = self._key("sha256-right")
        if self._refused(key, 400, ChecksumAlgorithm="SHA256", ChecksumSHA256=right):
            return False
        head = self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        return bool(head.get("ChecksumSHA256") == right)

    def _checks_md5(self) -> bool:
        right = base64.b64encode(hashlib.md5(_DATA, usedforsecurity=False).digest()).decode()
        wrong = base64.b64encode(hashlib.md5(b"not", usedforsecurity=False).digest()).decode()
        if not self._refused(self._key("md5-wrong"), 400, ContentMD5=wrong):
            return False
        return not self._refused(self._key("md5-right"), 400, ContentMD5=right)

    def _completes(self, leaf: str, conditions: dict[str, str]) -> bool:
        """Whether an upload in parts to *leaf* becomes an object."""
        upload: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(leaf)}
        completed = False
        try:
            upload["UploadId"] = self._client.create_multipart_upload(**upload)["UploadId"]
            part = self._client.upload_part(**upload, PartNumber=1, Body=_DATA)
            parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
            self._client.complete_multipart_upload(**upload, MultipartUpload=parts, **conditions)
            completed = True
        except ClientError as error:
            if status_of(error) not in {409, 412, 501}:
                raise
        finally:
            if not completed and "UploadId" in upload:
                with contextlib.suppress(ClientError, BotoCoreError):
                    self._client.abort_multipart_upload(**upload)
        return completed

    def _setting(self, operation: str) -> dict[str, Any]:
        """One read-only fact about the bucket; empty when it is unknown, unset or not ours to ask."""
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket)
        except ClientError as error:
            if status_of(error) not in NOT_TOLD:
                raise
            return {}
        return answer

    def _object_lock(self) -> bool:
        lock = self._setting("get_object_lock_configuration").get("ObjectLockConfiguration", {})
        return bool(lock.get("ObjectLockEnabled") == "Enabled")

    def _lists(self, key: str) -> bool:
        page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._directory)
        return key in {row["Key"] for row in page.get("Contents", [])}

    def _clean(self) -> None:
        """In a bucket that keeps versions those go, too, not only out of sight."""
        if self._directory.endswith(KEPT):
            _log.info("target_probe_left_behind", extra={"target": self._name, "count": len(self._keys)})
            return
        for key in self._keys:
            try:
                if not self._versions_gone(key):
                    self._client.delete_object(Bucket=self._bucket, Key=key)
            except (ClientError, BotoCoreError) as error:
                why = code_of(error) if isinstance(error, ClientError) else type(error).__name__
                _log.info("target_probe_left_behind", extra={"target": self._name, "why": why})
                return

    def _versions_gone(self, key: str) -> bool:
        if not self._versioned:
            return False
        page = self._client.list_object_versions(Bucket=self._bucket, Prefix=key)
        for row in page.get("Versions", []):
            self._client.delete_object(Bucket=self._bucket, Key=row["Key"], VersionId=row["VersionId"])
        return True

    def _abort_stale_uploads(self, clock: Clock) -> None:
        """Unfinished uploads of processes that died cost money and never show in a listing."""
        now = dt.datetime.fromtimestamp(clock.now() / NANOSECONDS, dt.UTC)
        bucket, prefix, count = self._bucket, self._prefix, 0
        try:
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    if (now - upload["Initiated"]).total_seconds() > STALE_UPLOAD_SECONDS_MIN:
                        self._client.abort_multipart_upload(
                            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
        except ClientError as error:
            if status_of(error) not in NOT_TOLD:
                raise translate(error, self._name, "aborting old uploads", clock) from error
            _log.info("target_uploads_not_listed", extra={"target": self._name, "why": code_of(error)})
        except BotoCoreError as error:
            raise TargetUnavailable(target=self._name, why=f"aborting old uploads: {type(error).__name__}") from error
        if count:
            _log.info("target_uploads_aborted", extra={"target": self._name, "count": count})


def removable(client: Any, bucket: str, key: str, data: bytes) -> bool:
    """Put a small object and remove it for good, its version where there are versions; whether that was allowed."""
    version = client.put_object(Bucket=bucket, Key=key, Body=data).get("VersionId")
    try:
        client.delete_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))
    except ClientError as error:
        if status_of(error) not in {401, 403}:
            raise
        return False
    return True
