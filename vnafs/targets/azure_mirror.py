"""An Azure container as the store of a plain mirror.

As `AzureTarget` in all but names and the right to replace. Never tries again by itself; any thread may call. Azure
keeps no SHA-256, so what was put is read back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient

from vnafs.domain.clock import Clock
from vnafs.domain.errors import Damaged, TargetRefused
from vnafs.domain.ids import TargetName
from vnafs.targets.address import AzureAddress
from vnafs.targets.azure import WHOLE_PUT_BYTES_MAX, AzureTarget
from vnafs.targets.azure_errors import code_of
from vnafs.targets.body import BytesBody
from vnafs.targets.credentials import AzureCredentials
from vnafs.targets.limits import Limits
from vnafs.targets.mirror import Original
from vnafs.targets.port import Body

_log = logging.getLogger(__name__)

PROBE = ".vnafs-probe"
"""Begins as no user's name does. Always the same bytes: somebody else may probe the same place."""


class PlainContainer(AzureTarget):
    """See PlainStore."""

    probes = PROBE

    def __init__(
        self, name: TargetName, address: AzureAddress, credentials: AzureCredentials, clock: Clock, limits: Limits
    ) -> None:
        super().__init__(name, address, credentials, clock, limits)
        self._may_copy = bool(credentials.account_key)

    def try_out(self) -> None:
        """See PlainStore. Writes an object, and over it."""
        for _ in range(2):
            self.replace(PROBE, BytesBody(b"probe"), {})
        try:
            self.remove(PROBE)
        except TargetRefused:  # a mirror that keeps what is removed needs no such right
            _log.info("target_probe_left_behind", extra={"target": self._name})

    def replace(self, name: str, body: Body, about: dict[str, str]) -> None:
        """See PlainStore."""
        blob = self._named(name)
        put = self._put_whole if body.size_bytes <= WHOLE_PUT_BYTES_MAX else self._put_blocks
        with self._translated("putting an object"):
            put(blob, body, about)
        with self._translated("reading back"):
            if _digest_of(blob) != body.sha256:
                raise Damaged(what=f"What was put on mirror {self._name}")

    def copy(self, source: Original, name: str, about: dict[str, str]) -> bool:
        """See Mirror. Only with the account's key: otherwise a token would have to be sent as part of a name."""
        if not self._may_copy:
            return False
        blob = self._named(name)
        try:
            with self._translated("copying an object"):
                answer = blob.start_copy_from_url(self._named(source.name).url, metadata=about)
                if answer["copy_status"] != "success":  # within an account it is done at once, or much later
                    blob.abort_copy(str(answer["copy_id"]))
                    return False
                return _digest_of(blob) == source.sha256
        except TargetRefused:
            return False

    def read(self, name: str) -> bytes | None:
        """See PlainStore."""
        with self._translated("reading"):
            try:
                return b"".join(_bytes_of(self._named(name)))
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise
                return None

    def remove(self, name: str) -> None:
        """See PlainStore. Snapshots that somebody took of an object go with it; else it could not."""
        with self._translated("removing an object"):
            try:
                self._named(name).delete_blob(delete_snapshots="include")
            except HttpResponseError as error:
                if code_of(error) != "BlobNotFound":
                    raise

    def names(self) -> Iterator[str]:
        """See PlainStore."""
        with self._translated("listing"):
            for key in self._container.list_blob_names(name_starts_with=self._prefix or None):
                yield str(key)[len(self._prefix) :]

    def _named(self, name: str) -> BlobClient:
        return self._container.get_blob_client(self._prefix + name)


def _digest_of(blob: BlobClient) -> bytes:
    """SHA-256. Raises AzureError."""
    found = hashlib.sha256()
    for block in _bytes_of(blob):
        found.update(block)
    return found.digest()


def _bytes_of(blob: BlobClient) -> Iterator[bytes]:
    """In blocks of what the client fetches at once. Raises AzureError."""
    return blob.download_blob(max_concurrency=1, decompress=False).chunks()
