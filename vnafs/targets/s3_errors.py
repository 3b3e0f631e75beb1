"""What an S3 server or the way to it says, as our errors: the one table for it.

Knows nothing of requests; pure but for the clock it is given. See "Error responses" of the Amazon S3 API reference.
"""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from vnafs.domain.clock import Clock
from vnafs.domain.errors import TargetError, TargetRefused, TargetUnavailable
from vnafs.domain.ids import TargetName
from vnafs.targets.http_dates import is_skewed, retry_after_seconds

UNTOLD = (ResponseParserError, HTTPError)
"""What botocore also raises or lets through, and is no BotoCoreError."""

_BROKEN_ON_THE_WAY = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
)
_TRY_AGAIN = frozenset(
    {
        "RequestTimeout",
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "OperationAborted",
        "ConditionalRequestConflict",
        "NoSuchUpload",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
    }
)
_HINTS = {
    "NoSuchBucket": "the bucket does not exist",
    "404": "the bucket does not exist",  # HEAD has no body; for an object it is no error that comes here
    "AccessDenied": "access is denied: the key lacks a right, or a policy forbids it",
    "InvalidAccessKeyId": "the access key id is unknown",
    "SignatureDoesNotMatch": "the secret access key is wrong",
    "ExpiredToken": "the session token has expired",
    "AuthorizationHeaderMalformed": "the region in the target's URL is wrong",
    "PermanentRedirect": "the bucket is in another region; set region= in the target's URL",
    "QuotaExceeded": "the bucket's quota is used up",
    "InvalidObjectState": "the object is in an archive class and must be restored first",
}
_PERMANENT_5XX = frozenset({501, 505, 507})


NOT_TOLD = frozenset({400, 403, 404, 405, 409, 501})
"""How servers say that they lack a read-only call about a bucket, that it is not configured, or not ours to ask."""


def code_of(error: ClientError) -> str:
    """S3's name for it; HEAD has no body, so there it is the status as text."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status, 0 when there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_taken(error: ClientError) -> bool:
    """Whether a conditional put was refused because the name is taken."""
    return status_of(error) == 412


def translate(error: ClientError | BotoCoreError, target: TargetName, doing: str, clock: Clock) -> TargetError:
    """The error a caller of the port sees, except for an object that is missing or taken, which depend on the call."""
    if isinstance(error, ClientError):
        return _translate_answer(error, target, doing, clock)
    why = f"{doing}: {type(error).__name__}"
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return TargetRefused(target=target, why=f"{doing}: the server's certificate is not trusted; set ca= in the URL")
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ParamValidationError):
        return TargetRefused(target=target, why=why)
    return TargetUnavailable(target=target, why=why)


def _translate_answer(error: ClientError, target: TargetName, doing: str, clock: Clock) -> TargetError:
    code, status = code_of(error), status_of(error)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    why = f"{doing}: {_HINTS.get(code, code or 'no reason given')} (HTTP {status})"
    retry_after = retry_after_seconds(str(headers.get("retry-after", "")), clock)
    if code == "RequestTimeTooSkewed" or (status == 403 and is_skewed(str(headers.get("date", "")), clock)):
        return TargetUnavailable(
            target=target,
            why=f"{doing}: this machine's clock and the server's differ by more than 15 minutes; set the clock",
            retry_after_seconds=retry_after,
        )
    if code in _BROKEN_ON_THE_WAY:
        return TargetUnavailable(target=target, why=f"{doing}: bytes changed on the way ({code})")
    if code in _TRY_AGAIN or status in {408, 425, 429} or (status >= 500 and status not in _PERMANENT_5XX):
        return TargetUnavailable(target=target, why=why, retry_after_seconds=retry_after)
    return TargetRefused(target=target, why=why)
