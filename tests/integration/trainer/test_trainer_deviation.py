"""A run that went on elsewhere than its plan says: the head knows which checkpoints stand on such steps."""

from __future__ import annotations

import signal

from lorafinetune.contract import canonical, layout
from tests.integration.trainer.process import Run, Trainer, Trainers


def interrupt(run: Run, step: int) -> Trainer:
    attempt = run.start()
    attempt.wait_for_checkpoint(step)
    attempt.kill(signal.SIGKILL)
    attempt.end()
    return attempt


def test_checkpoints_that_stand_on_steps_of_another_device_say_so(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 300})
    interrupt(run, 2)
    assert [entry.deviation for entry in run.head.checkpoints] == [None] * len(run.head.checkpoints)
    planned = run.head.plan
    assert planned is not None

    def plan_for(device: str) -> None:
        head = run.head.model_copy(update={"plan": planned.model_copy(update={"device": device})})
        run.bucket.put(layout.HEAD, canonical.encode(head.to_json()))

    plan_for("NVIDIA H100")
    before = run.head.checkpoints[-1].step
    interrupt(run, before + 4)
    words = f"attempt 2: NVIDIA H100 became {planned.device}"
    assert {entry.deviation for entry in run.head.checkpoints if entry.attempt == 2} == {words}
    # Where the next one is as the plan says, its state still stands on those steps.
    plan_for(planned.device)
    newest = run.head.checkpoints[-1].step
    last = trainers.start(
        run.config.model_copy(update={"training": run.config.training.model_copy(update={"steps": newest + 2})}), []
    )
    assert last.end() == 0, last.tail()
    assert {entry.deviation for entry in run.head.checkpoints} == {words}
    artifact = run.head.artifact
    assert artifact is not None
    assert artifact.deviation == words
    (finished,) = last.of_type("finished")
    assert finished["artifact"]["deviation"] == words
