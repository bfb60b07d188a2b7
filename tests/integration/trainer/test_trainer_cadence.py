"""When checkpoints are made by what they cost: the LoRA's bytes are those of any other cadence, and it is told."""

from __future__ import annotations

import json
import signal
from typing import Final

from tests.integration.trainer.process import CONSTANTS, Trainers

OFTEN: Final = {
    CONSTANTS: json.dumps(
        {f"lorafinetune.contract.cadence.{name}": 0.001 for name in ("SHORTEST", "FIRST", "FIRST_COST")}
    )
}
"""Bounds for a training that takes a second."""


def test_another_cadence_gives_the_same_bytes(trainers: Trainers, name: str) -> None:
    often = trainers.run(f"{name}-often", training={"steps": 12}, checkpoint={"everySteps": 1})
    often.finish()
    run = trainers.run(name, training={"steps": 12}, checkpoint={"everySteps": None, "lifetimeSeconds": 2.0})
    first = trainers.start(run.config, [], environment=OFTEN)
    first.wait_for_checkpoint(3)
    first.kill(signal.SIGKILL)
    first.end()
    again = trainers.start(run.config, [], environment=OFTEN)
    assert again.end() == 0, again.tail()
    assert run.file() == often.file()
    made = [event["step"] for one in (first, again) for event in one.of_type("checkpoint")]
    assert len(made) >= 3, "several checkpoints, by their cost"
    told = [event for event in again.of_type("progress") if "checkpointEverySteps" in event]
    assert told, again.tail()
    assert all(event["checkpointEverySteps"] >= 1 for event in told)


def test_a_run_shorter_than_the_first_interval_saves_its_end(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, checkpoint={"everySteps": None})
    attempt = run.finish()
    assert [event["step"] for event in attempt.of_type("checkpoint")] == [6]
    assert attempt.of_type("checkpoint")[0]["checkpoint"]["step"] == 6
