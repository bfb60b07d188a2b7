"""A manifest is put once: what the head's hash names never changes under it."""

from __future__ import annotations

import threading

import pytest

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.manifest import File, Manifest, SaveReason
from lorafinetune.storage import errors, inventory
from lorafinetune.storage.bucket import Bucket
from tests.integration.trainer.faults import Fault, Kind, Proxy

FOLDER = layout.checkpoint(1, 6)


def manifest(bucket: Bucket, reason: SaveReason, body: bytes = b"state") -> Manifest:
    bucket.put(f"{FOLDER}state", body)
    file = File(name="state", size=len(body), sha256=canonical.sha256(body))
    return Manifest(kind="checkpoint", run_uid="u", attempt=1, step=6, updates=6, reason=reason, files=[file])


def test_the_saver_and_the_rescue_save_the_same_step(bucket: Bucket) -> None:
    """Whoever's manifest came first stays, and both are told its hash: the head can name either."""
    hashes: list[str] = []

    def save(reason: SaveReason) -> None:
        hashes.append(inventory.put_folder(bucket, FOLDER, manifest(bucket, reason)))

    threads = [threading.Thread(target=save, args=(reason,)) for reason in (SaveReason.FINAL, SaveReason.YIELD) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashes) == len(threads)
    (sha256,) = set(hashes)
    inventory.verify(bucket, FOLDER, sha256)


def test_another_manifest_is_no_repeat(bucket: Bucket) -> None:
    inventory.put_folder(bucket, FOLDER, manifest(bucket, SaveReason.FINAL))
    with pytest.raises(errors.NotVerified, match="names other files"):
        inventory.put_folder(bucket, FOLDER, manifest(bucket, SaveReason.FINAL, b"another state"))


def test_a_lost_answer_is_judged_by_its_effect(through: Bucket, bucket: Bucket, between: Proxy) -> None:
    wanted = manifest(bucket, SaveReason.PERIODIC)
    between.faults = [Fault(Kind.LOSE_ANSWER, "PUT", times=1)]
    inventory.verify(bucket, FOLDER, inventory.put_folder(through, FOLDER, wanted))
