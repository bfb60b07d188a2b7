"""What can go wrong between us and the API server, by what one can do about it.

ClusterError
├── NotFound             the object, or the kind, is not there: often a fact, not a fault
├── AlreadyExists        the name is taken: ours only if the owner is
├── Conflict             the object is not what the write was decided upon: read again
├── Gone                 the resource version is too old to continue from: list again
├── Refused              validation, quota, policy or RBAC says no: the message is the server's own sentence
└── Unavailable          no answer, a throttle, 5xx, or credentials not (yet) accepted: try again later
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ClusterError(Exception):
    """A request to the API server did not do what was asked; the message is for people.

    ``status`` is the HTTP status (0: there was no answer), ``reason`` the server's CamelCase word for it ("" if none).
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


class NotFound(ClusterError):  # noqa: N818 - facts, in the words of the API server
    """The object, its namespace, or its kind is not there."""


class AlreadyExists(ClusterError):  # noqa: N818
    """An object of that name is there."""


class Conflict(ClusterError):  # noqa: N818
    """The object has changed since it was read, or a tested value is another."""


class Gone(ClusterError):  # noqa: N818
    """The server no longer knows the resource version that a watch or a list would continue from."""


class Refused(ClusterError):  # noqa: N818
    """The server understood and says no; the same request will be refused again until somebody changes something."""


class Unavailable(ClusterError):  # noqa: N818
    """No useful answer within the limit; the request may or may not have taken effect."""


def from_answer(status: int, content: bytes | dict[str, Any], headers: Mapping[str, str]) -> ClusterError:
    """Return the error for an answer; *content* is a metav1.Status, or whatever a proxy may have put in its place."""
    body: Any = content
    if isinstance(content, bytes):
        try:
            body = json.loads(content)
        except ValueError:
            body = {"message": content[:200].decode(errors="replace").strip()}
    if not isinstance(body, dict):
        body = {}
    reason = str(body.get("reason") or "")
    message = str(body.get("message") or f"the API server answered {status}")
    details = body.get("details") or {}
    kind: type[ClusterError]
    match status:
        case 404:
            kind = NotFound
        case 409:
            kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        case 410:
            kind = Gone
        case 422 if not details.get("causes"):
            # A JSON patch that cannot be applied, told from an object that fails validation by its lack of fields.
            kind, message = Conflict, "the patch does not fit: a tested value is another, or a path is not there"
        case 401 | 408 | 429:
            kind = Unavailable
        case _ if status >= 500 or status < 400:
            kind = Unavailable
        case _:
            kind = Refused
    after = headers.get("Retry-After", "")
    seconds = float(after) if after.isdigit() else details.get("retryAfterSeconds")
    return kind(message, status=status, reason=reason, retry_after=seconds)
