"""What can go wrong between us and a bucket, by what one can do about it.

StorageError
├── ObjectMissing        the key is not there: often a fact, not a fault
├── BucketMissing        no such bucket: name another or make it
├── AccessDenied         the credentials are wrong or may not do this
├── Unreachable          no answer, or 5xx, or a throttle, within the limit: try again later
│   └── AnswerLost       a write may or may not have taken effect: read, and judge by effect
├── Conflict             a conditional write found another state: read again
├── NotFencing           the store ignores conditional writes
└── NotVerified          what was read is not what its manifest promises
    └── OtherVersion     it is whole, and only another version of lorafinetune can read it
"""

from __future__ import annotations


class StorageError(Exception):
    """A request to the bucket did not do what was asked; the message names bucket, key and the way out."""

    reason = "StorageError"


class ObjectMissing(StorageError):  # noqa: N818 - facts, in the words of the design
    """The key is not there."""

    reason = "ObjectMissing"


class BucketMissing(StorageError):  # noqa: N818
    """No such bucket."""

    reason = "BucketMissing"


class AccessDenied(StorageError):  # noqa: N818
    """The credentials are wrong, or may not do this."""

    reason = "AccessDenied"


class Unreachable(StorageError):  # noqa: N818
    """No useful answer within the limit."""

    reason = "StorageUnreachable"


class AnswerLost(Unreachable):
    """A conditional write may or may not have taken effect."""


class Conflict(StorageError):  # noqa: N818
    """A conditional write found another state than it named."""

    reason = "Conflict"


class NotFencing(StorageError):  # noqa: N818
    """The store accepts writes whose condition is false, so an old attempt could overwrite a new one's work."""

    reason = "StorageNotFencing"


class NotVerified(StorageError):  # noqa: N818
    """Bytes, size or hash differ from the manifest."""

    reason = "NotVerified"


class OtherVersion(NotVerified):
    """A head or manifest of another version: sound, so it must not be taken for damaged and passed over."""

    reason = "OtherVersion"
