"""A head that was lost, made anew from the manifests. Only the operator does it, and never for a run that is deleted.

What the manifests cannot tell is lost: plan and conditioning are made anew by the next attempt, so that the promise of
equal bytes holds only as far as that attempt decides alike.
"""

from __future__ import annotations

from lorafinetune.contract import layout
from lorafinetune.contract.head import CheckpointEntry, Head
from lorafinetune.storage import errors, inventory
from lorafinetune.storage import head as store
from lorafinetune.storage.bucket import Bucket
from lorafinetune.storage.collect import is_ours


def rebuild(bucket: Bucket, *, run_uid: str, attempt: int, keep: int) -> Head:
    """Put a head that names the *keep* newest checkpoints that verify; one that is there stays as it is.

    It is fenced to *attempt*, the highest that was ever made, and to no pod: only a later one can claim it.
    Raises NotVerified where the prefix does not carry the run's mark.
    """
    if not is_ours(bucket, run_uid):
        raise errors.NotVerified(f"{bucket.uri()} does not carry this run's owner mark: its head is not rebuilt")
    checkpoints: list[CheckpointEntry] = []
    for manifest, sha256 in inventory.verified(bucket, layout.CHECKPOINTS, run_uid):
        entry = CheckpointEntry(
            attempt=manifest.attempt, step=manifest.step, manifest_sha256=sha256, size=manifest.total_bytes
        )
        if checkpoints and checkpoints[-1].step == entry.step:
            continue  # a fenced attempt put the same step and could not commit it: a step counts once
        checkpoints.append(entry)
        if len(checkpoints) == keep:
            break
    artifact = inventory.newest_artifact(bucket, run_uid)
    head = Head(run_uid=run_uid, attempt=attempt, checkpoints=checkpoints[::-1], artifact=artifact)
    return store.change(bucket, lambda found: found if found is not None else head)
