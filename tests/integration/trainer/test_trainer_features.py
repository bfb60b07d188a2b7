"""Runs with what needs more than the UNet: killed in the middle, and not one byte of the LoRA differs."""

from __future__ import annotations

import hashlib
import signal
from typing import Any

from lorafinetune.contract.layout import LORA
from tests.integration.trainer.process import Run, Trainers


def sha(run: Run) -> str:
    return hashlib.sha256(run.file(LORA)).hexdigest()


def test_text_encoders_are_trained_on_a_resume_too(trainers: Trainers, name: str) -> None:
    settings: dict[str, Any] = {
        "lora": {"rank": 4, "textEncoder": True},
        "optimizer": "Prodigy",
        "learningRate": 1.0,
        "emaDecay": 0.9,
        "captions": {"dropout": 0.3},
        "schedule": "cosine",
        "warmupSteps": 2,
        "precision": "bf16",
    }
    undisturbed = trainers.run(f"{name}-whole", training=settings)
    undisturbed.finish()
    run = trainers.run(name, training=settings)
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill(signal.SIGKILL)
    first.end()
    second = run.finish()
    assert second.of_type("started")[0]["step"] >= 2
    plan = run.head.plan
    assert plan is not None
    assert plan.micro_batch == run.config.training.images_per_step
    assert sha(run) == sha(undisturbed)
