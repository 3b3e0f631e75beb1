"""Whether a target really has an object: the strict sense of the word, and nothing weaker.

Knows no index and records nothing. Any thread. Reads every byte back unless the target vouches for SHA-256.
"""

from __future__ import annotations

import hashlib

from vnafs.domain.copies import Capabilities, VerifiedBy
from vnafs.domain.errors import Damaged
from vnafs.domain.ids import ObjectName, Sha256
from vnafs.targets.port import Target


def verify(target: Target, name: ObjectName, size_bytes: int, sha256: Sha256, capabilities: Capabilities) -> VerifiedBy:
    """How the copy at *name* was verified: it has *size_bytes* whose SHA-256 is *sha256*.

    The target's own checksum counts only when it was seen refusing a wrong one, because some servers give back
    whatever they were told. Raises Damaged (the object is there and is not ours), ObjectMissing, TargetUnavailable,
    TargetRefused.
    """
    evidence = target.evidence(name)
    what = f"Object {name} on target {target.name}"
    if evidence.size_bytes != size_bytes:
        raise Damaged(what=what)
    if capabilities.checksum_sha256 and evidence.sha256 is not None:
        if evidence.sha256 != sha256:
            raise Damaged(what=what)
        return VerifiedBy.TARGET_CHECKSUM
    found = hashlib.sha256()
    count = 0
    for block in target.read_back(name):
        found.update(block)
        count += len(block)
    if count != size_bytes or found.digest() != sha256:
        raise Damaged(what=what)
    return VerifiedBy.READ_BACK
