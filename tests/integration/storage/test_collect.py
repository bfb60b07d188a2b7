"""What is verified, what is probed and what is deleted, on the real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, Head
from lorafinetune.storage import collect, errors, inventory, probe
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from tests.integration.storage.folders import put_files
from tests.integration.trainer.faults import Fault, Kind, Proxy

UID = "uid-of-the-run"


def put(bucket: Bucket, folder: str, **files: bytes) -> str:
    """Put a folder with its manifest; return the manifest's hash."""
    return put_files(bucket, folder, files, kind="checkpoint", run_uid=UID, attempt=1, step=1, updates=1)


def test_a_whole_folder_verifies(bucket: Bucket) -> None:
    sha256 = put(bucket, "f/", a=b"one", b=b"")
    assert [file.name for file in inventory.verify(bucket, "f/", sha256).files] == ["a", "b"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bucket: bucket.put("f/a", b"two"), "is not what its manifest names"),
        (lambda bucket: bucket.put("f/a", b"longer"), "more than the 3 allowed"),
        (lambda bucket: bucket.put("f/a", b""), "is not what its manifest names"),
        (lambda bucket: bucket.delete(["f/a"]), "is missing, though its manifest names it"),
        (lambda bucket: bucket.delete(["f/manifest.json"]), "is missing, though the head names it"),
        (lambda bucket: bucket.put("f/manifest.json", b"{}"), "the head names"),
    ],
)
def test_a_damaged_folder_does_not(damage: Callable[[Bucket], object], words: str, bucket: Bucket) -> None:
    sha256 = put(bucket, "f/", a=b"one")
    damage(bucket)
    with pytest.raises(errors.NotVerified, match=words):
        inventory.verify(bucket, "f/", sha256)


@pytest.fixture
def run(bucket: Bucket) -> Bucket:
    """A run with all that one can have; of its two artifacts one is named."""
    stored.mark_owner(bucket, stored.Owner(run_uid=UID))
    for folder in ("checkpoints/1-10/", "checkpoints/1-20/", "checkpoints/1-5/", "artifacts/1/", "artifacts/2/"):
        put(bucket, folder, state=b"x")
    bucket.put("conditioning/abc", b"latents")
    for folder in (layout.BASE, layout.INTERMEDIATE, layout.SAMPLES, layout.METRICS):
        bucket.put(f"{folder}1/a", b"of a living run")
        bucket.put(f"artifacts/2/{folder}a", b"published with the product")
    entries = [CheckpointEntry(attempt=1, step=step, manifest_sha256="0" * 64) for step in (10, 20)]
    artifact = ArtifactEntry(attempt=2, step=20, manifest_sha256="0" * 64)
    head = Head(
        run_uid=UID, attempt=2, pod_uid="p", checkpoints=entries, garbage=["checkpoints/1-5/"], artifact=artifact
    )
    stored.change(bucket, lambda _: head)
    return bucket


def keys(bucket: Bucket) -> list[str]:
    return [one.key for one in bucket.walk()]


ARTIFACT = [
    "artifacts/2/base/a",
    "artifacts/2/intermediate/a",
    "artifacts/2/manifest.json",
    "artifacts/2/metrics/a",
    "artifacts/2/samples/a",
    "artifacts/2/state",
]


def test_after_success_the_product_head_and_mark_stay(run: Bucket) -> None:
    done = collect.prune(run, run_uid=UID)
    assert keys(run) == [*ARTIFACT, layout.HEAD, layout.OWNER]
    assert done.kept == len(ARTIFACT)
    head = stored.read(run).head
    assert head is not None
    assert (head.checkpoints, head.garbage, head.conditioning) == ([], [], None)
    assert head.artifact is not None
    assert collect.prune(run, run_uid=UID).deleted == 0


@pytest.mark.parametrize("keep", [True, False])
def test_delete(keep: bool, run: Bucket) -> None:
    collect.bury(run, run_uid=UID, attempt=3, keep_artifact=keep)
    assert keys(run) == [*(ARTIFACT if keep else []), layout.HEAD, layout.OWNER]
    with pytest.raises(heads.Fenced, match="deleted"):
        stored.change(run, lambda head: heads.claim(head, run_uid=UID, attempt=4, pod_uid="late"))
    put(run, "checkpoints/2-30/", state=b"of a zombie")
    done = collect.collect(run, run_uid=UID, attempt=3, keep_artifact=keep)
    assert keys(run) == (ARTIFACT if keep else [])
    assert done.kept == (len(ARTIFACT) if keep else 0)


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_of_many_pages_is_collected_page_by_page(
    keep: bool, run: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted while it is being listed must not make the listing miss the rest."""
    monkeypatch.setattr("lorafinetune.storage.bucket.PAGE", 3)
    monkeypatch.setattr("lorafinetune.storage.bucket.DELETE_BATCH", 2)
    for number in range(20):
        run.put(f"{layout.SAMPLES}{number:03}.png", b"picture")
        run.put(f"{layout.METRICS}{number:03}.jsonl", b"{}")
    before = len(keys(run))
    done = collect.collect(run, run_uid=UID, attempt=3, keep_artifact=keep)
    assert keys(run) == (ARTIFACT if keep else [])
    assert done.deleted == before - done.kept


def test_what_is_not_ours_is_not_touched(run: Bucket) -> None:
    before = keys(run)
    for act in (collect.bury, collect.collect):
        assert act(run, run_uid="another", attempt=9, keep_artifact=False).foreign
    assert collect.prune(run, run_uid="another").foreign
    run.delete([layout.OWNER])
    assert collect.collect(run, run_uid=UID, attempt=9, keep_artifact=False).foreign
    assert keys(run) == [key for key in before if key != layout.OWNER]


def test_nothing_is_nothing(bucket: Bucket) -> None:
    done = collect.collect(bucket, run_uid=UID, attempt=1, keep_artifact=False)
    assert (done.deleted, done.foreign) == (0, False)


def test_a_collection_that_was_interrupted_is_taken_up_again(run: Bucket, through: Bucket, between: Proxy) -> None:
    between.faults = [Fault(Kind.DROP, "POST", times=50)]
    with pytest.raises(errors.Unreachable):
        collect.collect(through, run_uid=UID, attempt=3, keep_artifact=False)
    head = stored.read(run).head
    assert head is not None
    assert head.tombstone
    between.faults = []
    collect.collect(through, run_uid=UID, attempt=3, keep_artifact=False)
    assert keys(run) == []


def test_this_store_fences(bucket: Bucket) -> None:
    probe.probe_fencing(bucket)
    probe.probe_writing(bucket)
    assert keys(bucket) == []


def test_a_store_that_ignores_conditions_is_refused(through: Bucket, bucket: Bucket, between: Proxy) -> None:
    def override(key: str, body: bytes) -> str:
        name = key.removeprefix(bucket.location.key)
        bucket.put(name, body)
        return bucket.get(name).etag

    between.faults = [Fault(Kind.OVERRIDE, times=1000, override=override)]
    with pytest.raises(errors.NotFencing, match="unsafeNoFencing"):
        probe.probe_fencing(through)
    assert keys(bucket) == []


@pytest.mark.parametrize("ask", [probe.probe_fencing, probe.probe_writing])
def test_without_the_right_to_delete_nothing_is_written(
    ask: Callable[[Bucket], None], through: Bucket, bucket: Bucket, between: Proxy
) -> None:
    between.faults = [Fault(Kind.DENY, method, times=1000) for method in ("DELETE", "POST")]
    with pytest.raises(errors.AccessDenied):
        ask(through)
    assert keys(bucket) == [], "a run that asks again and again would fill the bucket with probes"


def test_images_are_counted(bucket: Bucket) -> None:
    with pytest.raises(probe.EmptyDataset, match="holds nothing"):
        probe.count_images(bucket)
    bucket.put("notes.txt", b"")
    with pytest.raises(probe.EmptyDataset, match="1 object, but no image"):
        probe.count_images(bucket)
    bucket.put("cat.JPG", b"")
    assert probe.count_images(bucket) == 1
    with pytest.raises(probe.EmptyDataset, match=r"dataset[.]classSource s3://\S+dogs/ holds nothing"):
        probe.count_images(
            bucket.at(layout.Location(bucket.location.bucket, bucket.location.key + "dogs/")), "dataset.classSource"
        )
