"""What the receiver answers: one verdict per request, with status code, metric label and what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Result(Enum):
    """How a request ended: (metric label, HTTP status, reason of the metav1.Status)."""

    ACCEPTED = ("accepted", 200, "")
    STALE = ("stale", 202, "")
    """Known already, or behind what is known: harmless, and nothing to send again."""
    MALFORMED = ("malformed", 400, "BadRequest")
    UNAUTHENTICATED = ("unauthenticated", 401, "Unauthorized")
    FORBIDDEN = ("forbidden", 403, "Forbidden")
    """A true identity, but not that of the run's current attempt."""
    GONE = ("gone", 404, "NotFound")
    """There is no such run: the trainer exits cleanly."""
    UNKNOWN_PATH = ("unknown_path", 404, "NotFound")
    WRONG_METHOD = ("wrong_method", 405, "MethodNotAllowed")
    FENCED = ("fenced", 409, "Conflict")
    """A newer attempt is current: the trainer stops."""
    TOO_LARGE = ("too_large", 413, "RequestEntityTooLarge")
    UNSUPPORTED = ("unsupported_media_type", 415, "UnsupportedMediaType")
    LIMITED = ("rate_limited", 429, "TooManyRequests")
    FAILED = ("failed", 500, "InternalError")
    NOT_READY = ("not_ready", 503, "ServiceUnavailable")

    def __init__(self, label: str, status: int, reason: str) -> None:
        self.label = label
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one request."""

    result: Result
    message: str
    retry_after: float | None = None
    """Seconds to wait before the same is sent again."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers beyond the usual."""
        headers = {"WWW-Authenticate": "Bearer"} if self.result is Result.UNAUTHENTICATED else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return headers

    def to_json(self) -> dict[str, Any]:
        """Return a metav1.Status."""
        good = self.result.status < 300
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Success" if good else "Failure",
            "message": self.message,
            "code": self.result.status,
        }
        if self.result.reason:
            body["reason"] = self.result.reason
        if self.retry_after is not None:
            body["details"] = {"retryAfterSeconds": max(1, math.ceil(self.retry_after))}
        return body
