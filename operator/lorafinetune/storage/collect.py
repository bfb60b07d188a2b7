"""What is deleted from the bucket, and when: garbage and nothing else, and nothing below a prefix that is not ours.

Order is the safety: the head becomes a tombstone first, so that no attempt can commit; head and owner mark go last, so
that a collection that was interrupted can be taken up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import Head
from lorafinetune.storage import head as store
from lorafinetune.storage import inventory
from lorafinetune.storage.bucket import Bucket


@dataclass(frozen=True, slots=True)
class Collected:
    """What was done."""

    deleted: int
    """Objects."""
    kept: int = 0
    """Objects of the artifact that stay."""
    foreign: bool = False
    """The prefix carries no mark of ours, or another run's: it was not touched."""


def is_ours(bucket: Bucket, run_uid: str) -> bool:
    """Whether the prefix carries the mark of this run: without it, nothing below is ever deleted."""
    owner = store.read_owner(bucket)
    return owner is not None and owner.run_uid == run_uid


def bury(bucket: Bucket, *, run_uid: str, attempt: int, keep_artifact: bool) -> Collected:
    """Make the head a tombstone, then delete all but head, mark and (if kept) the artifact that the head names."""
    if not is_ours(bucket, run_uid):
        return _foreign(bucket)
    buried = _bury(bucket, run_uid=run_uid, attempt=attempt, keep_artifact=keep_artifact)
    return _clear(bucket, buried, keep_artifact=keep_artifact)


def _bury(bucket: Bucket, *, run_uid: str, attempt: int, keep_artifact: bool) -> Head:
    found = None
    if keep_artifact and store.read(bucket).head is None:
        # Lost, or a collection was interrupted after the head went: the product is still to be kept.
        found = inventory.newest_artifact(bucket, run_uid)
    return store.change(bucket, lambda head: heads.bury(head, run_uid=run_uid, attempt=attempt, found=found))


def collect(bucket: Bucket, *, run_uid: str, attempt: int, keep_artifact: bool) -> Collected:
    """Finish when nobody can write any more: clear once more, then delete the head and, last, the mark.

    An attempt that claims between these two finds the mark, and makes a head: so the prefix is cleared once again when
    the mark is gone, for whoever claims after that finds none.
    """
    if not is_ours(bucket, run_uid):
        return _foreign(bucket)
    buried = _bury(bucket, run_uid=run_uid, attempt=attempt, keep_artifact=keep_artifact)
    cleared = _clear(bucket, buried, keep_artifact=keep_artifact)
    for last in (layout.HEAD, layout.OWNER):
        if not _purge(bucket, last.__eq__):  # where it is done, a plain delete would only add a marker
            bucket.delete([last])
    late = _clear(bucket, buried, keep_artifact=keep_artifact, but=())
    return Collected(cleared.deleted + 2 + late.deleted, cleared.kept)


def prune(bucket: Bucket, *, run_uid: str) -> Collected:
    """After success, keep head, owner mark and artifact: checkpoints, conditioning and what attempts left go."""
    if not is_ours(bucket, run_uid):
        return _foreign(bucket)

    def retire(head: Head | None) -> Head:
        if head is None:
            raise heads.HeadLost(f"{bucket.uri(layout.HEAD)} is gone")
        return heads.retire(head)

    retired = store.change(bucket, retire)
    cleared = _clear(bucket, retired, keep_artifact=True)
    store.change(bucket, lambda head: heads.sweep(retire(head), frozenset(retired.garbage)))
    return cleared


def _clear(
    bucket: Bucket, head: Head, *, keep_artifact: bool, but: tuple[str, ...] = (layout.HEAD, layout.OWNER)
) -> Collected:
    """Delete all but the objects *but* and, if kept, the artifact that *head* names."""
    kept = head.artifact.folder if keep_artifact and head.artifact is not None else None

    def stays(key: str) -> bool:
        return key in but or (kept is not None and key.startswith(kept))

    keys = [one.key for one in bucket.walk()]
    garbage = [key for key in keys if not stays(key)]
    deleted = bucket.delete(garbage)
    _purge(bucket, lambda key: not stays(key))
    return Collected(deleted, kept=sum(kept is not None and key.startswith(kept) for key in keys))


def _purge(bucket: Bucket, garbage: Callable[[str], bool]) -> bool:
    """Delete all versions, where the bucket keeps them (else False): a deleted object still costs its bytes there."""
    if not bucket.is_versioned():
        return False
    bucket.delete_versions(garbage)
    return True


def _foreign(bucket: Bucket) -> Collected:
    """Leave a prefix alone that is not marked as ours. An empty one is simply done."""
    return Collected(0, foreign=next(bucket.walk(limit=1), None) is not None)
