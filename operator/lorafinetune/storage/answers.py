"""What the store's refusals and silences mean, in the words of ``errors``: boto3's exceptions stop here."""

from __future__ import annotations

from typing import Final, NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from lorafinetune.storage import errors

BROKEN_BODY: Final = (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
"""An answer had begun, and broke off, or its bytes are not those of its checksum."""
DENIED: Final = {
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "Forbidden",
    "403",
    "401",
    "AuthorizationHeaderMalformed",
    "XAdminUserNotFound",  # versitygw's word for an unknown key, with 404
}
_MISSING: Final = {"NoSuchKey", "404", "NotFound"}
_CONFLICT: Final = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_NOT_SENT: Final = (ConnectTimeoutError, EndpointConnectionError, NoCredentialsError, PartialCredentialsError)


class Asked(NamedTuple):
    """What a request was about, for the sentence that says how it ended."""

    uri: str
    bucket: str
    endpoint: str
    elsewhere: bool
    """Whether the endpoint was named, and is not just AWS."""


def meaning(error: BotoCoreError | ClientError, asked: Asked) -> errors.StorageError:
    """Return what the *error* of any request means."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return errors.AccessDenied(
            f"no credentials for {asked.uri}: set storage.credentialsSecret (by hand: storage.credentials, or the "
            "environment)"
        )
    if not isinstance(error, ClientError):
        hint = "" if asked.elsewhere else "; no storage.endpoint is set, which means AWS: is yours elsewhere?"
        return errors.Unreachable(
            f"{asked.endpoint} cannot be reached for bucket {asked.bucket!r} ({type(error).__name__}){hint}"
        )
    code = code_of(error)
    if code == "NoSuchBucket":
        return errors.BucketMissing(
            f"bucket {asked.bucket!r} does not exist at {asked.endpoint}: create it or name another"
        )
    if code in _MISSING:
        return errors.ObjectMissing(f"{asked.uri} does not exist")
    if code in DENIED or status_of(error) in (401, 403):
        return errors.AccessDenied(
            f"{asked.endpoint} refuses {asked.uri} ({code}): check the Secret's keys and the bucket's policy"
        )
    return errors.Unreachable(f"{asked.endpoint} answered {code} for {asked.uri}")


def meaning_of_write(error: BotoCoreError | ClientError, asked: Asked, *, over: bool) -> errors.StorageError:
    """Return what the *error* of a conditional write means, *over* an object or where none was to be."""
    if isinstance(error, _NOT_SENT):
        return meaning(error, asked)
    if not isinstance(error, ClientError):
        return errors.AnswerLost(f"{asked.endpoint} did not answer a write of {asked.uri}: {error}")
    code, status = code_of(error), status_of(error)
    if code in _CONFLICT or status in (409, 412):
        return errors.Conflict(f"{asked.uri} is not what the write expected")
    if status == 404 and over and code not in ("NoSuchBucket", *DENIED):
        return errors.Conflict(f"{asked.uri} is gone")
    if status == 501 or code == "NotImplemented":
        return errors.NotFencing(
            f"{asked.endpoint} does not know conditional writes: name a store that has them, or set "
            "storage.unsafeNoFencing: true to run without the promise that only one attempt can commit"
        )
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return errors.AnswerLost(f"{asked.endpoint} answered {code} to a write of {asked.uri}")
    return meaning(error, asked)


def code_of(error: ClientError) -> str:
    """Return the store's word for what is wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """Return the HTTP status of the answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
