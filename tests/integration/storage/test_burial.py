"""A buried run on the real S3 server: nobody commits any more, and what comes late goes too."""

from __future__ import annotations

import pytest

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import ArtifactEntry, Fenced, Head
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.storage import collect, errors
from lorafinetune.storage import head as store
from lorafinetune.storage.bucket import Bucket
from tests.integration.storage.folders import put_files
from tests.integration.trainer.s3 import Access

UID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


def fill(bucket: Bucket) -> Bucket:
    """Put a run with everything: mark, head, checkpoints, conditioning, an artifact that counts, one that does not."""
    store.mark_owner(bucket, store.Owner(run_uid=UID))
    store.change(bucket, lambda head: heads.claim(head, run_uid=UID, attempt=2, pod_uid="p"))
    for key in ("checkpoints/1-10/a", "checkpoints/2-20/a", "conditioning/x", "artifacts/1/old", "artifacts/2/lora"):
        bucket.put(key, b"content")
    entry = ArtifactEntry(attempt=2, step=20, manifest_sha256="0" * 64)
    store.change(bucket, lambda head: heads.publish(head, entry) if head else heads.bury(None, run_uid=UID, attempt=1))
    return bucket


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    return fill(bucket)


def keys(bucket: Bucket) -> list[str]:
    return [one.key for one in bucket.walk()]


def test_a_buried_run_cannot_be_claimed_and_is_still_marked(filled: Bucket) -> None:
    collect.bury(filled, run_uid=UID, attempt=2, keep_artifact=False)
    assert keys(filled) == [layout.HEAD, layout.OWNER]
    with pytest.raises(Fenced):
        heads.claim(store.read(filled).head, run_uid=UID, attempt=3, pod_uid="late")


def test_what_a_zombie_wrote_after_the_burial_goes_with_the_collection(filled: Bucket) -> None:
    collect.bury(filled, run_uid=UID, attempt=2, keep_artifact=False)
    filled.put("checkpoints/2-30/state.safetensors", b"too late")
    collect.collect(filled, run_uid=UID, attempt=2, keep_artifact=False)
    assert keys(filled) == []


@pytest.fixture
def published(filled: Bucket) -> Bucket:
    """The same, with an artifact whose every byte is what its manifest names."""
    said = {"kind": "artifact", "run_uid": UID, "attempt": 2, "step": 20, "updates": 20, "reason": SaveReason.FINAL}
    sha256 = put_files(filled, "artifacts/2/", {"lora": b"the product"}, **said)
    entry = ArtifactEntry(attempt=2, step=20, manifest_sha256=sha256)

    def publish(head: Head | None) -> Head:
        assert head is not None
        return heads.publish(head, entry)

    store.change(filled, publish)
    return filled


@pytest.mark.parametrize("gone", [[layout.OWNER], [layout.OWNER, layout.HEAD]])
def test_an_interrupted_collection_is_taken_up_again_and_keeps_the_artifact(gone: list[str], published: Bucket) -> None:
    collect.bury(published, run_uid=UID, attempt=2, keep_artifact=True)
    published.delete(gone)  # ... and the operator dies, or hears no answer
    done = collect.collect(published, run_uid=UID, attempt=2, keep_artifact=True)
    assert keys(published) == ["artifacts/2/lora", "artifacts/2/manifest.json"]
    assert (done.kept, done.foreign) == (2, False)


def test_without_mark_and_tombstone_nothing_is_touched(published: Bucket) -> None:
    published.delete([layout.OWNER])
    before = keys(published)
    for keep in (True, False):
        assert collect.collect(published, run_uid=UID, attempt=2, keep_artifact=keep).foreign
        assert collect.collect(published, run_uid=OTHER, attempt=2, keep_artifact=keep).foreign
    assert keys(published) == before
    collect.bury(published, run_uid=UID, attempt=2, keep_artifact=True)
    published.delete([layout.HEAD])
    published.put("artifacts/3/stranger", b"?")
    assert collect.collect(published, run_uid=UID, attempt=2, keep_artifact=True).foreign


def test_a_lost_head_does_not_cost_the_artifact(published: Bucket) -> None:
    published.delete([layout.HEAD])
    collect.bury(published, run_uid=UID, attempt=2, keep_artifact=True)
    collect.collect(published, run_uid=UID, attempt=2, keep_artifact=True)
    assert keys(published) == ["artifacts/2/lora", "artifacts/2/manifest.json"]


def test_what_was_written_over_the_head_keeps_no_run_from_being_collected(published: Bucket) -> None:
    published.put(layout.HEAD, b"{garbage")
    collect.collect(published, run_uid=UID, attempt=2, keep_artifact=True)
    assert keys(published) == ["artifacts/2/lora", "artifacts/2/manifest.json"]


def test_the_head_of_another_version_is_left_alone(published: Bucket) -> None:
    body = b'{"version": 2, "runUid": "x"}'
    published.put(layout.HEAD, body)
    before = keys(published)
    with pytest.raises(errors.NotVerified, match="another version"):
        collect.collect(published, run_uid=UID, attempt=2, keep_artifact=False)
    assert keys(published) == before
    assert published.get(layout.HEAD).body == body


def test_old_versions_go_too(s3: Access) -> None:
    place = layout.run_prefix(s3.versioned_bucket(), "default", "timber", UID)
    filled = fill(s3.bucket(str(place)))
    for body in (b"one", b"two"):
        filled.put("checkpoints/2-20/a", body)
    assert s3.versions(filled).count(f"{place.key}checkpoints/2-20/a") == 3
    collect.collect(filled, run_uid=UID, attempt=2, keep_artifact=False)
    assert s3.versions(filled) == []
