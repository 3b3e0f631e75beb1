"""Put a target together: the adapter for its address, and around it the limits and the patience.

Opens no connection and touches no disk. The adapters of object stores are imported only when one is used: their
libraries are large, and an archive with directories alone should not pay for them.
"""

from __future__ import annotations

from vnafs.domain.clock import Clock
from vnafs.domain.copies import Capabilities
from vnafs.domain.errors import ConfigurationInvalid
from vnafs.domain.ids import TargetName
from vnafs.targets.address import Address, AzureAddress, DirectoryAddress, S3Address
from vnafs.targets.credentials import AzureCredentials, Credentials, S3Credentials
from vnafs.targets.directory import DirectoryTarget
from vnafs.targets.directory_mirror import DirectoryMirror
from vnafs.targets.limits import Limits
from vnafs.targets.mirror import Mirror
from vnafs.targets.port import Target
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
) -> Target:
    """A target ready for use by any thread.

    *known* is what probe returned before; it lets a directory notice that it is not mounted, and an S3 target skip
    the probe that its first put would make. Raises ConfigurationInvalid when the credentials are of another kind.
    """
    limits = limits or Limits()
    adapter = open_adapter(name, address, credentials, clock, limits, known)
    return RetryingTarget(ThrottledTarget(adapter, clock, limits), clock, limits)


def open_adapter(
    name: TargetName,
    address: Address,
    credentials: Credentials,
    clock: Clock,
    limits: Limits,
    known: Capabilities | None = None,
) -> Target:
    """The bare target: it fails at once and asks for as much as its caller does. See open_target."""
    if isinstance(address, DirectoryAddress):
        return DirectoryTarget(name, address.path, clock, known)
    if isinstance(address, S3Address) and isinstance(credentials, S3Credentials):
        from vnafs.targets.s3 import S3Target  # noqa: PLC0415  # large library, see above
        from vnafs.targets.s3_errors import UNTOLD  # noqa: PLC0415  # the same

        return SensibleTarget(S3Target(name, address, credentials, clock, limits, known), UNTOLD)
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


def open_mirror(
    name: TargetName,
    address: Address,
    credentials: Credentials,
    archive: bytes,
    clock: Clock,
    limits: Limits,
) -> Mirror:
    """A plain mirror of the archive with that id. Raises ConfigurationInvalid where there is no such thing."""
    if isinstance(address, DirectoryAddress):
        return DirectoryMirror(name, address.path, archive, clock)
    if isinstance(address, S3Address) and isinstance(credentials, S3Credentials):
        from vnafs.targets.s3_mirror import S3Mirror  # noqa: PLC0415  # large library, see above

        return S3Mirror(name, address, credentials, archive, clock, limits)
    raise ConfigurationInvalid(
        file="",
        key=f"mirror {name}",
        value=type(credentials).__name__,
        why="a mirror is a directory or an S3 bucket, with credentials for it",
        fix="Write file:// or s3://, and name a credentials file with the keys of that provider",
    )
