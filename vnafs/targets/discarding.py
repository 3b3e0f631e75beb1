"""Get rid of an object that is wrong, or say clearly why it stays. Any thread."""

from __future__ import annotations

from vnafs.domain.errors import ObjectLocked, ObjectStays, TargetRefused
from vnafs.domain.ids import ObjectName
from vnafs.targets.port import Target


def discard(target: Target, name: ObjectName) -> None:
    """Delete an object that is not what its name says, so that it can be put again.

    Raises ObjectStays when the credential may not delete or a lock holds: no fault of the target, which goes on taking
    whatever else there is; TargetUnavailable.
    """
    try:
        target.delete(name)
    except ObjectLocked as problem:
        raise ObjectStays(target=target.name, name=name, why=str(problem).rstrip(".")) from problem
    except TargetRefused as problem:
        why = f"{problem.fields['why']}. Name a credential that may delete with removal_credentials_file"
        raise ObjectStays(target=target.name, name=name, why=why) from problem
