"""An Azure container as a target.

Knows nothing of packs. Any thread may call: one container client over one bounded pool of connections, and one
small pool of threads for blocks. Never retries an upload by itself (`retrying` does). An object is visible and
durable when its put or the commit of its blocks has succeeded; blocks that were never committed are not listed,
and the service drops them after a week.

Azure keeps no SHA-256: Content-MD5 guards each transfer, and callers read back to verify.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, BlobClient, ContainerClient, RehydratePriority, StandardBlobTier

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import (
    ObjectArchived,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    TargetError,
    TargetRefused,
    TargetUnavailable,
)
from vnafs.domain.ids import WHOLE, ObjectName, Span, TargetName
from vnafs.domain.locks import FOR_EVER, Powers, locked
from vnafs.domain.rehydration import READY, Rehydration, Thaw
from vnafs.targets.address import AzureAddress
from vnafs.targets.azure_errors import code_of, translate
from vnafs.targets.body import BLOCK_BYTES, BytesBody, Stretch
from vnafs.targets.credentials import AzureCredentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.names import checked, is_object_name
from vnafs.targets.parts import all_or_first_failure, cut
from vnafs.targets.port import Body

_log = logging.getLogger(__name__)

BLOCKS_MAX = 50_000
"""Of one object ("Scalability targets for Blob storage")."""
WHOLE_PUT_BYTES_MAX = 4 * MEBIBYTE
"""The client holds a body that goes up in one request in memory; larger ones are streamed as blocks."""
FETCH_BYTES = 8 * MEBIBYTE
"""The client holds this much of each download in memory."""
REHYDRATION_SECONDS = 15 * 3600
"""What the Standard priority takes at most ("Blob rehydration from the archive tier")."""
KEPT = "probe/kept"
"""Where objects that cannot be removed are used again, probe after probe."""
LOCKS_BY_POLICY = "on Azure set an immutability policy on the container instead"
_PROBE = bytes(range(256)) * 4
_IMMUTABLE = frozenset({"BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold", "ImmutableBlob"})
_ARCHIVED = frozenset({"BlobArchived", "BlobBeingRehydrated"})


class AzureTarget:
    """See Target. *known* is accepted like by every adapter, and not needed: all Azure accounts can do the same."""

    def __init__(
        self,
        name: TargetName,
        address: AzureAddress,
        credentials: AzureCredentials,
        clock: Clock,
        limits: Limits,
        known: Capabilities | None = None,
    ) -> None:
        del known
        self._name = name
        self._clock = clock
        self._limits = limits
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._container = _client(address, credentials, limits)
        self._parts = concurrent.futures.ThreadPoolExecutor(limits.parts_in_flight_max, f"{name}-blocks")

    @property
    def name(self) -> TargetName:
        """See Target."""
        return self._name

    def probe(self) -> Capabilities:
        """See Target."""
        body = BytesBody(_PROBE)
        directory = KEPT if not self._removable(body) else f"probe/{os.urandom(8).hex()}"
        names = [ObjectName(f"{directory}/{leaf}") for leaf in ("plain", "blocks", "md5")]
        plain, blocks, md5 = names
        try:
            with self._translated("probing"):
                self._unless_taken(lambda: self._put_whole(self._blob(plain), body))
                if b"".join(self.get(plain, Span(1))) != body.data[1:]:
                    raise TargetRefused(target=self._name, why="probing: it gives back other bytes than it was given")
                self._unless_taken(lambda: self._put_blocks(self._blob(blocks), body))
                return Capabilities(
                    exclusive_create=self._unless_taken(lambda: self._put_whole(self._blob(plain), body)) is None,
                    exclusive_create_multipart=self._unless_taken(lambda: self._put_blocks(self._blob(blocks), body))
                    is None,
                    checksum_sha256=False,
                    checksum_md5=self._checks_md5(md5, body.data),
                    multipart=True,
                    versioning=self._is_versioned(plain),
                    object_lock=self._is_immutable(),
                    list_consistent=set(self.list(directory)) >= {plain, blocks},
                )
        finally:
            for name in names if directory != KEPT else ():
                try:
                    self.delete(name)
                except TargetError as error:
                    _log.info("target_probe_left_behind", extra={"target": self._name, "why": error.code})

    def _removable(self, body: BytesBody) -> bool:
        """Whether an object that is put can be deleted again. Raises TargetUnavailable, TargetRefused."""
        name = ObjectName(f"{KEPT}/plain")
        with self._translated("probing"):
            self._unless_taken(lambda: self._put_whole(self._blob(name), body))
        try:
            self.delete(name)
        except (TargetRefused, ObjectLocked):
            return False
        return True

    def powers(self) -> Powers:
        """See Target. Locks of Azure are policies of the container, which a data credential cannot change."""
        return Powers(can_delete=self._removable(BytesBody(_PROBE)))

    def put(self, name: ObjectName, body: Body) -> Evidence:
        """See Target."""
        blob = self._blob(name)
        if body.size_bytes <= WHOLE_PUT_BYTES_MAX:
            etag = self._unless_taken(lambda: self._put_whole(blob, body))
            if etag is not None:
                return Evidence(body.size_bytes, None, etag)
        # Blocks are sent before the service looks at the name, so ask first. After a whole put was refused, too: the
        # name may be held by nothing but the blocks of a put that died, and committing blocks replaces those.
        existing = self._find(name)
        if existing is None:
            etag = self._unless_taken(lambda: self._put_blocks(blob, body))
            if etag is not None:
                return Evidence(body.size_bytes, None, etag)
            existing = self._find(name)
        if existing is None:
            raise TargetUnavailable(target=self._name, why="putting an object: its name was taken, then free")
        if existing.size_bytes != body.size_bytes:
            raise ObjectExists(target=self._name, name=name)
        return existing

    def get(self, name: ObjectName, span: Span = WHOLE) -> Iterator[bytes]:
        """See Target."""
        blob = self._blob(name)
        if span.length == 0:
            self.evidence(name)
            return
        with self._translated("getting an object", name):
            try:
                offset = None if span == WHOLE else span.offset
                stream = blob.download_blob(offset, span.length, max_concurrency=1, decompress=False)
            except HttpResponseError as error:
                if error.status_code == 416:
                    return  # the span begins at or past the end
                raise
            expected = stream.size
            at = 0
            for chunk in stream.chunks():
                for start in range(0, len(chunk), BLOCK_BYTES):
                    block = chunk[start : start + BLOCK_BYTES]
                    at += len(block)
                    yield block
            if at != expected:
                raise TargetUnavailable(target=self._name, why=f"{name} ended {expected - at} bytes early")

    def read_back(self, name: ObjectName) -> Iterator[bytes]:
        """See Target."""
        return self.get(name)

    def rehydrate(self, name: ObjectName) -> Rehydration:
        """See Target. Set Blob Tier to Hot, at Standard priority: it stays there."""
        blob = self._blob(name)
        try:
            with self._translated("asking an object back", name):
                found = blob.get_blob_properties()
                if str(found.blob_tier) != "Archive":
                    return READY
                if found.archive_status:
                    return Rehydration(Thaw.PENDING, REHYDRATION_SECONDS)
                blob.set_standard_blob_tier(StandardBlobTier.HOT, rehydrate_priority=RehydratePriority.STANDARD)
        except ObjectArchived:  # somebody else asked in between
            return Rehydration(Thaw.PENDING, REHYDRATION_SECONDS)
        return Rehydration(Thaw.ASKED, REHYDRATION_SECONDS)

    def evidence(self, name: ObjectName) -> Evidence:
        """See Target."""
        found = self._find(name)
        if found is None:
            raise ObjectMissing(target=self._name, name=name)
        return found

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """See Target. Objects that cannot be ours are left out."""
        with self._translated("listing"):
            for key in self._container.list_blob_names(name_starts_with=self._prefix + prefix):
                name = str(key)[len(self._prefix) :]
                if is_object_name(name):
                    yield ObjectName(name)

    def delete(self, name: ObjectName) -> None:
        """See Target."""
        blob = self._blob(name)
        with contextlib.suppress(ObjectMissing), self._translated("deleting an object", name):
            try:
                blob.delete_blob()
            except HttpResponseError as error:
                if code_of(error) not in _IMMUTABLE:
                    raise
                raise locked(self._name, name, FOR_EVER) from error

    def retain(self, name: ObjectName, until: Instant) -> None:
        """See Target. A policy of the container locks what it holds; nothing is locked one by one."""
        del until
        self.evidence(name)
        raise TargetRefused(target=self._name, why=f"locking an object: {LOCKS_BY_POLICY}")

    def retained(self, name: ObjectName) -> Instant | None:
        """See Target."""
        self.evidence(name)
        return None

    def exists(self, name: ObjectName) -> bool:
        """See Target."""
        key = self._prefix + checked(name)
        include = ["snapshots", "deleted", "versions"]
        with self._translated("looking for an object"):
            return any(blob.name == key for blob in self._container.list_blobs(name_starts_with=key, include=include))

    def close(self) -> None:
        """See Target."""
        self._parts.shutdown(wait=True, cancel_futures=True)
        self._container.close()

    # -- requests -------------------------------------------------------------------------------------------

    def _blob(self, name: ObjectName) -> BlobClient:
        return self._container.get_blob_client(self._prefix + checked(name))

    def _put_whole(self, blob: BlobClient, body: Body, over: Mapping[str, str] | None = None) -> str:
        """With *over*, the metadata it gets, also in place of what is there."""
        with Stretch(body) as reader:
            data = reader.readall()
        about = None if over is None else dict(over)
        answer = blob.upload_blob(
            data, length=len(data), overwrite=over is not None, metadata=about, headers=_guard(_md5(data))
        )
        return str(answer.get("etag", ""))

    def _put_blocks(self, blob: BlobClient, body: Body, over: Mapping[str, str] | None = None) -> str:
        """See _put_whole."""
        pieces = cut(body.size_bytes, self._limits.part_bytes, BLOCKS_MAX)
        # Ids of one object have equal lengths; they are random, so that rivals never commit each other's blocks.
        upload = os.urandom(9).hex()
        ids = [f"{upload}{number:06d}" for number in range(len(pieces))]
        all_or_first_failure(
            [
                self._parts.submit(self._put_block, blob, block, body, offset, length)
                for block, (offset, length) in zip(ids, pieces, strict=True)
            ]
        )
        blocks = [BlobBlock(block) for block in ids]
        if over is None:
            answer = blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)
        else:
            answer = blob.commit_block_list(blocks, metadata=dict(over))
        return str(answer.get("etag", ""))

    def _put_block(self, blob: BlobClient, block: str, body: Body, offset: int, length: int) -> None:
        with Stretch(body, offset, length) as reader:
            state = hashlib.md5(usedforsecurity=False)
            while data := reader.read(BLOCK_BYTES):
                state.update(data)
            reader.seek(0)
            try:
                blob.stage_block(block, reader, length, headers=_guard(state.digest()))
            except AzureError:
                reader.raise_failure()  # a failed read of the local body is no broken connection
                raise

    def _find(self, name: ObjectName) -> Evidence | None:
        """None when the container is there and the object is not."""
        try:
            with self._translated("asking for an object", name):
                found = self._blob(name).get_blob_properties()
        except ObjectMissing:
            return None
        return Evidence(int(found.size), None, str(found.etag or ""))

    def _unless_taken(self, put: Callable[[], str]) -> str | None:
        """The new object's etag, or None when its name is taken."""
        try:
            return put()
        except AzureError as error:
            if _is_taken(error):
                return None
            raise translate(error, self._name, "putting an object", self._clock) from error

    @contextlib.contextmanager
    def _translated(self, doing: str, name: ObjectName | None = None) -> Iterator[None]:
        try:
            yield
        except AzureError as error:
            if name is not None and isinstance(error, HttpResponseError) and code_of(error) == "BlobNotFound":
                raise ObjectMissing(target=self._name, name=name) from error
            if name is not None and isinstance(error, HttpResponseError) and code_of(error) in _ARCHIVED:
                raise ObjectArchived(target=self._name, name=name) from error
            raise translate(error, self._name, doing, self._clock) from error

    # -- probing --------------------------------------------------------------------------------------------

    def _checks_md5(self, name: ObjectName, data: bytes) -> bool:
        """A wrong one is refused and a right one is taken (by the puts before)."""
        try:
            self._blob(name).upload_blob(data, overwrite=True, headers=_guard(_md5(b"not " + data)))
        except HttpResponseError as error:
            if error.status_code == 400:
                return True
            raise
        return False

    def _is_versioned(self, name: ObjectName) -> bool:
        return self._blob(name).get_blob_properties().version_id is not None

    def _is_immutable(self) -> bool:
        """False too when a SAS token may not ask about the container."""
        try:
            found = self._container.get_container_properties()
        except HttpResponseError as error:
            if error.status_code != 403:
                raise
            return False
        return bool(found.has_immutability_policy or found.immutable_storage_with_versioning_enabled)


def _client(address: AzureAddress, credentials: AzureCredentials, limits: Limits) -> ContainerClient:
    """A client that takes everything from its parameters, nothing from the environment."""
    if credentials.account_key:
        secret: Any = AzureNamedKeyCredential(address.account, credentials.account_key)
    else:
        secret = AzureSasCredential(credentials.sas_token)
    reach = address.reach
    proxies = {"http": reach.proxy, "https": reach.proxy} if reach.proxy else {}
    return ContainerClient(
        address.account_url,
        address.container,
        credential=secret,
        transport=RequestsTransport(
            use_env_settings=False,
            connection_timeout=limits.connect_seconds_max,
            read_timeout=limits.read_seconds_max,
            connection_verify=reach.ca_file or True,
        ),
        proxies=proxies,
        retry_total=0,
        max_single_put_size=WHOLE_PUT_BYTES_MAX,
        max_single_get_size=FETCH_BYTES,
        max_chunk_get_size=FETCH_BYTES,
        user_agent="vnafs",
    )


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _guard(md5: bytes) -> dict[str, str]:
    return {"Content-MD5": base64.b64encode(md5).decode()}


def _is_taken(error: AzureError) -> bool:
    """Put Blob and Put Block List answer If-None-Match: * with either of these."""
    return isinstance(error, HttpResponseError) and (
        code_of(error) == "BlobAlreadyExists" or (error.status_code == 412 and code_of(error) == "ConditionNotMet")
    )
