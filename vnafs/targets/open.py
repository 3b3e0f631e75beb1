"""Put a target together: the adapter for its address, and around it the limits and the patience.

Opens no connection and touches no disk. The adapters of object stores are imported only when one is used: their
libraries are large, and an archive with directories alone should not pay for them.
"""

from __future__ import annotations

import functools

from vnafs.domain.clock import Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import ConfigurationInvalid
from vnafs.domain.ids import TargetName
from vnafs.domain.locks import Lock, LockMode
from vnafs.targets.address import Address, AzureAddress, DirectoryAddress, S3Address
from vnafs.targets.credentials import AzureCredentials, Credentials, NoCredentials, S3Credentials
from vnafs.targets.directory import DirectoryTarget
from vnafs.targets.directory_mirror import DirectoryMirror
from vnafs.targets.limits import Limits
from vnafs.targets.mirror import Mirror
from vnafs.targets.object_mirror import ObjectMirror
from vnafs.targets.port import Target
from vnafs.targets.removal import RemovalTarget
from vnafs.targets.retrying import RetryingTarget
from vnafs.targets.sensible import SensibleTarget
from vnafs.targets.throttled import ThrottledTarget


def open_target(
    name: TargetName,
    address: Address,
    credentials: Credentials,
    clock: Clock,
    limits: Limits | None = None,
    known: Capabilities | None = None,
    *,
    removal: Credentials | None = None,
    lock: Lock | None = None,
) -> Target:
    """A target ready for use by any thread.

    *removal*: other credentials, used for nothing but to delete. *lock* is given to each object that is put; see
    `check_lock`. *known* is what probe returned before; it lets a directory notice that it is not mounted, and an S3
    target skip the probe that its first put would make. Raises ConfigurationInvalid when the credentials are of
    another kind.
    """
    limits = limits or Limits()
    adapter = open_adapter(name, address, credentials, clock, limits, known, lock=lock)
    if removal is not None and not isinstance(removal, NoCredentials):
        opened = functools.partial(open_adapter, name, address, removal, clock, limits)
        adapter = RemovalTarget(adapter, opened, known)
    return RetryingTarget(ThrottledTarget(adapter, clock, limits), clock, limits)


def open_adapter(
    name: TargetName,
    address: Address,
    credentials: Credentials,
    clock: Clock,
    limits: Limits,
    known: Capabilities | None = None,
    *,
    lock: Lock | None = None,
) -> Target:
    """The bare target: it fails at once and asks for as much as its caller does. See open_target."""
    if isinstance(address, DirectoryAddress):
        return DirectoryTarget(name, address.path, clock, known)
    if isinstance(address, S3Address) and isinstance(credentials, S3Credentials):
        from vnafs.targets.s3 import S3Target  # noqa: PLC0415  # large library, see above
        from vnafs.targets.s3_errors import UNTOLD  # noqa: PLC0415  # the same

        return SensibleTarget(S3Target(name, address, credentials, clock, limits, known, lock), UNTOLD)
    if isinstance(address, AzureAddress) and isinstance(credentials, AzureCredentials):
        from vnafs.targets.azure import AzureTarget  # noqa: PLC0415  # large library, see above

        return SensibleTarget(AzureTarget(name, address, credentials, clock, limits, known), ())
    raise ConfigurationInvalid(
        file="",
        key=f"target {name}",
        value=type(credentials).__name__,
        why="these credentials do not fit the target's URL",
        fix="Name a credentials file with the keys of that provider",
    )


def check_lock(address: Address, seconds: int, mode: str, *, file: str, key: str) -> Lock | None:
    """The lock that a configuration asks for; None for none.

    Raises ConfigurationInvalid for a mode that is none, and for a kind of target that has no locks. Whether a bucket
    has them shows when it is probed.
    """
    if mode not in set(LockMode):
        raise ConfigurationInvalid(
            file=file,
            key=f"{key}.lock_mode",
            value=repr(mode),
            why="is no mode of a lock",
            fix='Write "governance" or "compliance"',
        )
    if not seconds:
        return None
    if not isinstance(address, S3Address):
        kind = "a directory has no locks" if isinstance(address, DirectoryAddress) else "locks of Azure are policies"
        fix = "Set it to 0" if isinstance(address, DirectoryAddress) else "Set it to 0, and a policy on the container"
        raise ConfigurationInvalid(file=file, key=f"{key}.lock_seconds", value=str(seconds), why=kind, fix=fix)
    return Lock(seconds, LockMode(mode))


def open_mirror(
    name: TargetName,
    address: Address,
    credentials: Credentials,
    archive: bytes,
    clock: Clock,
    limits: Limits,
) -> Mirror:
    """A plain mirror of the archive with that id. Raises ConfigurationInvalid for credentials of another kind."""
    if isinstance(address, DirectoryAddress):
        return DirectoryMirror(name, address.path, archive, clock)
    if isinstance(address, S3Address) and isinstance(credentials, S3Credentials):
        from vnafs.targets.s3_errors import UNTOLD  # noqa: PLC0415  # large library, see above
        from vnafs.targets.s3_mirror import PlainBucket  # noqa: PLC0415  # the same

        return ObjectMirror(PlainBucket(name, address, credentials, clock, limits), archive, UNTOLD)
    if isinstance(address, AzureAddress) and isinstance(credentials, AzureCredentials):
        from vnafs.targets.azure_mirror import PlainContainer  # noqa: PLC0415  # large library, see above

        return ObjectMirror(PlainContainer(name, address, credentials, clock, limits), archive, ())
    raise ConfigurationInvalid(
        file="",
        key=f"mirror {name}",
        value=type(credentials).__name__,
        why="these credentials do not fit the mirror's URL",
        fix="Name a credentials file with the keys of that provider",
    )
