"""One line for every step, whatever happened to the attempts, and the same in TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.contract import layout
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.telling import metrics
from lorafinetune_trainer.telling.metrics import Metrics, line
from tests.integration.trainer.process import Run, Trainers
from tests.integration.trainer.s3 import BUCKET, Access

COUNTS = {"steps": 8}


def lines_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run.file("metrics.jsonl").splitlines()]


def curve(folder: Path) -> list[tuple[int, float]]:
    """Return the losses that ``tensorboard --logdir`` reads below *folder*: there is one run."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    found = EventMultiplexer(tensor_size_guidance={"scalars": 0}).AddRunsFromDirectory(str(folder)).Reload()
    (run,) = found.Runs()
    return [(one.step, float(one.tensor_proto.float_val[0])) for one in found.Tensors(run, "train/loss")]


def copy(run: Run, prefix: str, folder: Path) -> Path:
    """Copy what lies below *prefix*, as somebody does who syncs it."""
    for one in run.bucket.walk(prefix):
        path = folder / one.key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(run.bucket.get(one.key).body)
    return folder


def test_lines_are_continuous_over_attempts_that_were_killed(trainers: Trainers, name: str, tmp_path: Path) -> None:
    undisturbed = trainers.run(f"{name}-whole", training=COUNTS)
    undisturbed.finish()
    wanted = lines_of(undisturbed)
    assert [one["step"] for one in wanted] == list(range(1, 9))
    assert {one["attempt"] for one in wanted} == {1}
    assert set(wanted[0]) == {
        "step", "attempt", "time", "loss", "learningRate", "gradientNorm", "secondsPerStep", "imagesPerSecond",
        "memoryBytes",
    }  # fmt: skip

    run = trainers.run(name, training=COUNTS, metrics={"tensorBoard": True}, checkpoint={"everySteps": 3})
    killed = run.start()
    killed.wait_for_checkpoint(3)
    killed.wait_for(lambda event: event["step"] >= 4)
    killed.kill()
    killed.end()
    yielded = run.start()
    yielded.wait_for(lambda event: event["type"] == "progress" and event.get("loss") and event["step"] >= 4)
    yielded.kill(signal.SIGTERM)
    assert yielded.end() == 75
    run.finish()

    found = lines_of(run)
    assert [(one["step"], one["loss"]) for one in found] == [(one["step"], one["loss"]) for one in wanted]
    assert [one["attempt"] for one in found[:3]] == [1] * 3
    assert found[-1]["attempt"] == 3
    assert sorted(one["attempt"] for one in found) == [one["attempt"] for one in found]

    losses = [(one["step"], one["loss"]) for one in wanted]
    artifact = run.head.artifact
    assert artifact is not None
    for folder in (layout.METRICS, f"{artifact.folder}tensorboard/"):
        shown = curve(copy(run, folder, tmp_path / str(len(folder))))
        assert [step for step, _ in shown] == [step for step, _ in losses], folder
        assert all(abs(ours - theirs) < 1e-6 for (_, ours), (_, theirs) in zip(shown, losses, strict=True)), folder


def place(s3: Access, name: str) -> Bucket:
    return s3.bucket(f"s3://{BUCKET}/metrics-{name}/")


def kept(bucket: Bucket, attempt: int, step: int = 0, notes: list[str] | None = None) -> Metrics:
    def note(message: str) -> None:
        assert notes is not None, message
        notes.append(message)

    return Metrics(bucket, bucket, attempt=attempt, step=step, tensor_board=True, note=note)


def train(metrics: Metrics, attempt: int, steps: range) -> None:
    for step in steps:
        metrics.add(line(step, attempt, loss=float(attempt), gradientNorm=math.nan))


def parts(bucket: Bucket) -> list[str]:
    return [one.key for one in bucket.walk(layout.METRICS) if one.key.endswith(".jsonl")]


def test_parts_stay_small_and_few(s3: Access, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PART_LINES", 10)
    bucket = place(s3, name)
    one = kept(bucket, 1)
    for step in range(1, 36):  # a checkpoint after every step
        train(one, 1, range(step, step + 1))
        one.put(step)
    assert [key.removeprefix(layout.METRICS) for key in parts(bucket)] == [
        f"000001-00000{number}.jsonl" for number in range(4)
    ]
    assert [len(bucket.get(key).body.splitlines()) for key in parts(bucket)] == [10, 10, 10, 5]
    assert [one["step"] for one in metrics.read(bucket, 35)] == list(range(1, 36))
    assert "gradientNorm" not in metrics.read(bucket, 35)[0], "NaN is no JSON"
    monkeypatch.setattr(metrics, "MAX_LINES", 10)
    assert [one["step"] for one in metrics.read(bucket, 35)] == [4, 8, 12, 16, 20, 24, 28, 32, 35]


def test_steps_that_are_done_during_a_save_are_not_lost(s3: Access, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PART_LINES", 4)
    bucket = place(s3, name)
    one = kept(bucket, 1)
    train(one, 1, range(1, 4))
    put, meanwhile = bucket.put, iter([range(4, 7)])

    def slow_put(key: str, body: bytes) -> None:
        put(key, body)
        for steps in meanwhile:  # the part that has just been put is filled, and another begun
            train(one, 1, steps)

    monkeypatch.setattr(bucket, "put", slow_put)
    one.put(3)
    one.put(6)
    assert [found["step"] for found in metrics.read(bucket, 6)] == [1, 2, 3, 4, 5, 6]


def test_what_waits_for_the_bucket_is_bounded(s3: Access, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PART_LINES", 2)
    monkeypatch.setattr(metrics, "MAX_WAITING", 3)
    notes: list[str] = []
    one = kept(s3.bucket("s3://no-such-bucket/run/"), 1, notes=notes)
    train(one, 1, range(1, 10))
    with pytest.raises(errors.StorageError):
        one.put(9)
    assert len(notes) == 2
    one._bucket = bucket = place(s3, name)  # what could not be put is put by the next save
    one.put(9)
    assert [found["step"] for found in metrics.read(bucket, 9)] == [5, 6, 7, 8, 9]


def test_a_save_waits_for_the_line_of_its_step(s3: Access, name: str) -> None:
    bucket = place(s3, name)
    one = kept(bucket, 1)
    train(one, 1, range(1, 3))
    late = threading.Timer(0.2, train, (one, 1, range(3, 4)))
    late.start()
    one.put(3, deadline=math.inf)
    late.join()
    assert [found["step"] for found in metrics.read(bucket, 3)] == [1, 2, 3]


def test_many_attempts_are_put_together(s3: Access, name: str, tmp_path: Path) -> None:
    """Every attempt does two steps anew and one more; what is left of seventy of them is one part and its own."""
    bucket = place(s3, name)
    for attempt in range(1, 71):
        one = kept(bucket, attempt, step=attempt - 1)
        one.fold()
        train(one, attempt, range(attempt, attempt + 3))
        one.put(attempt + 2)
    assert len(parts(bucket)) < metrics.FOLD_FROM
    found = metrics.read(bucket, 72)
    assert [(one["step"], one["attempt"]) for one in found] == [(step, min(step, 70)) for step in range(1, 73)]
    for one in bucket.walk(layout.METRICS):
        path = tmp_path / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(one.key).body)
    assert curve(tmp_path) == [(step, float(min(step, 70))) for step in range(1, 73)]
