"""What is deleted from the bucket, and when: garbage and nothing else, and nothing below a prefix that is not ours.

Order is the safety: the head becomes a tombstone first, so that no attempt can commit; owner mark and tombstone go
last, so that a collection that was interrupted can be taken up again, and in that order, so that whoever finds no head
finds no mark either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import Head
from lorafinetune.storage import head as store
from lorafinetune.storage import inventory
from lorafinetune.storage.bucket import Bucket

LEFT_LOOKED_AT: Final = 5000
"""Keys of an unmarked prefix that are looked at, at most. An artifact with all that can be in it has far fewer."""


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
    """Whether the prefix carries the mark of this run, or its tombstone: without, nothing below is ever deleted."""
    owner = store.read_owner(bucket)
    if owner is not None:
        return owner.run_uid == run_uid
    head = store.read(bucket).head
    return head is not None and head.tombstone and head.run_uid == run_uid


def bury(bucket: Bucket, *, run_uid: str, attempt: int, keep_artifact: bool) -> Collected:
    """Make the head a tombstone, then delete all but head, mark and (if kept) the artifact that the head names."""
    if not is_ours(bucket, run_uid):
        return _foreign(bucket, run_uid, keep_artifact=keep_artifact)
    found = None
    if keep_artifact and store.read(bucket).head is None:
        found = inventory.newest_artifact(bucket, run_uid)  # the head was lost: the product is still to be kept
    buried = store.change(bucket, lambda head: heads.bury(head, run_uid=run_uid, attempt=attempt, found=found))
    return _clear(bucket, buried, keep_artifact=keep_artifact)


def collect(bucket: Bucket, *, run_uid: str, attempt: int, keep_artifact: bool) -> Collected:
    """Finish when nobody can write any more: clear once more, then delete the mark and, last, the tombstone.

    An attempt that comes after that finds no mark; one that has found it, and then no head, looks for it again.
    """
    if not is_ours(bucket, run_uid):
        return _foreign(bucket, run_uid, keep_artifact=keep_artifact)
    cleared = bury(bucket, run_uid=run_uid, attempt=attempt, keep_artifact=keep_artifact)
    for last in (layout.OWNER, layout.HEAD):
        bucket.erase(last)
    return Collected(cleared.deleted + 2, cleared.kept)


def prune(bucket: Bucket, *, run_uid: str) -> Collected:
    """After success, keep head, owner mark and artifact: checkpoints, conditioning and all else of the run go.

    So do the base model's copy, intermediate LoRAs, pictures and figures (``layout``'s other folders): what of them
    belongs to the product has been published in the artifact's folder.
    """
    if not is_ours(bucket, run_uid):
        return _foreign(bucket, run_uid, keep_artifact=True)

    def retire(head: Head | None) -> Head:
        if head is None:
            raise heads.HeadLost(f"{bucket.uri(layout.HEAD)} is gone")
        return heads.retire(head)

    retired = store.change(bucket, retire)
    cleared = _clear(bucket, retired, keep_artifact=True)
    store.change(bucket, lambda head: heads.sweep(retire(head), frozenset(retired.garbage)))
    return cleared


def _clear(bucket: Bucket, head: Head, *, keep_artifact: bool) -> Collected:
    kept = head.artifact.folder if keep_artifact and head.artifact is not None else None

    def stays(key: str) -> bool:
        return key in (layout.HEAD, layout.OWNER) or (kept is not None and key.startswith(kept))

    staying = 0

    def garbage() -> Iterator[str]:
        nonlocal staying
        for one in bucket.walk():  # page by page: a run may have more objects than should be held at once
            if not stays(one.key):
                yield one.key
            elif one.key not in (layout.HEAD, layout.OWNER):
                staying += 1

    deleted = bucket.delete(garbage())
    if bucket.is_versioned():
        bucket.delete_versions(lambda key: not stays(key))  # a deleted object still costs its bytes there
    return Collected(deleted, kept=staying)


def _foreign(bucket: Bucket, run_uid: str, *, keep_artifact: bool) -> Collected:
    """Leave a prefix alone that is not marked as ours.

    It is done if it is empty, or holds nothing but the run's whole artifact, which was to be kept: then an earlier
    collection came to its end, and only its answer was lost.
    """
    left = [one.key for one in bucket.walk(limit=LEFT_LOOKED_AT)]
    if not left:
        return Collected(0)
    artifact = inventory.newest_artifact(bucket, run_uid) if keep_artifact else None
    if artifact is not None and len(left) < LEFT_LOOKED_AT and all(key.startswith(artifact.folder) for key in left):
        return Collected(0, kept=len(left))
    return Collected(0, foreign=True)
