"""training.lora.initFrom: a run begins with an existing LoRA, in every attempt that begins at all."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainer.adapters import Kind, begun_with
from tests.integration.trainer.process import Run, Trainers, in_preloaded

STANDING_STILL = 1e-12
"""A learning rate with which the published LoRA is the one that the run began with."""


@pytest.fixture(scope="module")
def existing(trainers: Trainers) -> Run:
    run = trainers.run("existing", training={"steps": 2})
    run.finish()
    trainers.s3.bucket("s3://loras/existing/").put("kohya.safetensors", run.file("lora_kohya.safetensors"))
    return run


def settings(source: str = "s3://loras/existing/kohya.safetensors", **lora: Any) -> dict[str, Any]:
    return {
        "steps": 2,
        "learningRate": STANDING_STILL,
        "emaDecay": 0.9,
        "lora": {"rank": 4, "alpha": 2, "initFrom": source, **lora},
    }


def test_the_lora_of_another_run_is_where_it_begins(trainers: Trainers, existing: Run, name: str) -> None:
    from lorafinetune_trainer.saving import state

    run = trainers.run(name, training=settings(), checkpoint={"everySteps": 50})
    # Killed before a checkpoint, so that the second attempt begins anew; with another file it may not.
    first = run.start()
    first.wait_for(lambda event: event["step"] >= 1)
    first.kill(signal.SIGKILL)
    first.end()
    assert run.head.checkpoints == []
    place = trainers.s3.bucket("s3://loras/existing/")
    whole = place.get("kohya.safetensors").body
    place.put("kohya.safetensors", whole[:-4] + b"\0\0\0\0")
    second = run.start()
    assert second.end() == 78
    assert second.last_words.reason == "PlanMismatch"
    assert "training.lora.initFrom" in second.last_words.message
    place.put("kohya.safetensors", whole)
    run.finish()
    found, metadata = state.decode(run.file())
    truth = state.decode(existing.file()).tensors
    assert found.keys() == truth.keys()
    assert all(bool((found[one] - truth[one]).abs().max() < 1e-6) for one in truth)
    assert any(bool(truth[one].abs().max() > 1e-3) for one in truth if ".lora_B." in one)
    assert "lorafinetune.initialLoraDigest" in metadata


THEIRS = {
    "alpha": Kind(alpha=6.0),
    "all, text encoders, rsLoRA": Kind(targets="All", text_encoder=True, rs_lora=True),
    "DoRA": Kind(targets="All", dora=True),
}


@pytest.fixture(scope="module")
def begun(tiny_model: Path) -> dict[str, dict[str, float]]:
    return dict(zip(THEIRS, in_preloaded(begun_with, str(tiny_model), list(THEIRS.values())), strict=True))


@pytest.mark.parametrize("kind", THEIRS)
def test_a_lora_of_peft_saved_by_diffusers_paints_the_same_where_a_run_begins(
    kind: str, begun: dict[str, dict[str, float]]
) -> None:
    assert begun[kind]["moved"] > 0.05
    assert begun[kind]["picture"] < 1e-3


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (settings(rank=8), "set training.lora.rank: 4"),
        (settings("s3://loras/existing/nothing.safetensors"), "there is no s3://loras/existing/nothing"),
        (settings("/nowhere.safetensors"), "cannot be read"),
    ],
    ids=["rank", "missing", "no file"],
)
def test_what_cannot_be_started_from_ends_before_anything_is_computed(
    training: dict[str, Any], words: str, trainers: Trainers, existing: Run, name: str
) -> None:
    run = trainers.run(name, training=training)
    attempt = run.start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == "InvalidLora"
    assert words in attempt.last_words.message
    assert not any(event.get("phase") == "Conditioning" for event in attempt.events)
