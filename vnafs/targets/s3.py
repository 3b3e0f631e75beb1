"""An S3 bucket as a target: Amazon's, Ceph's, MinIO's or any other server of that API.

Knows nothing of packs. Any thread may call: one boto3 client (thread-safe) with a bounded pool of connections, and
one small pool of threads for parts. Never retries by itself (`retrying` does). An object is visible when its put
or the completion of its upload has succeeded, and durable then, as S3 promises.

What the server can do is probed, not assumed: SHA-256 (x-amz-checksum-sha256) is sent, and believed, only where a
wrong one was seen refused; elsewhere Content-MD5 guards the transfer. Either header is part of the signature, so the
body itself is not signed: that would be one more pass over every byte, here and there.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import datetime as dt
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import ObjectArchived, ObjectExists, ObjectMissing, TargetRefused, TargetUnavailable
from vnafs.domain.ids import WHOLE, ObjectName, Sha256, Span, TargetName
from vnafs.domain.locks import Lock, LockMode, Powers
from vnafs.domain.rehydration import READY, Rehydration, Thaw
from vnafs.targets.address import S3Address
from vnafs.targets.body import BLOCK_BYTES, Stretch
from vnafs.targets.credentials import S3Credentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.names import checked, is_object_name
from vnafs.targets.parts import all_or_first_failure, cut
from vnafs.targets.port import Body
from vnafs.targets.s3_errors import code_of, is_taken, status_of, translate
from vnafs.targets.s3_powers import S3Powers
from vnafs.targets.s3_probe import S3Probe
from vnafs.targets.s3_versions import S3Versions, lock_of

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PART_BYTES_MIN = 5 * MEBIBYTE
PARTS_MAX = 10_000
"""Both from "Amazon S3 multipart upload limits"."""
RESTORED_DAYS = 7
"""How long what was asked back from an archive class stays readable."""
_HOUR = 3600
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion"})
_ARCHIVE_SECONDS = {
    "GLACIER": 5 * _HOUR,
    "DEEP_ARCHIVE": 12 * _HOUR,
    "ARCHIVE_ACCESS": 5 * _HOUR,
    "DEEP_ARCHIVE_ACCESS": 12 * _HOUR,
}
"""Classes and tiers that cannot be read at once, and how long the Standard tier takes ("Archive retrieval options")."""


class S3Target:
    """See Target. *known* is what an earlier probe saw; without it the first put probes.

    *lock* is given to each object that is put. Versions of objects: see `s3_versions`.
    """

    def __init__(
        self,
        name: TargetName,
        address: S3Address,
        credentials: S3Credentials,
        clock: Clock,
        limits: Limits,
        known: Capabilities | None = None,
        lock: Lock | None = None,
    ) -> None:
        self._name = name
        self._clock = clock
        self._lock = lock
        self._limits = limits
        self._bucket = address.bucket
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._client = _client(address, credentials, limits)
        self._parts = concurrent.futures.ThreadPoolExecutor(limits.parts_in_flight_max, f"{name}-parts")
        self._versions = S3Versions(name, self._client, self._bucket, clock)
        self._probing = threading.Lock()
        self._known: Capabilities | None = None
        if known is not None:
            self._learn(known)

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._name

    def probe(self) -> Capabilities:
        """See Target. Also aborts uploads below the target's prefix that have been unfinished for a day."""
        known = S3Probe(self._name, self._client, self._bucket, self._prefix).capabilities(self._clock)
        self._learn(known)
        return known

    def powers(self) -> Powers:
        """See Target."""
        return S3Powers(self._name, self._client, self._bucket, self._prefix).powers(self._clock)

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        known = self._capabilities()
        key = self._key(checked(name))
        single = body.size_bytes <= self._limits.single_put_bytes_max
        exclusive = known.exclusive_create if single else known.exclusive_create_multipart
        # Parts are sent before the server looks at the name: ask first. A plain put is refused by its headers alone.
        existing = None if single and exclusive else self._head(key)
        if existing is not None:
            return self._same_or_refuse(name, body, existing)
        conditions: dict[str, Any] = {"IfNoneMatch": "*"} if exclusive else {}
        locks = self._locks(known)
        try:
            if single:
                answer = self._put_single(key, body, known, {**conditions, **locks})
            else:
                answer = self._put_parts(key, body, known, conditions, locks)
        except ClientError as error:
            if is_taken(error):
                return self._same_or_refuse(name, body, self._head_of_taken(key))
            raise translate(error, self._name, "putting an object", self._clock) from error
        except BotoCoreError as error:
            raise translate(error, self._name, "putting an object", self._clock) from error
        if self._versions.are_kept() and self._versions.first(key) != answer.get("VersionId"):
            # The server let two have the name, or somebody's is there out of sight: whoever was first has it.
            return self._same_or_refuse(name, body, self._head_of_taken(key))
        if locks and not single:
            # radosgw takes the lock of an upload in parts and forgets it.
            self.retain(name, Instant(int(locks["ObjectLockRetainUntilDate"].timestamp()) * NANOSECONDS))
        return Evidence(body.size_bytes, body.sha256 if single and known.checksum_sha256 else None, _etag(answer))

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        key = self._key(checked(name))
        if span.length == 0:
            self.evidence(name)
            return
        ranged = {} if span == WHOLE else {"Range": f"bytes={span.offset}-{'' if span.stop is None else span.stop - 1}"}
        try:
            answer = self._of_first(self._client.get_object, key, **ranged)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError):
                if status_of(error) == 416:
                    return  # the span begins at or past the end
                if code_of(error) in _MISSING:
                    raise ObjectMissing(target=self._name, name=name) from error
                if code_of(error) == "InvalidObjectState":
                    raise ObjectArchived(target=self._name, name=name) from error
            raise translate(error, self._name, "getting an object", self._clock) from error
        with contextlib.closing(answer["Body"]) as stream:
            expected = int(answer["ContentLength"])
            if ranged and not str(answer.get("ContentRange", "")).startswith(f"bytes {span.offset}-"):
                raise TargetRefused(target=self._name, why="getting an object: the server does not honour ranges")
            yield from self._blocks(stream, name, expected)

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        return self.get(name)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target. RestoreObject, at the Standard tier; HEAD tells whether it was asked for before."""
        head = self._head_of(name)
        kept_in = str(head.get("ArchiveStatus") or head.get("StorageClass", ""))
        seconds = _ARCHIVE_SECONDS.get(kept_in)
        restoring = str(head.get("Restore", ""))
        if seconds is None or 'ongoing-request="false"' in restoring:
            return READY
        if restoring:
            return Rehydration(Thaw.PENDING, seconds)
        wanted: dict[str, Any] = {"GlacierJobParameters": {"Tier": "Standard"}}
        if "ArchiveStatus" not in head:  # Intelligent-Tiering brings it back for good
            wanted["Days"] = RESTORED_DAYS
        try:
            self._of_first(self._client.restore_object, self._key(name), RestoreRequest=wanted)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and code_of(error) == "RestoreAlreadyInProgress":
                return Rehydration(Thaw.PENDING, seconds)
            raise translate(error, self._name, "asking an object back", self._clock) from error
        return Rehydration(Thaw.ASKED, seconds)

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        return self._evidence(self._head_of(name))

    def _head_of(self, name: ObjectName) -> Mapping[str, Any]:
        head = self._head(self._key(checked(name)))
        if head is None:
            # HEAD cannot tell a missing object from a missing bucket, and that must not look like a lost copy.
            self._call("looking for the bucket", self._client.head_bucket, Bucket=self._bucket)
            raise ObjectMissing(target=self._name, name=name)
        return head

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target. Objects that cannot be ours, such as a console's folder markers, are left out."""
        for key in self._keys(self._prefix + prefix):
            name = key[len(self._prefix) :]
            if is_object_name(name):
                yield ObjectName(name)

    def _keys(self, prefix: str) -> Iterator[str]:
        if self._versions.are_kept():
            yield from self._versions.keys(prefix)
            return
        more: dict[str, str] = {}
        while True:
            page = self._call("listing", self._client.list_objects_v2, Bucket=self._bucket, Prefix=prefix, **more)
            yield from (str(row["Key"]) for row in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        key = self._key(checked(name))
        if self._versions.are_kept():
            self._versions.remove(key, name)
        else:
            self._call("deleting an object", self._client.delete_object, Bucket=self._bucket, Key=key)

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target. A lock in compliance mode keeps its mode."""
        head = self._head_of(name)
        if not self._capabilities().object_lock:
            raise TargetRefused(target=self._name, why="locking an object: the bucket has no Object Lock")
        present = lock_of(head, Instant(0))
        if present is not None and present >= until:
            return
        firm = head.get("ObjectLockMode") == "COMPLIANCE" or (self._lock and self._lock.mode is LockMode.COMPLIANCE)
        try:
            change = self._at_first if self._versions.are_kept() else self._at_newest
            change(
                self._client.put_object_retention,
                self._key(name),
                Retention={"Mode": "COMPLIANCE" if firm else "GOVERNANCE", "RetainUntilDate": _datetime(until)},
            )
        except (ClientError, BotoCoreError) as error:
            raise translate(error, self._name, "locking an object", self._clock) from error

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target. Without the right to look at locks S3 shows none."""
        return lock_of(self._head_of(name), self._clock.now())

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        key = self._key(checked(name))
        if self._versions.may_be_there():
            return self._versions.exists(key)
        if self._capabilities().versioning:
            raise TargetRefused(
                target=self._name,
                why="looking for versions: the bucket keeps them, and the credential may not list them "
                "(s3:ListBucketVersions)",
            )
        return any(found == key for found in self._keys(key))

    def close(self) -> None:
        """See Target."""
        self._parts.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _learn(self, known: Capabilities) -> None:
        self._known = known
        self._versions.learn(versioning=known.versioning)

    # -- putting --------------------------------------------------------------------------------------------

    def _locks(self, known: Capabilities) -> dict[str, Any]:
        """The lock of an object that is put now. Raises TargetRefused when it is wanted and cannot be had."""
        if self._lock is None:
            return {}
        if not known.object_lock:
            raise TargetRefused(
                target=self._name,
                why="lock_seconds is set, and the bucket has no Object Lock, or the credential may not ask "
                "(s3:GetBucketObjectLockConfiguration). Set lock_seconds = 0, or use a bucket with Object Lock; then "
                f"run `vna target test {self._name}`",
            )
        until = _datetime(self._lock.until(self._clock.now()))
        return {"ObjectLockMode": self._lock.mode.value.upper(), "ObjectLockRetainUntilDate": until}

    def _capabilities(self) -> Capabilities:
        if self._known is None:
            with self._probing:
                if self._known is None:
                    self.probe()
        if self._known is None:
            raise TargetUnavailable(target=self._name, why="it was not probed")
        return self._known

    def _put_single(
        self, key: str, body: Body, known: Capabilities, conditions: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        with Stretch(body) as reader:
            if known.checksum_sha256:
                guard = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _base64(body.sha256)}
            else:
                guard = {"ContentMD5": _base64(_digest(reader, "md5"))}
            with _own_failures(reader):
                answer: Mapping[str, Any] = self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=reader, **guard, **conditions
                )
        return answer

    def _put_parts(
        self, key: str, body: Body, known: Capabilities, conditions: Mapping[str, Any], locks: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        algorithm = {"ChecksumAlgorithm": "SHA256"} if known.checksum_sha256 else {}
        upload = {"Bucket": self._bucket, "Key": key}
        upload["UploadId"] = self._client.create_multipart_upload(**upload, **algorithm, **locks)["UploadId"]
        done = False
        try:
            pieces = cut(body.size_bytes, max(self._limits.part_bytes, PART_BYTES_MIN), PARTS_MAX)
            futures = [
                self._parts.submit(self._put_part, upload, number, body, offset, length, known)
                for number, (offset, length) in enumerate(pieces, 1)
            ]
            parts = all_or_first_failure(futures)
            answer: Mapping[str, Any] = self._client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, **conditions
            )
            done = True
            return answer
        finally:
            if not done:
                self._abort(upload)

    def _put_part(
        self, upload: Mapping[str, str], number: int, body: Body, offset: int, length: int, known: Capabilities
    ) -> dict[str, object]:
        with Stretch(body, offset, length) as reader:
            if known.checksum_sha256:
                kept = {"ChecksumSHA256": _base64(_digest(reader, "sha256"))}
                guard = {"ChecksumAlgorithm": "SHA256", **kept}
            else:
                guard = {"ContentMD5": _base64(_digest(reader, "md5"))}
                kept = {}
            with _own_failures(reader):
                answer = self._client.upload_part(**upload, PartNumber=number, Body=reader, **guard)
        return {"PartNumber": number, "ETag": answer["ETag"], **kept}

    def _abort(self, upload: Mapping[str, str]) -> None:
        try:
            self._client.abort_multipart_upload(**upload)
        except (ClientError, BotoCoreError) as error:
            # The upload may also have been completed and only the reply lost. What stays is aborted by a later probe.
            _log.info("target_upload_not_aborted", extra={"target": self._name, "why": type(error).__name__})

    def _same_or_refuse(self, name: ObjectName, body: Body, head: Mapping[str, Any]) -> Evidence:
        found = self._evidence(head)
        if found.size_bytes != body.size_bytes:
            raise ObjectExists(target=self._name, name=name)
        return found

    # -- asking ---------------------------------------------------------------------------------------------

    def _head(self, key: str) -> Mapping[str, Any] | None:
        """The object's headers; None when there is no object or no bucket."""
        try:
            head: Mapping[str, Any] = self._of_first(self._client.head_object, key, ChecksumMode="ENABLED")
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise translate(error, self._name, "asking for an object", self._clock) from error
        except BotoCoreError as error:
            raise translate(error, self._name, "asking for an object", self._clock) from error
        return head

    def _of_first(self, operation: Callable[..., Any], key: str, **parameters: Any) -> Any:
        """One request about an object, where versions are kept about its first one. Raises what botocore raises.

        Raises TargetError when that is not to be found out.
        """
        if not self._versions.are_kept():
            return self._at_newest(operation, key, **parameters)
        try:
            return self._at_first(operation, key, **parameters)
        except ClientError as error:
            if status_of(error) != 403:
                raise
            # It may read objects and not versions, as many a policy has it. Else this is refused, too.
            found = self._at_newest(operation, key, **parameters)
            self._versions.not_readable()
            return found

    def _at_newest(self, operation: Callable[..., Any], key: str, **parameters: Any) -> Any:
        return operation(Bucket=self._bucket, Key=key, **parameters)

    def _at_first(self, operation: Callable[..., Any], key: str, **parameters: Any) -> Any:
        """The same, and never about another version."""
        remembered = self._versions.first(key)
        try:
            return operation(Bucket=self._bucket, Key=key, **_version(remembered), **parameters)
        except ClientError as error:
            if remembered is None or status_of(error) != 404:
                raise
            self._versions.forget(key)  # it may be gone, and another one there
            return operation(Bucket=self._bucket, Key=key, **_version(self._versions.first(key)), **parameters)

    def _head_of_taken(self, key: str) -> Mapping[str, Any]:
        head = self._head(key)
        if head is None:
            raise TargetUnavailable(
                target=self._name, why="putting an object: its name was taken a moment ago, then free"
            )
        return head

    def _evidence(self, head: Mapping[str, Any]) -> Evidence:
        """A checksum counts where a wrong one was refused, and only over the whole object, not over its parts' sums.

        Servers say so by a type or by a suffix of the sum; where they forget, the suffix of the ETag still tells.
        """
        text, etag = str(head.get("ChecksumSHA256", "")), str(head.get("ETag", ""))
        believed = self._known is not None and self._known.checksum_sha256
        whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" and "-" not in text and "-" not in etag
        sha256 = Sha256(base64.b64decode(text)) if believed and whole and text else None
        return Evidence(int(head["ContentLength"]), sha256, etag)

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _call(self, doing: str, operation: Callable[..., _T], **parameters: Any) -> _T:
        """One request; errors as the port promises them."""
        try:
            return operation(**parameters)
        except (ClientError, BotoCoreError) as error:
            raise translate(error, self._name, doing, self._clock) from error

    def _blocks(self, stream: Any, name: ObjectName, expected: int) -> Iterator[bytes]:
        at = 0
        while at < expected:
            try:
                data = bytes(stream.read(min(BLOCK_BYTES, expected - at)))
            except BotoCoreError as error:
                raise translate(error, self._name, f"getting an object at byte {at}", self._clock) from error
            if not data:
                raise TargetUnavailable(target=self._name, why=f"{name} ended {expected - at} bytes early")
            at += len(data)
            yield data


def _client(address: S3Address, credentials: S3Credentials, limits: Limits) -> Any:
    """A client that takes everything from its parameters, nothing from the environment or a user's configuration."""
    core = botocore.session.get_session()
    core.set_config_variable("config_file", os.devnull)
    core.set_config_variable("credentials_file", os.devnull)
    reach = address.reach
    config = Config(
        region_name=address.region or "us-east-1",
        signature_version="s3v4",
        connect_timeout=limits.connect_seconds_max,
        read_timeout=limits.read_seconds_max,
        max_pool_connections=limits.requests_max + limits.parts_in_flight_max,
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": "path" if reach.endpoint else "auto", "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        proxies={"http": reach.proxy, "https": reach.proxy} if reach.proxy else {},
        user_agent_extra="vnafs",
    )
    return boto3.session.Session(botocore_session=core).client(
        "s3",
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token or None,
        endpoint_url=reach.endpoint or None,
        verify=reach.ca_file or None,
        config=config,
    )


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", ""))


def _version(first: str | None) -> dict[str, str]:
    """As a parameter. Without one the server itself says that there is nothing."""
    return {} if first is None else {"VersionId": first}


def _datetime(until: Instant) -> dt.datetime:
    return dt.datetime.fromtimestamp(until // NANOSECONDS, dt.UTC)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _digest(reader: Stretch, algorithm: str) -> bytes:
    """Of the whole stretch, which is at its start before and after."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    while data := reader.read(BLOCK_BYTES):
        state.update(data)
    reader.seek(0)
    return state.digest()


@contextlib.contextmanager
def _own_failures(reader: Stretch) -> Iterator[None]:
    """A failed read of the local body surfaces as itself, not as a broken connection."""
    try:
        yield
    except BotoCoreError:
        reader.raise_failure()
        raise
