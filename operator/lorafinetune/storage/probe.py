"""Can a run work with its bucket? Asked before a GPU is paid for: reach, rights, conditional writes, a data set."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from lorafinetune.contract.layout import IMAGE_SUFFIXES
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket

LOOKED_AT: Final = 10_000
"""Keys of a data set's prefix that are looked at, at most, to find an image."""
RACERS: Final = 8


class EmptyDataset(errors.StorageError):
    """There is no image below a data set's prefix."""

    reason = "EmptyDataset"


def probe_fencing(bucket: Bucket) -> None:
    """Show that the store's conditional writes are true; raises NotFencing, AccessDenied, BucketMissing, Unreachable.

    A key of its own is written and deleted: once created it must not be created again, a wrong ETag must not replace
    it, and of several racing writers exactly one may win.
    """
    key = _key(bucket)
    try:
        with ThreadPoolExecutor(RACERS) as racers:
            wins = sum(racers.map(lambda number: _won(bucket, key, number), range(RACERS)))
        if wins != 1:
            raise _not_fencing(bucket, f"{wins} of {RACERS} racing writers with If-None-Match won")
        etag = bucket.get(key).etag
        if _replaced(bucket, key, '"00000000000000000000000000000000"'):
            raise _not_fencing(bucket, "a write with a wrong If-Match was accepted")
        if not _replaced(bucket, key, etag):
            raise _not_fencing(bucket, "a write with the right If-Match was refused")
    finally:
        bucket.delete([key])


def probe_writing(bucket: Bucket) -> None:
    """Show that objects can be written, read and deleted; raises AccessDenied, BucketMissing, Unreachable."""
    key = _key(bucket)
    bucket.put(key, b"probe")
    bucket.get(key)
    bucket.delete([key])


def _key(bucket: Bucket) -> str:
    """Return the key of a probe, after showing that it can be deleted again: else each question would leave one."""
    key = f".lorafinetune-probe-{uuid.uuid4().hex}"
    bucket.delete([key])
    return key


def count_images(bucket: Bucket, field: str = "dataset.source") -> int:
    """Return the number of image files (by name) among the first keys of the place that *field* names.

    Raises EmptyDataset if there is none.
    """
    looked, images = 0, 0
    for looked, listed in enumerate(bucket.walk(limit=LOOKED_AT), start=1):  # noqa: B007 - told below
        images += listed.key.lower().endswith(IMAGE_SUFFIXES)
    if not images:
        what = f"{looked} object{'' if looked == 1 else 's'}, but no image" if looked else "nothing"
        raise EmptyDataset(
            f"{field} {bucket.uri()} holds {what}: put {', '.join(IMAGE_SUFFIXES[:4])} files there, or mend the URI"
        )
    return images


def _won(bucket: Bucket, key: str, number: int) -> bool:
    try:
        bucket.create(key, str(number).encode())
    except errors.Conflict:
        return False
    return True


def _replaced(bucket: Bucket, key: str, etag: str) -> bool:
    try:
        bucket.replace(key, b"replaced", etag)
    except errors.Conflict:
        return False
    return True


def _not_fencing(bucket: Bucket, what: str) -> errors.NotFencing:
    return errors.NotFencing(
        f"the store of {bucket.uri()} has no true conditional writes ({what}), so a partitioned attempt can overwrite "
        "a newer one's work: use one that has them, or set storage.unsafeNoFencing: true to run without that promise"
    )
