"""Certify: how an erasure stands, signed with the archive's key, and stamped where a service is configured.

A certificate of one that is not complete says so, and what is left until when. Any thread.
"""

from __future__ import annotations

import logging
import os

from vnafs.domain.clock import Clock
from vnafs.domain.errors import TargetUnavailable
from vnafs.receipts import jws, timestamps
from vnafs.receipts.erasure import Subject, certificate
from vnafs.receipts.timestamps import TimestampService
from vnafs.upkeep.erase import Eraser
from vnafs.upkeep.issue import NO_SERVICE, Issued
from vnafs.upkeep.signing import Signing

log = logging.getLogger(__name__)


class Certifier:
    """Certifies erasures of one archive. *service* may be None."""

    def __init__(
        self, eraser: Eraser, *, archive: bytes, signing: Signing, service: TimestampService | None, clock: Clock
    ) -> None:
        self.eraser = eraser
        self._archive = archive
        self._signing = signing
        self._service = service
        self._clock = clock

    def certify(self, number: int) -> Issued:
        """The certificate of an erasure as it stands. Raises NotFound, DaemonUnreachable."""
        key, is_new = self._signing.key()
        erasure, row, found = self.eraser.standing(number)
        subject = Subject(
            certificate=os.urandom(16),
            archive=self._archive,
            erasure=erasure.id,
            repository=erasure.repository,
            reason=erasure.reason,
            files=erasure.files,
            requested=erasure.since_ns,
            completed=row.completed,
            as_of=self._clock.now(),
            public_key=jws.jwk(key.public_key()),
        )
        envelope = jws.sign(certificate(subject, found), key)
        why = NO_SERVICE
        if self._service is not None:
            try:
                envelope, why = timestamps.attach(envelope, self._service.stamp(envelope["signature"])), ""
            except TargetUnavailable as problem:
                why = str(problem)
                log.warning("erase.no_timestamp", extra={"why": why})
        log.info("erase.certified", extra={"erasure": erasure.id, "complete": bool(row.completed)})
        return Issued(envelope, is_new, why)
