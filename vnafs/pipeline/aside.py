"""Aside: bring what is damaged into quarantine before it is replaced.

Never raises: mending goes on either way. Any thread.
"""

from __future__ import annotations

import logging

from vnafs.domain.errors import VnaError
from vnafs.domain.ids import ObjectName, Sha256
from vnafs.index.packs import Pack
from vnafs.local.quarantine import About, Kind, Quarantine
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

LOCAL = "local"


def keep_object(quarantine: Quarantine, target: Target, name: ObjectName, about: About) -> None:
    """Keep an object of a target as it is on its stable storage. Costs reading it once more, at our own expense."""
    try:
        size_bytes = target.evidence(name).size_bytes
    except VnaError as problem:
        log.warning("quarantine.not_read", extra={"target": target.name, "why": str(problem)})
        return
    quarantine.keep(about, size_bytes, lambda: target.read_back(name))


def about_pack(pack: Pack, origin: str, why: str) -> About:
    """What to say of a copy of a pack."""
    return About(Kind.PACK, pack.id.hex(), origin, why, pack.repository, expected_sha256=pack.sha256)


def about_manifest(name: ObjectName, sha256: Sha256, origin: str, why: str) -> About:
    """What to say of a manifest."""
    return About(Kind.MANIFEST, name, origin, why, expected_sha256=sha256)


def from_target(target: Target) -> str:
    """Where something was that was on a target."""
    return f"target {target.name}"
