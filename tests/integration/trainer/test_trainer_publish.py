"""An attempt that only publishes: the LoRA of the newest checkpoint, where a run is stopped at a limit.

Its bytes are those of a run of so few steps. Neither data set nor base model is there any more when it is made.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import layout
from lorafinetune.storage import head as stored
from lorafinetune.storage import inventory
from tests.integration.trainer.faults import Fault, Kind, proxy
from tests.integration.trainer.process import Run, Trainer, Trainers
from tests.integration.trainer.whole import begin, hashes

SETTINGS: dict[str, Any] = {
    "training": {"schedule": "constant", "warmupSteps": 0, "steps": 40},
    "checkpoint": {"everySteps": 4},
}


def stopped(trainers: Trainers, name: str, **changes: Any) -> tuple[Run, int]:
    """Return a run that was killed after a checkpoint, and the step of its newest one."""
    run = begin(trainers, name, **{**SETTINGS, **changes})
    attempt = run.start()
    attempt.wait_for_checkpoint(4)
    attempt.kill(signal.SIGKILL)
    attempt.end()
    newest = run.head.newest
    assert newest is not None
    return run, newest.step


def publish(run: Run, *, gone: bool = True, **changes: Any) -> Trainer:
    """Start an attempt that publishes; *gone*: images and base model are not there any more."""
    config = run.config
    if gone:
        changes["dataset"] = config.dataset.model_copy(update={"source": "/gone", "class_source": "/gone"})
        changes["base_model"] = config.base_model.model_copy(update={"source": "/gone"})
    return run.start(publish=True, **changes)


def of_steps(trainers: Trainers, name: str, steps: int) -> Run:
    """Return an undisturbed run of so many steps."""
    run = begin(trainers, name, **{**SETTINGS, "training": {**SETTINGS["training"], "steps": steps}})
    run.finish()
    return run


def test_the_newest_checkpoint_is_published_as_a_run_of_so_few_steps_would(trainers: Trainers, name: str) -> None:
    run, step = stopped(trainers, name)
    attempt = publish(run)
    assert attempt.end() == 0, attempt.tail()
    artifact = run.head.artifact
    assert artifact is not None
    assert (artifact.step, artifact.attempt) == (step, 2)
    assert attempt.of_type("finished")[0]["artifact"]["step"] == step
    assert not attempt.of_type("checkpoint"), "it trains nothing"
    manifest = inventory.verify(run.bucket, artifact.folder, artifact.manifest_sha256)
    plan = run.head.plan
    assert plan is not None
    assert manifest.provenance["device"] == plan.device
    assert hashes(run) == hashes(of_steps(trainers, f"{name}-few", step))
    card = run.file("README.md").decode()
    assert f"| {step} of 40: the run was stopped at a limit |" in card
    lines = [json.loads(line)["step"] for line in run.file("metrics.jsonl").splitlines()]
    assert lines == list(range(1, step + 1))
    assert any(one.name.startswith(layout.SAMPLES) for one in manifest.files), "pictures that were made before"

    again = publish(run)
    assert again.end() == 0, again.tail()
    assert run.head.artifact == artifact, "what is published is not published again"


def test_a_run_goes_on_after_it_was_published(trainers: Trainers, name: str) -> None:
    changes = {"training": {**SETTINGS["training"], "steps": 8}}
    run, step = stopped(trainers, name, **changes)
    assert publish(run).end() == 0
    last = run.finish()
    assert last.of_type("started")[0]["step"] == step
    assert run.head.artifact is not None
    assert run.head.artifact.step == 8
    assert hashes(run) == hashes(of_steps(trainers, f"{name}-8", 8))
    assert "stopped at a limit" not in run.file("README.md").decode()


def test_without_a_checkpoint_it_says_so(trainers: Trainers, name: str) -> None:
    run = begin(trainers, name, **{**SETTINGS, "checkpoint": {"everySteps": 50}})
    first = run.start()
    first.wait_for_phase("Training")
    first.kill(signal.SIGKILL)
    first.end()
    attempt = publish(run)
    assert attempt.end() == 78
    assert attempt.last_words.reason == "NothingToPublish"
    assert "checkpoint.everySteps" in attempt.last_words.message
    assert run.head.artifact is None


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_preempted_while_it_publishes_it_is_repeated(number: signal.Signals, trainers: Trainers, name: str) -> None:
    """And a newest checkpoint that is damaged by then gives way to the one before it."""
    with proxy(trainers.s3.endpoint) as between:
        run, step = stopped(trainers, name, checkpoint={"everySteps": 2})
        between.faults = [Fault(Kind.HOLD, "PUT", contains="/artifacts/", suffix="/README.md")]
        storage = run.config.storage.model_copy(update={"endpoint": between.endpoint})
        attempt = publish(run, storage=storage, notice_seconds=6.0)
        eventually(lambda: between.happened, 60, "it is about to put the last of its files")
        attempt.kill(number)
        assert attempt.end() == (75 if number is signal.SIGTERM else -9), attempt.tail()
        if number is signal.SIGTERM:
            assert attempt.last_words.saved == "durable"
            assert attempt.last_words.durable_step == step
        between.let_go.set()
    assert run.head.artifact is None
    newest = run.head.newest
    assert newest is not None
    key = next(one.key for one in run.bucket.walk(newest.folder) if "state-" in one.key)
    run.bucket.put(key, b"damaged")
    assert publish(run).end() == 0
    assert run.head.artifact is not None
    assert run.head.artifact.step == step - 2
    assert [entry.step for entry in run.head.checkpoints] == [step - 2], "what is damaged counts no more"
    folders = {one.key.split("/")[1] for one in run.bucket.walk(layout.ARTIFACTS)}
    assert folders == {"3"}, "what the one before it left goes"


@pytest.mark.long
def test_a_head_that_was_made_anew_is_enough_with_all_that_a_training_needs(trainers: Trainers, name: str) -> None:
    run, step = stopped(trainers, name)
    poor = run.head.model_copy(update={"plan": None, "conditioning": None})
    stored.change(run.bucket, lambda _: poor)
    attempt = publish(run, gone=False)
    assert attempt.end() == 0, attempt.tail()
    assert run.head.artifact is not None
    assert run.head.artifact.step == step
    assert attempt.events[-1].get("totalSteps", 40) == 40
    assert all(event.get("totalSteps") == 40 for event in attempt.of_type("progress") if "totalSteps" in event)
    assert hashes(run) == hashes(of_steps(trainers, f"{name}-few", step))
