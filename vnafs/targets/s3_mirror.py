"""An S3 bucket as a plain mirror. A put is atomic there: readers find the old object or the new one.

As `S3Target` in all but names and the right to replace. An object carries `sha256` and `mtime` (seconds since 1970,
as rclone writes it) in its own metadata. Never tries again by itself; any thread may call.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from vnafs.domain.clock import NANOSECONDS, Clock
from vnafs.domain.errors import Damaged, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.address import S3Address
from vnafs.targets.body import BLOCK_BYTES, BytesBody
from vnafs.targets.credentials import S3Credentials
from vnafs.targets.limits import Limits
from vnafs.targets.mirror import MARKER
from vnafs.targets.port import Body
from vnafs.targets.s3 import S3Target
from vnafs.targets.s3_errors import UNTOLD, translate

_log = logging.getLogger(__name__)

PROBE = "probe/"
"""Where probing has its small objects, some of which it may have left when it was killed."""
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, *UNTOLD)
"""What the library raises over answers that make no sense; see `sensible`."""


class S3Mirror:
    """See Mirror. *archive* is the id of the archive that is mirrored."""

    def __init__(
        self,
        name: TargetName,
        address: S3Address,
        credentials: S3Credentials,
        archive: bytes,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._name = name
        self._archive = archive.hex()
        self._bucket = _PlainBucket(name, address, credentials, clock, limits)

    @property
    def name(self) -> TargetName:
        """See Mirror."""
        return self._name

    def probe(self, *, known: bool) -> bool:
        """See Mirror."""
        with self._told_apart("probing"):
            found = self._bucket.read(MARKER)
            if found is None:
                if known:
                    raise TargetUnavailable(target=self._name, why=f"the bucket has lost {MARKER}")
                if any(not name.startswith(PROBE) for name in self._bucket.names()):
                    raise TargetRefused(
                        target=self._name, why="the place is not empty, and no mirror; name another prefix"
                    )
                self._bucket.probe()
                marker = json.dumps({"vnafs_mirror": 1, "archive": self._archive}).encode() + b"\n"
                self._bucket.replace(MARKER, BytesBody(marker), {})
                return False
            try:
                archive = json.loads(found)["archive"]
            except (ValueError, KeyError, TypeError):
                archive = "unreadable"
            if archive != self._archive:
                raise TargetRefused(target=self._name, why=f"this is the mirror of another archive ({archive})")
            self._bucket.probe()
            return True

    def replace(self, name: str, body: Body, mtime_ns: int) -> None:
        """See Mirror."""
        seconds, rest = divmod(mtime_ns, NANOSECONDS)
        about = {"sha256": body.sha256.hex(), "mtime": f"{seconds}.{rest:09d}"}
        with self._told_apart("putting an object"):
            self._bucket.replace(name, body, about)

    def remove(self, name: str) -> None:
        """See Mirror."""
        with self._told_apart("removing an object"):
            self._bucket.remove(name)

    def list(self) -> Iterator[str]:
        """See Mirror."""
        with self._told_apart("listing"):
            yield from (name for name in self._bucket.names() if name != MARKER)

    def close(self) -> None:
        """See Mirror."""
        self._bucket.close()

    @contextlib.contextmanager
    def _told_apart(self, doing: str) -> Iterator[None]:
        try:
            yield
        except _NONSENSE as problem:
            # without its trace, which could name an object
            _log.error("target.nonsense", extra={"target": self._name, "problem": type(problem).__name__})
            why = f"{doing}: the answer makes no sense ({type(problem).__name__}); is something between us and it?"
            raise TargetUnavailable(target=self._name, why=why) from problem


class _PlainBucket(S3Target):
    """What an S3 target does, for names of a mirror."""

    def replace(self, name: str, body: Body, about: dict[str, str]) -> None:
        """Put and verify. Raises Damaged."""
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
        head = self._head(key)
        if head is None:
            raise TargetUnavailable(target=self._name, why="an object that was put is not there")
        evidence = self._evidence(head)
        right = evidence.size_bytes == body.size_bytes
        if right and evidence.sha256 is not None:
            right = evidence.sha256 == body.sha256
        elif right:
            right = self._digest_of(key) == body.sha256
        if not right:
            raise Damaged(what=f"What was put on mirror {self._name}")

    def read(self, name: str) -> bytes | None:
        """A small object; None when it is not there."""
        if self._head(self._key(name)) is None:
            # a bucket that is missing must not look like an empty one
            self._call("looking for the bucket", self._client.head_bucket, Bucket=self._bucket)
            return None
        answer = self._call("reading", self._client.get_object, Bucket=self._bucket, Key=self._key(name))
        with contextlib.closing(answer["Body"]) as stream:
            return bytes(stream.read())

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._call("removing an object", self._client.delete_object, Bucket=self._bucket, Key=self._key(name))

    def names(self) -> Iterator[str]:
        """Every name below the prefix."""
        more: dict[str, Any] = {}
        while True:
            page = self._call("listing", self._client.list_objects_v2, Bucket=self._bucket, Prefix=self._prefix, **more)
            for row in page.get("Contents", []):
                yield str(row["Key"])[len(self._prefix) :]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

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
