"""Processes started from nothing, on CPUs that show other vector units: the same bytes, and no encoder's code."""

from __future__ import annotations

import hashlib
import signal

from lorafinetune.contract import layout
from lorafinetune_trainer import instructions
from tests.integration.trainer.process import Run, Trainer, Trainers

NARROW = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
"""What the libraries read as: this CPU has no more than this."""
TOLD = {"PYTHONPROFILEIMPORTTIME": "1"}
TRAINING = {"diffusers.models.unets.unet_2d_blocks"}
ENCODING = {"diffusers.models.autoencoders.vae", "transformers.models.clip.configuration_clip"}
NEVER = {"torch._dynamo.eval_frame", "torch._dynamo.utils", "sympy", "networkx", "scipy", "peft"}


def imported(attempt: Trainer) -> set[str]:
    """The modules that a process has told that it imported; a few are not told, by Python's own doing."""
    lines = (attempt.folder / "output").read_text().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def digest(run: Run) -> str:
    return hashlib.sha256(run.file(layout.LORA)).hexdigest()


def test_resumed_in_a_new_process_on_a_cpu_with_other_vector_units(trainers: Trainers, name: str) -> None:
    undisturbed = trainers.run(f"{name}-whole")
    whole = undisturbed.start()
    run = trainers.run(name)
    first = trainers.start(run.config, [], cold=True, environment={**NARROW, **TOLD})
    first.wait_for_checkpoint(2)
    first.kill(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    plan = run.head.plan
    assert plan is not None
    assert plan.instructions == instructions.best()
    second = trainers.start(run.config, [], cold=True, environment=TOLD)
    assert second.end() == 0, second.tail()
    assert second.of_type("started")[0]["step"] >= 2
    assert not [one for one in second.events if "may differ" in one.get("message", "")]
    assert whole.end() == 0, whole.tail()
    assert digest(run) == digest(undisturbed)
    before, after = imported(first), imported(second)
    assert before >= {*TRAINING, *ENCODING}
    assert after >= TRAINING
    assert not after & ENCODING
    assert not after & NEVER, "imported for nothing"
