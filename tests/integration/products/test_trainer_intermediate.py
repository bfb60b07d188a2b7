"""LoRAs of chosen steps stand beside the artifact, whatever killed the attempts that trained them."""

from __future__ import annotations

import hashlib
import signal
import time

import pytest

from lorafinetune.contract.manifest import Manifest
from tests.integration.trainer import faults
from tests.integration.trainer.faults import Fault, Kind
from tests.integration.trainer.process import LIMIT, Run, Trainers

CHECKPOINT = {"everySteps": 3, "keepIntermediate": {"steps": [2], "everySteps": 4}}
"""Of 6 steps the second and the fourth are kept; the checkpoints are those of step 3 and 6."""
KEPT = [f"step-{step:06}{kind}.safetensors" for step in (2, 4) for kind in ("", "_kohya")]


def files(run: Run) -> dict[str, str]:
    """The artifact's LoRA files and their hashes, as its manifest names them."""
    artifact = run.head.artifact
    assert artifact is not None
    manifest = Manifest.model_validate_json(run.bucket.get(f"{artifact.folder}manifest.json").body)
    for file in manifest.files:
        assert hashlib.sha256(run.file(file.name)).hexdigest() == file.sha256
    return {file.name: file.sha256 for file in manifest.files if file.name.endswith(".safetensors")}


def copies(run: Run) -> list[str]:
    return [one.key for one in run.bucket.walk("intermediate/")]


@pytest.fixture(scope="module")
def undisturbed(trainers: Trainers) -> dict[str, str]:
    run = trainers.run("kept", checkpoint=CHECKPOINT)
    run.finish()
    assert copies(run) == []
    return files(run)


def test_chosen_steps_are_in_the_artifact_in_both_formats(undisturbed: dict[str, str]) -> None:
    assert sorted(undisturbed) == ["lora_kohya.safetensors", "pytorch_lora_weights.safetensors", *sorted(KEPT)]
    assert len(set(undisturbed.values())) == 6


def _done(run: Run, step: int) -> None:
    run.attempts[-1].wait_for(lambda event: event["step"] >= step)


def test_killed_between_a_chosen_step_and_its_checkpoint(
    trainers: Trainers, undisturbed: dict[str, str], name: str
) -> None:
    run = trainers.run(name, checkpoint={**CHECKPOINT, "everySteps": 50})
    first = run.start()
    _done(run, 2)
    first.kill(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    assert run.head.checkpoints == []
    second = run.finish(checkpoint=run.config.checkpoint.model_copy(update={"every_steps": 3}))
    assert second.of_type("started")[0]["step"] == 0
    assert files(run) == undisturbed


def test_killed_after_the_checkpoint_of_a_chosen_step(
    trainers: Trainers, undisturbed: dict[str, str], name: str
) -> None:
    run = trainers.run(name, checkpoint=CHECKPOINT)
    first = run.start()
    first.wait_for_checkpoint(3)
    first.kill(signal.SIGKILL)
    first.end()
    assert copies(run)[0].startswith("intermediate/2-1-"), (
        "the checkpoint counts, and the LoRA before it is not durable"
    )
    second = run.finish()
    assert second.of_type("started")[0]["step"] >= 3
    assert files(run) == undisturbed
    assert copies(run) == []


def test_a_damaged_copy_is_told_and_left_out(trainers: Trainers, undisturbed: dict[str, str], name: str) -> None:
    """A byte of the tensors, so that what is read is a LoRA still; the copy of an earlier attempt is no way out."""
    run = trainers.run(name, checkpoint=CHECKPOINT)
    first = run.start()
    first.wait_for_checkpoint(3)
    first.kill(signal.SIGKILL)
    first.end()
    copy = copies(run)[0]
    body = bytearray(run.bucket.get(copy).body)
    body[-1] ^= 1
    run.bucket.put(copy, bytes(body))
    second = run.finish()
    assert any("the LoRA of step 2 is damaged and left out" in str(line.get("note")) for line in second.lines)
    assert files(run) == {file: sha256 for file, sha256 in undisturbed.items() if "step-000002" not in file}
    card = run.file("README.md").decode()
    assert "step-000004_kohya" in card
    assert "step-000002" not in card, "the card names what is not there"
    assert copies(run) == []


def test_a_copy_of_an_earlier_attempt_gives_way(trainers: Trainers, undisturbed: dict[str, str], name: str) -> None:
    """It may have computed otherwise, and what it put late is not of the line that was published."""
    run = trainers.run(name, checkpoint={**CHECKPOINT, "everySteps": 50})
    first = run.start()
    _done(run, 2)
    first.kill(signal.SIGKILL)
    first.end()
    stale = f"intermediate/2-1-{hashlib.sha256(b'stale').hexdigest()}.safetensors"
    run.bucket.put(stale, b"stale")
    second = run.start(checkpoint=run.config.checkpoint.model_copy(update={"every_steps": 3}))
    second.wait_for_checkpoint(3)
    second.kill(signal.SIGKILL)
    second.end()
    assert stale not in copies(run), "each attempt would leave what it repeats"
    run.bucket.put(stale, b"stale")
    run.finish(checkpoint=run.config.checkpoint.model_copy(update={"every_steps": 3}))
    assert files(run) == undisturbed
    assert copies(run) == []


def test_sigterm_after_every_step(trainers: Trainers, undisturbed: dict[str, str], name: str) -> None:
    """Also in the moment between a step and the taking of its weights."""
    run = trainers.run(name, checkpoint={**CHECKPOINT, "everySteps": 50})
    for step in range(1, 6):
        attempt = run.start()
        _done(run, step)
        attempt.kill(signal.SIGTERM)
        if attempt.end(20) == 0:
            break
    else:
        run.finish()
    assert files(run) == undisturbed


def test_no_checkpoint_counts_while_the_lora_before_it_cannot_be_put(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, checkpoint={**CHECKPOINT, "everySteps": 1})
    with faults.proxy(trainers.s3.endpoint) as proxy:
        proxy.faults.append(Fault(Kind.REFUSE, contains="/intermediate/", times=10_000))
        storage = run.config.storage.model_copy(update={"endpoint": proxy.endpoint})
        attempt = run.start(storage=storage)
        deadline = time.monotonic() + LIMIT
        while not any("could not be saved" in str(line.get("note")) for line in attempt.lines):
            assert time.monotonic() < deadline, attempt.tail()
            time.sleep(0.02)
        attempt.kill(signal.SIGKILL)
        attempt.end()
    assert [entry.step for entry in run.head.checkpoints] == [1]


def test_a_notice_too_short_for_the_lora_of_the_last_step(trainers: Trainers, name: str) -> None:
    """The state was saved without it, and no step follows with whose checkpoint it could be put."""
    run = trainers.run(name, training={"steps": 2}, checkpoint={"everySteps": 50, "keepIntermediate": {"steps": [2]}})
    with faults.proxy(trainers.s3.endpoint) as proxy:
        proxy.faults.append(Fault(Kind.REFUSE, contains="/intermediate/", times=10_000))
        first = run.start(storage=run.config.storage.model_copy(update={"endpoint": proxy.endpoint}))
        first.wait_for_phase("Saving")
        first.kill(signal.SIGTERM)
        assert first.end(30) == 75, first.tail()
    assert [entry.step for entry in run.head.checkpoints] == [2]
    assert copies(run) == []
    run.finish()
    assert "step-000002.safetensors" in files(run), run.attempts[-1].tail()


def test_loras_of_an_artifact_that_was_not_the_last_go_on(
    trainers: Trainers, undisturbed: dict[str, str], name: str
) -> None:
    run = trainers.run(name, training={"steps": 4}, checkpoint=CHECKPOINT)
    run.finish()
    before = files(run)
    assert before["step-000004.safetensors"] == before["pytorch_lora_weights.safetensors"]
    assert before["step-000004_kohya.safetensors"] == before["lora_kohya.safetensors"]
    assert copies(run) == []
    training = run.config.training.model_copy(update={"steps": 6})
    run.finish(training=training)
    assert files(run) == undisturbed
    artifact = run.head.artifact
    assert artifact is not None
    assert artifact.step == 6


def test_a_choice_that_came_too_late_is_told(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, checkpoint={"everySteps": 3})
    first = run.start()
    first.wait_for_checkpoint(3)
    first.kill(signal.SIGKILL)
    first.end()
    late = run.config.checkpoint.model_validate(CHECKPOINT)
    second = run.finish(checkpoint=late)
    notes = [line for line in second.lines if "type" not in line]
    assert any("the LoRA of step 2 is not there and left out" in str(note) for note in notes), second.tail()
    assert "step-000002.safetensors" not in files(run)
    card = run.file("README.md").decode()
    assert "step-000004_kohya" in card
    assert "step-000002" not in card, "the card names what is not there"


def test_too_many_chosen_steps_are_refused(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 200}, checkpoint={"keepIntermediate": {"everySteps": 1}})
    attempt = run.start()
    assert attempt.end() == 78
    assert attempt.last_words.reason == "InvalidConfig"
    assert "chooses 200 of 200 steps, and at most 64" in attempt.last_words.message
