"""An S3 bucket as the store of a plain mirror.

As `S3Target` in all but names and the right to replace. Never tries again by itself; any thread may call.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.errors import Damaged, TargetRefused, TargetUnavailable
from vnafs.domain.ids import Sha256
from vnafs.targets.body import BLOCK_BYTES
from vnafs.targets.mirror import Original
from vnafs.targets.port import Body
from vnafs.targets.s3 import S3Target
from vnafs.targets.s3_errors import translate

COPY_BYTES_MAX = 5 << 30
"""Of CopyObject."""


class PlainBucket(S3Target):
    """See PlainStore."""

    probes = "probe/"

    def try_out(self) -> None:
        """See PlainStore."""
        self.probe()

    def replace(self, name: str, body: Body, about: dict[str, str]) -> None:
        """See PlainStore."""
        known = self._capabilities()
        key = self._key(name)
        described = {"Metadata": about}
        try:
            if body.size_bytes <= self._limits.single_put_bytes_max:
                self._put_single(key, body, known, described)
            else:
                self._put_parts(key, body, known, {}, described)
        except (ClientError, BotoCoreError) as error:
            raise translate(error, self._name, "putting an object", self._clock) from error
        if not self._is_right(key, body.size_bytes, body.sha256):
            raise Damaged(what=f"What was put on mirror {self._name}")

    def copy(self, source: Original, name: str, about: dict[str, str]) -> bool:
        """See Mirror."""
        if source.size_bytes > COPY_BYTES_MAX:
            return False
        key = self._key(name)
        algorithm = {"ChecksumAlgorithm": "SHA256"} if self._capabilities().checksum_sha256 else {}
        try:
            self._client.copy_object(
                Bucket=self._bucket,
                Key=key,
                CopySource={"Bucket": self._bucket, "Key": self._key(source.name)},
                MetadataDirective="REPLACE",
                Metadata=about,
                **algorithm,
            )
            return self._is_right(key, source.size_bytes, source.sha256)
        except (ClientError, BotoCoreError) as error:
            problem = translate(error, self._name, "copying an object", self._clock)
            if isinstance(problem, TargetRefused):
                return False
            raise problem from error

    def _is_right(self, key: str, size_bytes: int, sha256: Sha256) -> bool:
        """Whether that is there: by the server's own SHA-256 where it has one, else it is read back."""
        head = self._head(key)
        if head is None:
            raise TargetUnavailable(target=self._name, why="an object that was put is not there")
        evidence = self._evidence(head)
        if evidence.size_bytes != size_bytes:
            return False
        return (evidence.sha256 or self._digest_of(key)) == sha256

    def read(self, name: str) -> bytes | None:
        """See PlainStore."""
        if self._head(self._key(name)) is None:
            # a bucket that is missing must not look like an empty one
            self._call("looking for the bucket", self._client.head_bucket, Bucket=self._bucket)
            return None
        answer = self._call("reading", self._client.get_object, Bucket=self._bucket, Key=self._key(name))
        with contextlib.closing(answer["Body"]) as stream:
            return bytes(stream.read())

    def remove(self, name: str) -> None:
        """See PlainStore."""
        self._call("removing an object", self._client.delete_object, Bucket=self._bucket, Key=self._key(name))

    def names(self) -> Iterator[str]:
        """See PlainStore."""
        more: dict[str, Any] = {}
        while True:
            page = self._call("listing", self._client.list_objects_v2, Bucket=self._bucket, Prefix=self._prefix, **more)
            for row in page.get("Contents", []):
                yield str(row["Key"])[len(self._prefix) :]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _of_first(self, operation: Callable[..., Any], key: str, **parameters: Any) -> Any:
        """Where versions are kept, a mirror is about the newest one: it is replaced on purpose."""
        return self._at_newest(operation, key, **parameters)

    def _digest_of(self, key: str) -> bytes:
        found = hashlib.sha256()
        answer = self._call("reading back", self._client.get_object, Bucket=self._bucket, Key=key)
        try:
            with contextlib.closing(answer["Body"]) as stream:
                while data := stream.read(BLOCK_BYTES):
                    found.update(data)
        except BotoCoreError as error:
            raise translate(error, self._name, "reading back", self._clock) from error
        return found.digest()
