"""What Azure Blob Storage or the way to it says, as our errors: the one table for it.

Pure but for the clock it is given. See "Status and error codes" and "Blob service error codes" of the REST reference.
"""

from __future__ import annotations

from collections.abc import Mapping

from azure.core.exceptions import AzureError, HttpResponseError

from vnafs.domain.clock import Clock
from vnafs.domain.errors import TargetError, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.http_dates import is_skewed, retry_after_seconds

_BROKEN_ON_THE_WAY = frozenset({"Md5Mismatch", "Crc64Mismatch", "InvalidMd5"})
_TRY_AGAIN = frozenset(
    {
        "ServerBusy",
        "InternalError",
        "OperationTimedOut",
        "InvalidBlockList",
        "InvalidBlobOrBlock",
        "AccountBeingCreated",
        "ContainerBeingDeleted",
    }
)
"""InvalidBlockList: a rival's put of the same name threw our blocks away; the next attempt finds its object."""
_HINTS = {
    "ContainerNotFound": "the container does not exist",
    "AuthenticationFailed": "the account key or the SAS token is wrong or has expired",
    "AuthorizationFailure": "access is denied: a firewall rule or a missing right",
    "AuthorizationPermissionMismatch": "the SAS token lacks a right",
    "AccountIsDisabled": "the account is disabled",
    "BlobArchived": "the object is in the archive tier and must be rehydrated first",
    "BlobImmutableDueToPolicy": "an immutability policy or a legal hold forbids it",
}
_PERMANENT_5XX = frozenset({501, 505, 507})


def code_of(error: HttpResponseError) -> str:
    """Azure's name for it: in a header, so that HEAD has it too. Empty when something between us answered."""
    return _headers(error).get("x-ms-error-code", "")


def _headers(error: HttpResponseError) -> Mapping[str, str]:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    return headers


def translate(error: AzureError, target: TargetName, doing: str, clock: Clock) -> TargetError:
    """The error a caller of the port sees, except for an object that is missing or taken, which depend on the call."""
    if not isinstance(error, HttpResponseError) or error.response is None or error.status_code is None:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            why = f"{doing}: the server's certificate is not trusted; set ca= in the URL"
            return TargetRefused(target=target, why=why)
        if "AzureSigningError" in type(error).__name__:
            return TargetRefused(target=target, why=f"{doing}: the account key is malformed")
        return TargetUnavailable(target=target, why=f"{doing}: {type(error).__name__}")
    code, status, headers = code_of(error), error.status_code, _headers(error)
    why = f"{doing}: {_HINTS.get(code, code or 'no reason given')} (HTTP {status})"
    retry_after = retry_after_seconds(headers.get("retry-after", ""), clock)
    if status == 403 and is_skewed(headers.get("date", ""), clock):
        why = f"{doing}: this machine's clock and the server's differ by more than 15 minutes; set the clock"
        return TargetUnavailable(target=target, why=why, retry_after_seconds=retry_after)
    if code in _BROKEN_ON_THE_WAY:
        return TargetUnavailable(target=target, why=f"{doing}: bytes changed on the way ({code})")
    if code in _TRY_AGAIN or status in {408, 425, 429} or (status >= 500 and status not in _PERMANENT_5XX):
        return TargetUnavailable(target=target, why=why, retry_after_seconds=retry_after)
    if status < 400:  # a good answer whose body broke off or made no sense
        return TargetUnavailable(target=target, why=f"{doing}: {type(error).__name__}")
    return TargetRefused(target=target, why=why)
