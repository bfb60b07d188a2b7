"""A head that was lost, made anew from the manifests. Only the operator does it, and never for a run that is deleted.

What the manifests cannot tell is lost: plan and conditioning are made anew by the next attempt, so that the promise of
equal bytes holds only as far as that attempt decides alike.
"""

from __future__ import annotations

from pydantic import ValidationError

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, Head
from lorafinetune.contract.manifest import MAX_MANIFEST_BYTES, Manifest
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
    for manifest, sha256 in _verified(bucket, layout.CHECKPOINTS, run_uid):
        entry = CheckpointEntry(
            attempt=manifest.attempt, step=manifest.step, manifest_sha256=sha256, size=manifest.total_bytes
        )
        checkpoints.append(entry)
        if len(checkpoints) == keep:
            break
    made, sha256 = next(iter(_verified(bucket, layout.ARTIFACTS, run_uid)), (None, ""))
    artifact = None
    if made is not None:
        artifact = ArtifactEntry(attempt=made.attempt, step=made.step, manifest_sha256=sha256, size=made.total_bytes)
    head = Head(run_uid=run_uid, attempt=attempt, checkpoints=checkpoints[::-1], artifact=artifact)
    return store.change(bucket, lambda found: found if found is not None else head)


def _verified(bucket: Bucket, parent: str, run_uid: str) -> list[tuple[Manifest, str]]:
    """Return the folders below *parent* whose bytes are what their manifests name, newest step first."""
    found: list[tuple[Manifest, str, str]] = []
    for one in bucket.walk(parent):
        folder, slash, name = one.key.rpartition("/")
        if not slash or name != layout.MANIFEST:
            continue
        try:
            body, _ = bucket.get(one.key, limit=MAX_MANIFEST_BYTES)
            manifest = Manifest.model_validate_json(body)
        except (errors.ObjectMissing, errors.NotVerified, ValidationError):
            continue
        if manifest.run_uid == run_uid:
            found.append((manifest, canonical.sha256(body), f"{folder}/"))
    found.sort(key=lambda one: (one[0].step, one[0].attempt), reverse=True)
    whole: list[tuple[Manifest, str]] = []
    for manifest, sha256, folder in found:
        try:
            inventory.verify(bucket, folder, sha256)
        except errors.NotVerified:
            continue
        whole.append((manifest, sha256))
    return whole
