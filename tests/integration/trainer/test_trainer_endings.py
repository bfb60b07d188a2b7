"""What goes wrong in the middle of a training: each fault has its own exit code and words, costs nothing that was
saved, and the run goes on from there when it is gone.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import canonical, layout
from lorafinetune.contract.runconfig import ENV_TERMINATION_LOG, RunConfig
from lorafinetune.storage import errors, inventory
from tests.integration.trainer.faults import Fault, Kind, Proxy, proxy
from tests.integration.trainer.process import CONSTANTS, Run, Trainer, Trainers

FAR = 5000
"""Steps of a run that is in the middle of its training whenever the fault comes."""
METHODS = ("PUT", "GET", "HEAD", "POST")


def begin(trainers: Trainers, run: Run, steps: int = FAR, **environment: str) -> Trainer:
    """Start an attempt that has *steps* to go, and wait for its first checkpoint."""
    attempt = trainers.start(of(run, steps), [], environment=environment)
    attempt.wait_for_checkpoint(2)
    return attempt


def of(run: Run, steps: int) -> RunConfig:
    return run.config.model_copy(update={"training": run.config.training.model_copy(update={"steps": steps})})


def check_end(attempt: Trainer, code: int, reason: str, *words: str) -> int:
    """See that it ends with its code, and says why and what to do; return the step that is durable."""
    assert attempt.end() == code, attempt.tail()
    assert (attempt.folder / "termination").stat().st_size < 4096
    said = attempt.last_words
    assert (said.exit_code, said.reason) == (code, reason), said
    assert [word for word in words if word not in said.message] == [], said.message
    assert said.durable_step >= 2
    return said.durable_step


def check_goes_on(trainers: Trainers, run: Run, durable: int) -> None:
    """See that the next attempt loads what was durable, and goes on from there to the artifact."""
    newest = run.head.checkpoints[-1]
    assert newest.step == durable
    inventory.verify(run.bucket, newest.folder, newest.manifest_sha256)
    again = trainers.start(of(run, durable + 1), [])
    assert again.end() == 0, again.tail()
    started = again.of_type("started")[0]
    assert (started["step"], "rejected" in started["message"]) == (durable, False)
    artifact = run.head.artifact
    assert artifact is not None
    assert artifact.step == durable + 1


def through(run: Run, between: Proxy) -> Run:
    """The run, whose attempts reach the store through *between*."""
    storage = run.config.storage.model_copy(update={"endpoint": between.endpoint})
    return Run(run._trainers, run.config.model_copy(update={"storage": storage}))


def test_nan_in_the_middle(trainers: Trainers, name: str) -> None:
    """16-bit floats end at 65504, and these steps are long ones: soon nothing is finite."""
    training = {"precision": "fp16", "learningRate": 0.1, "gradientAccumulation": 1, "lora": {"rank": 4, "alpha": 1024}}
    run = trainers.run(name, training={**training, "steps": 100})
    few = {CONSTANTS: json.dumps({"lorafinetune_trainer.training.loop.MAX_NOT_FINITE_FP16": 3})}
    steps = set()
    for _ in range(2):  # it comes again: an attempt is a function of its checkpoint
        attempt = trainers.start(run.config, [], environment=few)
        durable = check_end(attempt, 72, "NaNLoss", "in 3 steps in a row", "training.learningRate (now 0.1)", ".png")
        steps.add(attempt.last_words.step)
        assert run.head.checkpoints[-1].step == durable
    assert len(steps) == 1
    started = attempt.of_type("started")[0]
    assert (started["step"], "rejected" in started["message"]) == (durable, False)
    assert run.head.artifact is None
    for entry in run.head.checkpoints:
        manifest = inventory.verify(run.bucket, entry.folder, entry.manifest_sha256)
        assert manifest.updates == entry.step - int(manifest.scalars["skipped"])
    assert 0 < int(manifest.scalars["notFinite"]) <= int(manifest.scalars["skipped"]) < durable


def test_out_of_memory_in_the_middle(trainers: Trainers, name: str) -> None:
    """The second attempt meets a limit when it begins to train."""
    training = {"resolution": 192, "gradientAccumulation": 1, "steps": 3}
    run = trainers.run(name, training=training, checkpoint={"everySteps": 1})
    first = begin(trainers, run)
    first.kill()
    first.end()
    durable = run.head.checkpoints[-1].step
    attempt = trainers.start(of(run, FAR), [])
    attempt.wait_for_phase("Training")
    pid = attempt.process.pid
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + 50 * 2**20, used + 50 * 2**20))
    assert check_end(attempt, 71, "OutOfMemory", "training.gradientCheckpointing", "training.batchSize") == durable
    check_goes_on(trainers, run, durable)


def fill(disk: Path) -> None:
    """Leave not a byte of room on *disk*."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_fills_up_during_the_training_harms_nothing(
    trainers: Trainers, small_disk: Path, name: str
) -> None:
    """Neither the training nor pictures, metrics, intermediate LoRAs and the export write to it."""
    changes: dict[str, Any] = {
        "checkpoint": {"everySteps": 2, "keepIntermediate": {"steps": [5]}},
        "validation": {"prompts": ["a photo of sks dog"], "everySteps": 4, "inferenceSteps": 1},
        "metrics": {"tensorBoard": True},
    }
    undisturbed = trainers.run(f"{name}-undisturbed", **changes)
    undisturbed.finish()
    run = trainers.run(name, scratch=str(small_disk), **changes)
    attempt = run.start()
    attempt.wait_for_phase("Resuming")
    fill(small_disk)
    assert attempt.end() == 0, attempt.tail()
    assert not any("full" in line.get("note", "") for line in attempt.lines)
    assert run.file() == undisturbed.file()
    assert {one.key.partition("/")[0] for one in run.bucket.walk()} == {
        one.key.partition("/")[0] for one in undisturbed.bucket.walk()
    }


def test_a_termination_message_that_finds_no_room_leaves_the_code(
    trainers: Trainers, small_disk: Path, tmp_path: Path, name: str
) -> None:
    fill(small_disk)
    run = trainers.run(name, dataset={"source": str(tmp_path)})
    attempt = trainers.start(run.config, [], environment={ENV_TERMINATION_LOG: str(small_disk / "termination")})
    assert attempt.end() == 78
    assert not (small_disk / "termination").read_bytes()
    assert "the termination message cannot be written" in (attempt.folder / "output").read_text()
    assert attempt.of_type("failed")[0]["reason"] == "EmptyDataset"


def test_a_bucket_that_refuses_writes_half_way(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    with proxy(trainers.s3.endpoint) as between:
        attempt = begin(trainers, through(run, between))
        between.faults = [Fault(Kind.DENY, "PUT", times=10_000)]
        durable = check_end(attempt, 77, "AccessDenied", "3 checkpoints in a row could not be saved", "Secret's keys")
    check_goes_on(trainers, run, durable)


def test_a_bucket_that_is_gone_half_way(trainers: Trainers, name: str) -> None:
    bucket = trainers.s3.make_bucket()
    run = trainers.run(name, storage={"uri": f"s3://{bucket}/"})
    attempt = begin(trainers, run)
    with trainers.s3.without(bucket):
        durable = check_end(attempt, 77, "BucketMissing", bucket, "create it or name another")
    check_goes_on(trainers, run, durable)


def newer_head(run: Run) -> Callable[[], None]:
    """By compare-and-swap: a checkpoint that is committed meanwhile must not be lost."""
    for _ in range(100):
        body, etag = run.bucket.get(layout.HEAD)
        with contextlib.suppress(errors.Conflict):
            run.bucket.replace(layout.HEAD, body.replace(b'"version":1', b'"version":2'), etag)
            return lambda: run.bucket.put(layout.HEAD, body)
    raise AssertionError("the head never stands still")


def newer_manifest(run: Run) -> Callable[[], None]:
    """The newest checkpoint's, which the head names by its hash."""
    head = run.bucket.get(layout.HEAD).body
    newest = run.head.checkpoints[-1]
    body = run.bucket.get(newest.folder + layout.MANIFEST).body
    newer = body.replace(b'"version":1', b'"version":2')
    run.bucket.put(newest.folder + layout.MANIFEST, newer)
    run.bucket.put(layout.HEAD, head.replace(newest.manifest_sha256.encode(), canonical.sha256(newer).encode()))

    def back() -> None:
        run.bucket.put(newest.folder + layout.MANIFEST, body)
        run.bucket.put(layout.HEAD, head)

    return back


@pytest.mark.parametrize("change", [newer_head, pytest.param(newer_manifest, marks=pytest.mark.long)])
def test_what_a_newer_version_wrote_ends_the_next_attempt_and_is_left_alone(
    change: Callable[[Run], Callable[[], None]], trainers: Trainers, name: str
) -> None:
    run = trainers.run(name)
    first = begin(trainers, run)
    first.kill()
    first.end()
    durable = run.head.checkpoints[-1].step
    back = change(run)
    before = {one.key: run.bucket.get(one.key).body for one in run.bucket.walk() if one.key != layout.HEAD}
    attempt = run.start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == "OtherVersion"
    assert "another version of lorafinetune: use that one" in attempt.last_words.message
    assert {one.key: run.bucket.get(one.key).body for one in run.bucket.walk() if one.key != layout.HEAD} == before
    back()
    check_goes_on(trainers, run, durable)


def test_a_head_that_a_newer_version_takes_half_way_ends_it_at_once(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    attempt = begin(trainers, run)
    back = newer_head(run)
    durable = check_end(attempt, 78, "OtherVersion", "head.json was written by another version")
    assert not any("tried again" in line.get("note", "") for line in attempt.lines)
    back()
    check_goes_on(trainers, run, run.head.checkpoints[-1].step)
    assert durable >= 2


def test_what_a_newer_minor_version_added_to_the_head_is_kept(trainers: Trainers, name: str) -> None:
    """It says version 1 still: we can work with it, and must not throw away what it needs."""
    run = trainers.run(name)
    first = begin(trainers, run)
    first.kill()
    first.end()
    head = json.loads(run.bucket.get(layout.HEAD).body)
    head |= {"segments": [{"from": 0}]}
    head["checkpoints"][-1]["mood"] = "good"
    head["plan"]["weather"] = {"sun": True}
    run.bucket.put(layout.HEAD, json.dumps(head).encode())
    newest = run.head.checkpoints[-1]
    again = trainers.start(of(run, newest.step + 1), [])
    assert again.end() == 0, again.tail()
    found = json.loads(run.bucket.get(layout.HEAD).body)
    assert found["segments"] == [{"from": 0}]
    assert found["checkpoints"][0]["mood"] == "good"
    assert found["plan"]["weather"] == {"sun": True}


def storage_away(trainers: Trainers, run: Run, is_over: Callable[[Trainer, Proxy], bool], seconds: float) -> None:
    """Take the store away in the middle until *is_over*, then bring it back: the attempt goes on and loses nothing."""
    with proxy(trainers.s3.endpoint) as between:
        attempt = begin(trainers, through(run, between))
        between.faults = [Fault(Kind.DROP, method, times=10_000_000) for method in METHODS]
        eventually(lambda: is_over(attempt, between), seconds, "the store has been away for long enough")
        reached = attempt.events[-1]["step"]
        between.faults = []
        assert attempt.wait_for_checkpoint(reached)["step"] >= reached
        attempt.kill(signal.SIGTERM)
        assert attempt.end() == 75, attempt.tail()
        assert attempt.last_words.durable_step == attempt.last_words.step
    check_goes_on(trainers, run, attempt.last_words.durable_step)


def test_a_store_that_is_away_for_more_saves_than_may_fail_is_borne(trainers: Trainers, name: str) -> None:
    def failed_five_times(attempt: Trainer, _: Proxy) -> bool:
        return sum("will be tried again" in line.get("note", "") for line in attempt.lines) >= 5

    storage_away(trainers, trainers.run(name), failed_five_times, 80)


@pytest.mark.long
def test_a_store_that_is_away_for_two_minutes_is_borne(trainers: Trainers, name: str) -> None:
    began = time.monotonic()
    run = trainers.run(name, training={"gradientAccumulation": 16})
    storage_away(trainers, run, lambda *_: time.monotonic() - began > 120, 150)
