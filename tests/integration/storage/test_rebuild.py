"""A head that was lost, made anew on the real S3 server."""

from __future__ import annotations

import pytest

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import CheckpointEntry, Fenced
from lorafinetune.storage import collect, errors
from lorafinetune.storage import head as store
from lorafinetune.storage.bucket import Bucket
from lorafinetune.storage.rebuild import rebuild
from tests.integration.storage.folders import put_files

UID = "11111111-2222-3333-4444-555555555555"


def checkpoint(bucket: Bucket, attempt: int, step: int) -> CheckpointEntry:
    """Put a whole checkpoint, as a trainer does, without naming it in the head."""
    body = f"state of {attempt}-{step}".encode()
    folder, files = layout.checkpoint(attempt, step), {"state.safetensors": body}
    sha256 = put_files(bucket, folder, files, kind="checkpoint", run_uid=UID, attempt=attempt, step=step, updates=step)
    return CheckpointEntry(attempt=attempt, step=step, manifest_sha256=sha256, size=len(body))


def test_the_newest_that_verify_come_back(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    kept = [checkpoint(bucket, 1, 20), checkpoint(bucket, 2, 30)]
    checkpoint(bucket, 1, 10)
    checkpoint(bucket, 2, 40)
    bucket.put(f"{layout.checkpoint(2, 40)}state.safetensors", b"torn")
    bucket.put(f"{layout.checkpoint(2, 50)}state.safetensors", b"never got a manifest")
    head = rebuild(bucket, run_uid=UID, attempt=2, keep=2)
    assert head.checkpoints == kept
    assert store.read(bucket).head == head


def test_a_step_counts_once(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    older, newest = checkpoint(bucket, 1, 20), checkpoint(bucket, 2, 30)
    checkpoint(bucket, 1, 30)  # put by an attempt that was fenced before it could commit
    assert rebuild(bucket, run_uid=UID, attempt=2, keep=2).checkpoints == [older, newest]


def test_what_was_written_over_a_head_is_replaced(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    kept = [checkpoint(bucket, 1, 20)]
    bucket.put(layout.HEAD, b"{garbage")
    assert rebuild(bucket, run_uid=UID, attempt=2, keep=2).checkpoints == kept
    assert store.read(bucket).head is not None


def test_the_dead_attempt_stays_fenced_and_the_next_may_claim(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    head = rebuild(bucket, run_uid=UID, attempt=3, keep=2)
    for attempt in (1, 2, 3):
        with pytest.raises(Fenced):
            heads.claim(head, run_uid=UID, attempt=attempt, pod_uid="a-zombie")
    assert heads.claim(head, run_uid=UID, attempt=4, pod_uid="new").attempt == 4


def test_a_head_that_is_there_stays(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    there = store.change(bucket, lambda head: heads.claim(head, run_uid=UID, attempt=7, pod_uid="p"))
    assert rebuild(bucket, run_uid=UID, attempt=9, keep=2) == there


def test_a_tombstone_stays_a_tombstone(bucket: Bucket) -> None:
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    collect.bury(bucket, run_uid=UID, attempt=2, keep_artifact=True)
    assert rebuild(bucket, run_uid=UID, attempt=2, keep=2).tombstone


def test_a_prefix_without_our_mark_is_not_touched(bucket: Bucket) -> None:
    checkpoint(bucket, 1, 10)
    with pytest.raises(errors.NotVerified):
        rebuild(bucket, run_uid=UID, attempt=1, keep=2)
    assert store.read(bucket).head is None
