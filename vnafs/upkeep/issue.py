"""Issue: custody of some files, signed with the archive's key, and stamped where a service is configured.

The key is read, or made, and its public half is on record before anything is looked at: no name counts as recorded
before the manifests that have it tell of the key too. Any thread.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

from vnafs.domain.errors import TargetUnavailable, TooMuch
from vnafs.receipts import jws, timestamps
from vnafs.receipts.document import Occasion, document
from vnafs.receipts.timestamps import TimestampService
from vnafs.upkeep.custody import Custodian
from vnafs.upkeep.signing import Signing

log = logging.getLogger(__name__)

PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
"""Of one receipt: its envelope is a third larger, and must fit an answer on a control socket."""
NO_SERVICE = "no service is configured"


@dataclasses.dataclass(frozen=True, slots=True)
class Issued:
    """A receipt, and what there is to say about it that is not signed."""

    envelope: dict[str, Any]
    key_is_new: bool
    """The key was made just now: nobody can have its public key yet."""
    no_timestamp: str
    """Why there is no timestamp, or nothing."""


class Issuer:
    """Issues receipts of one archive. *service* may be None."""

    def __init__(
        self, custodian: Custodian, *, archive: bytes, signing: Signing, service: TimestampService | None
    ) -> None:
        self.custodian = custodian
        self._archive = archive
        self._signing = signing
        self._service = service

    def issue(self, paths: Sequence[bytes], *, names_seconds_max: float) -> Issued:
        """A receipt for the files at or below *paths*. Raises as Custodian.look, and TooMuch for too long a receipt."""
        key, is_new = self._signing.key()
        found = self.custodian.look(paths, names_seconds_max=names_seconds_max)
        occasion = Occasion(
            receipt=os.urandom(16),
            archive=self._archive,
            begun=found.begun,
            as_of=found.as_of,
            asked=tuple(paths),
            public_key=jws.jwk(key.public_key()),
        )
        payload = document(occasion, found.files)
        size_bytes = len(jws.canonical(payload))
        if size_bytes > PAYLOAD_BYTES_MAX:
            raise TooMuch(
                what="What was asked for",
                limit=f"{PAYLOAD_BYTES_MAX} bytes of text",
                fix="Ask for one folder after the other",
            )
        envelope = jws.sign(payload, key)
        why = NO_SERVICE
        if self._service is not None:
            try:
                envelope, why = timestamps.attach(envelope, self._service.stamp(envelope["signature"])), ""
            except TargetUnavailable as problem:
                why = str(problem)
                log.warning("receipt.no_timestamp", extra={"why": why})
        log.info("receipt.issued", extra={"receipt": occasion.receipt.hex(), "files": len(found.files)})
        return Issued(envelope, is_new, why)
