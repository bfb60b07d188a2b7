"""The attempt's dealings with the head, call by call, on the real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from localcluster.waiting import eventually
from lorafinetune.contract import canonical, layout
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig, Storage
from lorafinetune.storage import collect, errors, inventory
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import explain
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from tests.integration.trainer.faults import HANG_SECONDS, Fault, Kind, Proxy, proxy
from tests.integration.trainer.s3 import Access

Make = Callable[..., Checkpoints]


@pytest.fixture
def between(s3: Access) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def config(name: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": name, "uid": f"{name}-uid"},
            "baseModel": {"source": "/unused"},
            "dataset": {"source": "/unused"},
            "storage": {"uri": "s3://loras/"},
        }
    )


@pytest.fixture
def bucket(s3: Access, config: RunConfig) -> Bucket:
    return s3.bucket(str(config.prefix))


@pytest.fixture
def make(s3: Access, between: Proxy, config: RunConfig, bucket: Bucket) -> Make:
    """Make an attempt of the run that has claimed the head, and goes through the proxy."""

    def attempt(number: int | None = None, pod: str = "") -> Checkpoints:
        if number is not None:
            mark(bucket, config)
        place = s3.at(between.endpoint).bucket(str(config.prefix))
        made = Checkpoints(place, place.hasty(0.5), config, pod or f"pod-{number}")
        made.claim(number, expect_head=False)
        return made

    return attempt


def mark(bucket: Bucket, config: RunConfig) -> None:
    """Put the owner mark, as the operator does before the first attempt."""
    stored.mark_owner(bucket, stored.Owner(run_uid=config.run.uid))


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, step, {"lora.a": torch.full((3,), float(step))}, {"notFinite": 0})


def folders(bucket: Bucket) -> list[str]:
    return sorted({one.key.rpartition("/")[0] for one in bucket.walk() if "/" in one.key})


def test_a_checkpoint_of_another_version_is_not_passed_over(make: Make, bucket: Bucket) -> None:
    """Taken for damaged it would leave the head with the next commit, and its steps would be lost."""
    first = make(1)
    first.commit(snapshot(2), SaveReason.PERIODIC)
    entry = first.commit(snapshot(4), SaveReason.PERIODIC)
    assert entry is not None
    key = entry.folder + layout.MANIFEST
    body = bucket.get(key).body.replace(b'"version":1', b'"version":2')
    bucket.put(key, body)
    newer = entry.model_copy(update={"manifest_sha256": canonical.sha256(body)})
    head = stored.read(bucket).head
    assert head is not None
    bucket.put(layout.HEAD, canonical.encode(head.model_copy(update={"checkpoints": [newer]}).to_json()))
    second = make(2)
    with pytest.raises(errors.OtherVersion, match="another version") as caught:
        second.newest_verified()
    assert explain(caught.value).code is ExitCode.INVALID
    assert second.rejected == {}


def test_an_older_step_is_not_committed_after_a_newer_one(make: Make, bucket: Bucket) -> None:
    """The rescue has overtaken a save that was under way."""
    attempt = make(1)
    assert attempt.commit(snapshot(4), SaveReason.YIELD) is not None
    assert attempt.commit(snapshot(2), SaveReason.PERIODIC) is None
    assert [entry.id for entry in attempt.head.checkpoints] == ["1-4"]
    assert folders(bucket) == ["checkpoints/1-2", "checkpoints/1-4"]
    attempt.tidy()
    assert folders(bucket) == ["checkpoints/1-4"]


def test_a_step_that_is_saved_again_keeps_its_manifest(
    make: Make, bucket: Bucket, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap took effect, its answer was lost, and so was all that came after: the rescue tries the step again."""
    attempt = make(1)
    monkeypatch.setattr("lorafinetune.storage.head.SWAP_LIMIT", 0.0)
    between.faults = [Fault(Kind.LOSE_ANSWER, "PUT", layout.HEAD, times=1)]
    with pytest.raises(errors.Unreachable):
        attempt.commit(snapshot(2), SaveReason.PERIODIC)
    monkeypatch.undo()
    entry = attempt.commit(snapshot(2), SaveReason.YIELD)
    assert entry is not None
    assert attempt.head.checkpoints == [entry]
    found = inventory.verify(bucket, entry.folder, entry.manifest_sha256)
    assert found.reason is SaveReason.PERIODIC


def test_at_least_two_checkpoints_stay_at_each_moment(make: Make, bucket: Bucket) -> None:
    attempt = make(1)
    for step in range(1, 6):
        attempt.commit(snapshot(step), SaveReason.PERIODIC)
        named = [entry.folder.rstrip("/") for entry in attempt.head.checkpoints]
        assert set(named) <= set(folders(bucket))
        assert [entry.step for entry in attempt.head.checkpoints] == ([step - 1, step] if step > 1 else [1])
        attempt.tidy()
        assert folders(bucket) == named
    assert attempt.head.garbage == []


def test_what_was_committed_is_read_again(make: Make) -> None:
    make(1).commit(snapshot(7), SaveReason.PERIODIC)
    found = make(2).newest_verified()
    assert found is not None
    restored = found.snapshot()
    assert (restored.step, restored.updates, dict(restored.scalars)) == (7, 7, {"notFinite": 0})
    assert torch.equal(restored.tensors["lora.a"], torch.full((3,), 7.0))


def test_by_hand_each_attempt_is_one_more(make: Make, between: Proxy) -> None:
    assert make(None, "a").attempt == 1
    between.faults = [Fault(Kind.LOSE_ANSWER, "PUT", layout.HEAD, times=2)]
    assert make(None, "b").attempt == 2
    assert make(None, "b").attempt == 2, "the same process asks twice"
    assert make(None, "c").attempt == 3


def test_a_fenced_attempt_changes_nothing_any_more(make: Make, bucket: Bucket) -> None:
    zombie, _ = make(1), make(2)
    with pytest.raises(Fenced):
        zombie.commit(snapshot(1), SaveReason.PERIODIC)
    with pytest.raises(Fenced):
        zombie.publish(1, 1, {"lora": b"x"}, {})
    later = make(3)
    later.commit(snapshot(2), SaveReason.PERIODIC)
    later.tidy()
    assert folders(bucket) == ["checkpoints/3-2"]


def test_what_looks_left_over_is_not_deleted_where_the_head_has_changed(make: Make, bucket: Bucket) -> None:
    """Somebody deletes the head, and an earlier attempt that was about to make one makes it, and commits."""
    later = make(2)
    later.commit(snapshot(1), SaveReason.PERIODIC)
    bucket.delete([one.key for one in bucket.walk() if one.key != layout.OWNER])
    earlier = make(1)
    earlier.commit(snapshot(1), SaveReason.PERIODIC)
    with pytest.raises(Fenced):
        later.tidy()
    assert earlier.newest_verified() is not None


def test_a_head_that_is_known_and_gone_is_not_made_anew(make: Make, config: RunConfig, bucket: Bucket) -> None:
    attempt = make(1)
    bucket.delete([layout.HEAD])
    with pytest.raises(HeadLost):
        attempt.commit(snapshot(1), SaveReason.PERIODIC)
    with pytest.raises(HeadLost):
        Checkpoints(bucket, bucket, config, "p").claim(2, expect_head=True)


@pytest.mark.parametrize(("left", "word"), [(None, "gone"), (b"", "damaged"), (b'{"version": 1, "run', "damaged")])
def test_a_lost_head_is_told_as_it_was_lost_with_a_way_out(
    make: Make, config: RunConfig, bucket: Bucket, left: bytes | None, word: str
) -> None:
    make(1).commit(snapshot(1), SaveReason.PERIODIC)
    if left is None:
        bucket.delete([layout.HEAD])
    else:
        bucket.put(layout.HEAD, left)
    with pytest.raises(HeadLost, match=rf"head.json is {word}, .*by hand .* choose another run.uid"):
        Checkpoints(bucket, bucket, config, "p").claim(None, expect_head=False)


def test_an_attempt_that_starts_after_the_collection_writes_nothing(config: RunConfig, bucket: Bucket) -> None:
    late = Checkpoints(bucket, bucket, config, "p")
    with pytest.raises(HeadLost, match="no owner mark"):
        late.claim(1, expect_head=False)
    assert list(bucket.walk()) == []


def test_a_claim_has_patience_with_the_store(make: Make, config: RunConfig, bucket: Bucket, between: Proxy) -> None:
    mark(bucket, config)
    between.faults = [Fault(Kind.DROP, "GET", layout.OWNER, times=9)]
    assert make(1).head.attempt == 1
    assert len(between.happened) == 9


@pytest.mark.parametrize("versioned", [False, True])
def test_a_claim_in_the_middle_of_which_the_run_is_collected(
    versioned: bool, s3: Access, config: RunConfig, between: Proxy
) -> None:
    if versioned:
        config = config.model_copy(update={"storage": Storage(uri=s3.versioned_bucket())})
    bucket, through = (one.bucket(str(config.prefix)) for one in (s3, s3.at(between.endpoint)))
    late = Checkpoints(through, through, config, "late")
    mark(bucket, config)
    between.faults = [Fault(Kind.HOLD, "PUT", layout.HEAD)]
    with ThreadPoolExecutor() as beside:
        claiming = beside.submit(late.claim, 1, expect_head=False)
        eventually(lambda: between.happened, 10, "the claim is about to write")
        collect.collect(bucket, run_uid=config.run.uid, attempt=0, keep_artifact=False)
        between.let_go.set()
        with pytest.raises(HeadLost, match="no owner mark"):
            claiming.result(30)
    assert list(bucket.walk()) == []
    assert not versioned or s3.versions(bucket) == []


def test_a_collection_in_the_middle_of_which_the_run_is_claimed(
    s3: Access, make: Make, config: RunConfig, bucket: Bucket, between: Proxy
) -> None:
    mark(bucket, config)
    between.faults = [Fault(Kind.HOLD, "POST", body=layout.OWNER.encode())]
    through = s3.at(between.endpoint).bucket(str(config.prefix))
    with ThreadPoolExecutor() as beside:
        collecting = beside.submit(collect.collect, through, run_uid=config.run.uid, attempt=0, keep_artifact=False)
        eventually(lambda: between.happened, 10, "the mark is about to be deleted")
        with pytest.raises(Fenced, match="deleted"):
            make(1)
        between.let_go.set()
        collecting.result(30)
    assert list(bucket.walk()) == []


def test_a_later_artifact_replaces_an_earlier_one(make: Make, bucket: Bucket) -> None:
    make(1).publish(5, 5, {"lora": b"one"}, {})
    later = make(2)
    entry = later.publish(9, 9, {"lora": b"two"}, {"library.torch": "x"})
    later.tidy()
    assert folders(bucket) == ["artifacts/2"]
    assert inventory.verify(bucket, entry.folder, entry.manifest_sha256).provenance == {"library.torch": "x"}


def test_a_commit_with_a_deadline_gives_up_in_time(make: Make, between: Proxy) -> None:
    attempt = make(1)
    between.faults = [Fault(Kind.HANG, method, times=100) for method in ("PUT", "GET")]
    started = time.monotonic()
    with pytest.raises(errors.Unreachable):
        attempt.commit(snapshot(1), SaveReason.YIELD, deadline=started + 3)
    assert time.monotonic() - started < HANG_SECONDS / 2, "no answer comes for longer than that"


def test_large_states_are_put_in_parts(make: Make, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafinetune_trainer.saving import state

    split = state.split
    monkeypatch.setattr(state, "split", lambda tensors: split(tensors, 100_000))
    tensors = {f"t{number}": torch.full((8000,), float(number)) for number in range(7)}
    make(1).commit(Snapshot(1, 1, tensors), SaveReason.PERIODIC)
    assert len([one for one in bucket.walk("checkpoints/") if "state-" in one.key]) == 7
    found = make(2).newest_verified()
    assert found is not None
    assert all(torch.equal(found.snapshot().tensors[name], tensor) for name, tensor in tensors.items())
