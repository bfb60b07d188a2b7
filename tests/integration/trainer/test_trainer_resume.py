"""Promises 1 and 2: what is lost by a preemption, and that the LoRA's bytes do not show one."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import layout
from lorafinetune.contract.event import Phase
from tests.integration.trainer.faults import Fault, Kind, proxy
from tests.integration.trainer.process import Line, Run, Trainer, Trainers

LORA, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"


WHOLE: dict[str, Any] = {
    "dataset": {
        "instancePrompt": "sks timber dog, a photo, outside",
        "classPrompt": "a photo of a dog",
    },
    "training": {
        "randomCrop": True,
        "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.2},
        "warmupSteps": 3,
        "schedule": "cosine",
        "emaDecay": 0.9,
        "minSnrGamma": 5,
        "noiseOffset": 0.05,
    },
    "checkpoint": {"everySteps": 2, "keepIntermediate": {"steps": [3]}},
    "validation": {"prompts": ["a photo of sks dog"], "everySteps": 3, "inferenceSteps": 1},
}
"""All that draws, remembers or interrupts, on top of flips and buckets. Three images and two a step: epochs end within
steps, and a step later in every second one."""


def begin(trainers: Trainers, name: str, **changes: Any) -> Run:
    """Make a run with all of that; *changes* replace parts of its config."""
    classes = {"dataset": {"classSource": str(trainers.photos), **changes.pop("dataset", {})}}
    changes |= classes
    merged = {place: {**WHOLE.get(place, {}), **changes.get(place, {})} for place in WHOLE} | {
        place: value for place, value in changes.items() if place not in WHOLE
    }
    return trainers.run(name, **merged)


def hashes(run: Run) -> list[str]:
    return [hashlib.sha256(run.file(name)).hexdigest() for name in (LORA, KOHYA)]


@pytest.fixture(scope="module")
def undisturbed(trainers: Trainers) -> Run:
    run = begin(trainers, "undisturbed")
    run.finish()
    return run


def test_an_undisturbed_run_ends_with_the_artifact_and_two_checkpoints(undisturbed: Run) -> None:
    (attempt,) = undisturbed.attempts
    types = [event["type"] for event in attempt.events if event["type"] != "progress"]
    assert types == ["started", "checkpoint", "checkpoint", "checkpoint", "finished"]
    sequences = [event["sequence"] for event in attempt.events]
    assert sequences == sorted(set(sequences))
    assert attempt.last_words.exit_code == 0
    assert attempt.last_words.durable_step == 6
    head = undisturbed.head
    assert [entry.step for entry in head.checkpoints] == [4, 6]
    assert head.garbage == []
    assert head.artifact is not None
    assert attempt.of_type("finished")[0]["artifact"]["manifestSha256"] == head.artifact.manifest_sha256
    folders = {one.key.split("/")[1] for one in undisturbed.bucket.walk("checkpoints/")}
    assert folders == {"1-4", "1-6"}


def test_the_weights_moved(undisturbed: Run) -> None:
    from lorafinetune_trainer.saving import state

    tensors, metadata = state.decode(undisturbed.file())
    moved = [name for name, tensor in tensors.items() if ".lora_B." in name and bool(tensor.abs().max() > 1e-4)]
    assert len(moved) == len(tensors) / 2
    assert "undisturbed" not in str(metadata)


def _conditioned(attempt: Trainer) -> Line:
    return attempt.wait_for(lambda event: event["phase"] == "Conditioning" and "of" in event["message"])


KILLS = {
    "while scanning": lambda attempt: attempt.wait_for_phase("Scanning"),
    "while fetching": lambda attempt: attempt.wait_for_phase("Downloading"),
    "while conditioning": lambda attempt: attempt.wait_for_phase("Conditioning"),
    "conditioned": _conditioned,
    "while loading": lambda attempt: attempt.wait_for_phase("Resuming"),
    "in the first step": lambda attempt: attempt.wait_for_phase("Training"),
    "after a checkpoint": lambda attempt: attempt.wait_for_checkpoint(2),
    "while validating": lambda attempt: attempt.wait_for_phase("Validating"),
    "after two checkpoints": lambda attempt: attempt.wait_for_checkpoint(4),
    "while saving the last": lambda attempt: attempt.wait_for_phase("Saving"),
    "while exporting": lambda attempt: attempt.wait_for_phase("Exporting"),
}
PUBLISHED = ("while saving the last", "while exporting")
"""Where a SIGTERM may find the artifact about to be published: that is then finished."""


def _cases(quick: Iterable[str], every: Iterable[str]) -> list[Any]:
    """Parameters: what is not quick is left to make test-long."""
    return [pytest.param(one, marks=[] if one in quick else pytest.mark.long) for one in every]


@pytest.mark.parametrize("moment", _cases(["conditioned", "in the first step", "while exporting"], KILLS))
def test_killed_without_notice_at(moment: str, trainers: Trainers, undisturbed: Run, name: str) -> None:
    run = begin(trainers, name)
    first = run.start()
    KILLS[moment](first)
    first.kill(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    told = max((event["step"] for event in first.of_type("checkpoint")), default=0)
    second = run.finish()
    resumed = second.of_type("started")[0]["step"]
    assert resumed >= told
    done = max(event["step"] for event in first.events)
    assert done - resumed <= 2, "more than the interval was lost"
    assert hashes(run) == hashes(undisturbed)


@pytest.mark.parametrize(
    "moment",
    _cases(
        [
            "while fetching",
            "while conditioning",
            "in the first step",
            "while validating",
            "while saving the last",
            "while exporting",
        ],
        KILLS,
    ),
)
def test_sigterm_loses_no_step_at(moment: str, trainers: Trainers, undisturbed: Run, name: str) -> None:
    run = begin(trainers, name)
    first = run.start()
    phase = KILLS[moment](first)["phase"]
    done = max(event["step"] for event in first.events)
    first.kill(signal.SIGTERM)
    code = first.end(20)
    words = first.last_words
    assert code in (75, 0), first.tail()
    if code == 0:
        assert moment in PUBLISHED
    else:
        assert words.exit_code == 75
        assert words.durable_step == words.step >= done
        (yielded,) = first.of_type("yielded")
        assert yielded["step"] == words.step
        assert yielded["phase"] == words.phase
        phases = list(Phase)
        assert phases.index(Phase(yielded["phase"])) >= phases.index(Phase(phase)) or phase == "Validating"
        assert yielded["saved"] == ("none" if words.step == 0 else yielded["saved"])
        assert not list(first.folder.glob("lorafinetune-*")), "the scratch folder is still there"
        second = run.finish()
        assert second.of_type("started")[0]["step"] == words.step
    assert hashes(run) == hashes(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_while_class_images_are_made(number: signal.Signals, trainers: Trainers, name: str) -> None:
    made = {"dataset": {"classSource": None, "classImages": 2}}
    reference, run = begin(trainers, f"{name}-whole", **made), begin(trainers, name, **made)
    reference.finish()
    first = run.start()
    first.wait_for(lambda event: event.get("phase") == "Generating" and event.get("done") == 1)
    first.kill(number)
    assert first.end(30) in (-signal.SIGKILL, 75)
    run.finish()
    assert hashes(run) == hashes(reference)


SAVES = {
    "part": ("/1-2/state-", b""),
    "manifest": ("/1-2/manifest.json", b""),
    "head": (f"/{layout.HEAD}", b'"step":2'),
    "metrics": (f"/{layout.METRICS}", b""),
}


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("part", signal.SIGTERM),
        ("head", signal.SIGKILL),
        pytest.param("part", signal.SIGKILL, marks=pytest.mark.long),
        pytest.param("head", signal.SIGTERM, marks=pytest.mark.long),
        *(
            pytest.param(where, number, marks=pytest.mark.long)
            for where in ("manifest", "metrics")
            for number in (signal.SIGKILL, signal.SIGTERM)
        ),
    ],
)
def test_ended_inside_a_save(
    where: str, number: signal.Signals, trainers: Trainers, undisturbed: Run, name: str
) -> None:
    path, body = SAVES[where]
    with proxy(trainers.s3.endpoint) as between:
        between.faults = [Fault(Kind.HOLD, "PUT", contains=path, body=body)]
        run = begin(trainers, name, storage={"endpoint": between.endpoint})
        first = run.start()
        eventually(lambda: between.happened, 60, "it is saving")
        first.kill(number)
        threading.Timer(0.5, between.let_go.set).start()
        assert first.end(20) in (-signal.SIGKILL, 75)
        second = run.finish()
    if number is signal.SIGTERM:
        assert second.of_type("started")[0]["step"] == first.last_words.step >= 2
    assert hashes(run) == hashes(undisturbed)


def test_stopped_after_every_step(trainers: Trainers, undisturbed: Run, name: str) -> None:
    run = begin(trainers, name, checkpoint={"everySteps": 1})
    for step in range(1, 6):
        attempt = run.start()
        attempt.wait_for_checkpoint(step)
        attempt.kill(signal.SIGTERM if step % 2 else signal.SIGKILL)
        if attempt.end(20) == 0:
            break
    run.finish()
    assert hashes(run) == hashes(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_ended_at_random(seed: int, trainers: Trainers, undisturbed: Run, name: str) -> None:
    """Up to five attempts, each ended at a random moment, with notice or without."""
    keys = random.Random(seed)
    run = begin(trainers, name)
    for _ in range(5):
        attempt = run.start()
        attempt.wait_for(lambda event: event["type"] == "started")
        attempt.process.join(keys.uniform(0.0, 6.0))
        if not attempt.process.is_alive():
            break
        attempt.kill(keys.choice([signal.SIGKILL, signal.SIGTERM]))
        if attempt.end(30) == 0:
            break
    else:
        run.finish()
    assert hashes(run) == hashes(undisturbed)


def test_sigterm_does_not_wait_for_a_long_step(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"gradientAccumulation": 40, "steps": 50}, checkpoint={"everySteps": 50})
    attempt = run.start()
    done = attempt.wait_for(lambda event: event["step"] >= 1)
    attempt.kill(signal.SIGTERM)
    assert attempt.end(20) == 75
    words = attempt.last_words
    assert (words.step, words.durable_step, words.saved) == (1, 1, "new")
    took = attempt.of_type("yielded")[0]["time"] - done["time"]
    assert took < done["secondsPerStep"] / 2, f"{took} s, and a step takes {done['secondsPerStep']} s"


def test_sigterm_in_the_first_moment(trainers: Trainers, name: str) -> None:
    """As soon as the process hears it, long before torch has been imported."""
    attempt = trainers.start(trainers.run(name).config, [], cold=True)
    heard = 1 << (signal.SIGTERM - 1)
    deadline = time.monotonic() + 30
    while (
        not int(re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{attempt.process.pid}/status").read_text())[0], 16) & heard
    ):
        assert time.monotonic() < deadline
    attempt.kill(signal.SIGTERM)
    assert attempt.end(30) == 75
    assert "torch" not in attempt.tail()


def test_sigterm_while_importing(trainers: Trainers, name: str, tmp_path: Path) -> None:
    """An import that does not end (a stand-in for torch from a cold disk) is not waited for."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    attempt = trainers.start(trainers.run(name).config, [], cold=True, environment={"PYTHONPATH": path})
    attempt.wait_for(lambda event: event["type"] == "started")
    attempt.kill(signal.SIGTERM)
    assert attempt.end(30) == 75
    assert attempt.last_words.saved == "none"


def test_sigterm_with_an_output_that_nobody_reads(trainers: Trainers, name: str) -> None:
    """All that tells is stuck: the training goes on, and at SIGTERM the step is saved without waiting for anyone."""
    run = trainers.run(name, training={"steps": 5000}, noticeSeconds=100)
    attempt = trainers.start(run.config, [], fifo=True)
    deadline = time.monotonic() + 60
    while not trainers.fifo_is_full():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    full = run.head.newest
    while run.head.newest is None or (full is not None and run.head.newest.step < full.step + 10):
        assert time.monotonic() < deadline, "the training waits for its reader"
        time.sleep(0.1)
    attempt.kill(signal.SIGTERM)
    assert attempt.end(45) == 75, "its end waits for its reader, as long as the notice"
    words = attempt.last_words
    assert words.saved in ("new", "durable")
    assert run.head.newest is not None
    assert run.head.newest.step == words.step == words.durable_step


def test_a_second_sigterm_and_ctrl_c_change_nothing(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, training={"steps": 500}, checkpoint={"everySteps": 500})
    attempt = run.start()
    attempt.wait_for(lambda event: event["step"] >= 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        attempt.kill(number)
    assert attempt.end(20) == 75
    assert attempt.last_words.saved == "new"
    assert len(attempt.of_type("yielded")) == 1
    assert run.head.newest is not None
    assert run.head.newest.step == attempt.last_words.step
