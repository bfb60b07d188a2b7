"""Promises 1 and 2: what is lost by a preemption, and that the LoRA's bytes do not show one."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import layout
from lorafinetune.contract.event import Phase
from tests.integration.trainer.faults import Fault, Kind, proxy
from tests.integration.trainer.process import Line, Run, Trainer, Trainers
from tests.integration.trainer.whole import begin, hashes


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


MOMENTS = {
    "while fetching": lambda attempt: attempt.wait_for_phase("Downloading"),
    "while conditioning": lambda attempt: attempt.wait_for_phase("Conditioning"),
    "conditioned": _conditioned,
    "in the first step": lambda attempt: attempt.wait_for_phase("Training"),
    "while validating": lambda attempt: attempt.wait_for_phase("Validating"),
    "while saving the last": lambda attempt: attempt.wait_for_phase("Saving"),
    "while exporting": lambda attempt: attempt.wait_for_phase("Exporting"),
}
"""Some of them, with real processes and signals; every moment is in test_trainer_exact.py, in one process."""
PUBLISHED = ("while saving the last", "while exporting")
"""Where a SIGTERM may find the artifact about to be published: that is then finished."""


@pytest.mark.parametrize("moment", ["conditioned", "in the first step", "while exporting"])
def test_killed_without_notice_at(moment: str, trainers: Trainers, undisturbed: Run, name: str) -> None:
    run = begin(trainers, name)
    first = run.start()
    MOMENTS[moment](first)
    first.kill(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    told = max((event["step"] for event in first.of_type("checkpoint")), default=0)
    second = run.finish()
    resumed = second.of_type("started")[0]["step"]
    assert resumed >= told
    done = max(event["step"] for event in first.events)
    assert done - resumed <= 2, "more than the interval was lost"
    assert hashes(run) == hashes(undisturbed)


@pytest.mark.parametrize("moment", [one for one in MOMENTS if one != "conditioned"])
def test_sigterm_loses_no_step_at(moment: str, trainers: Trainers, undisturbed: Run, name: str) -> None:
    run = begin(trainers, name)
    first = run.start()
    phase = MOMENTS[moment](first)["phase"]
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


SAVES = {
    "part": ("/1-2/state-", b""),
    "head": (f"/{layout.HEAD}", b'"step":2'),
}


@pytest.mark.parametrize(("where", "number"), [("part", signal.SIGTERM), ("head", signal.SIGKILL)])
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
@pytest.mark.parametrize("seed", range(4))
def test_ended_at_random(seed: int, trainers: Trainers, undisturbed: Run, name: str) -> None:
    """Up to five attempts, each ended at a random moment, with notice or without: also inside what is one call."""
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


def test_ended_right_after_a_checkpoint_nothing_is_saved_again(trainers: Trainers, name: str) -> None:
    """As the operator ends an attempt that is to go on elsewhere."""
    with proxy(trainers.s3.endpoint) as between:
        run = trainers.run(
            name,
            training={"gradientAccumulation": 40, "steps": 50},
            checkpoint={"everySteps": 1},
            storage={"endpoint": between.endpoint},
        )
        attempt = run.start()
        attempt.wait_for_checkpoint(1)
        before = len(between.seen)
        attempt.kill(signal.SIGTERM)
        assert attempt.end(20) == 75
        put = [path for method, path in between.seen[before:] if method == "PUT" and "/checkpoints/" in path]
    words = attempt.last_words
    assert (words.step, words.durable_step, words.saved) == (1, 1, "durable")
    assert put == []
    assert [entry.id for entry in run.head.checkpoints] == ["1-1"]


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


def test_a_terminal_that_goes_away_loses_no_step(trainers: Trainers, name: str) -> None:
    """A connection that broke: SIGHUP, and an output that takes nothing any more."""
    ours, theirs = os.openpty()
    run = trainers.run(name, training={"steps": 500}, checkpoint={"everySteps": 500})
    attempt = trainers.start(run.config, [], terminal=Path(os.ttyname(theirs)))
    shown = b""
    while b"1/500" not in shown:
        shown += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    attempt.kill(signal.SIGHUP)
    assert attempt.end() == 75
    assert run.head.newest is not None
    assert run.head.newest.step == attempt.last_words.step >= 1
