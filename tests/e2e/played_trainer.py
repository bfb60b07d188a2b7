"""A trainer that only plays: real claim, checkpoints, events and exit codes, and nothing is trained in between.

It is for what does not hang on what a trainer computes: the real one takes ten seconds to start. A run asks for it by
its prompt, ``played {"saves": false}``; any other run gets the real trainer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import NoReturn

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Phase, Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import CheckpointEntry, Fenced, Head, HeadLost
from lorafinetune.contract.manifest import File, Manifest, SaveReason
from lorafinetune.contract.runconfig import ENV_POD_UID, ENV_RUN_CONFIG, RunConfig

PLAYED = "played "
TICK = 0.5
"""Seconds that a step takes; what is told of its pace is another matter."""


@dataclass(frozen=True)
class Part:
    """What is played."""

    saves: bool = True
    every: int = 6
    """Steps between two checkpoints."""
    pace: float = 1.0
    """Seconds that a step is said to take."""
    disk_full: int = 0
    """The attempt that finds its node's disk full."""


def prompt(part: Part) -> str:
    """Return the prompt by which a run asks for *part*."""
    return PLAYED + json.dumps(vars(part))


def play(config: RunConfig, part: Part, number: int, pod_uid: str, *, expects_head: bool) -> ExitCode:
    """Claim, then do steps until SIGTERM."""
    from lorafinetune.storage import head as stored
    from lorafinetune.storage import inventory
    from lorafinetune_trainer import places
    from lorafinetune_trainer.saving.checkpoints import Checkpoints
    from lorafinetune_trainer.telling.report import Reporter

    told_to_stop, fenced = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    bucket = places.open_prefix(config)
    head = Checkpoints(bucket, bucket.hasty(5.0), config, pod_uid).claim(number, expect_head=expects_head)

    def on_stop(_reason: str, _message: str) -> None:
        fenced.set()
        told_to_stop.set()

    reporter = Reporter(run_uid=config.run.uid, attempt=number, webhook=config.webhook, on_stop=on_stop)
    reporter.total_steps = config.training.steps
    step = durable = head.checkpoints[-1].step if head.checkpoints else 0
    reporter.tell(EventType.STARTED, step, phase=Phase.STARTING)
    if part.disk_full == number:
        reporter.flush(2.0)
        return ExitCode.DISK_FULL

    def save(reason: SaveReason) -> None:
        body, folder = f"step {step}".encode(), layout.checkpoint(number, step)
        bucket.put(f"{folder}state", body)
        manifest = Manifest(
            kind="checkpoint",
            run_uid=config.run.uid,
            attempt=number,
            step=step,
            updates=step,
            reason=reason,
            files=[File(name="state", size=len(body), sha256=hashlib.sha256(body).hexdigest())],
        )
        entry = CheckpointEntry(
            attempt=number, step=step, manifest_sha256=inventory.put_folder(bucket, folder, manifest)
        )

        def commit(seen: Head | None) -> Head:
            return heads.commit(heads.check_fence(seen, attempt=number, pod_uid=pod_uid), entry, keep=2)

        stored.change(bucket, commit)
        reporter.tell(EventType.CHECKPOINT, step, checkpoint=entry)

    while not told_to_stop.wait(TICK):
        step += 1
        reporter.tell(EventType.PROGRESS, step, phase=Phase.TRAINING, loss=1.0, seconds_per_step=part.pace)
        if part.saves and step % part.every == 0:
            save(SaveReason.PERIODIC)
            durable = step
    if fenced.is_set():
        return ExitCode.FENCED
    if part.saves and step > durable:
        save(SaveReason.YIELD)
    reporter.tell(EventType.YIELDED, step, saved=Saved.NEW if part.saves else Saved.NONE)
    reporter.flush(3.0)
    return ExitCode.YIELDED


def main() -> NoReturn:
    """Play the part, or be the real trainer."""
    text = os.environ[ENV_RUN_CONFIG]
    wanted = str(json.loads(text)["dataset"].get("instancePrompt") or "")
    if not wanted.startswith(PLAYED):
        os.execv(sys.executable, [sys.executable, "-m", "lorafinetune_trainer", *sys.argv[1:]])
    parser = argparse.ArgumentParser()
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--resume-from")
    options = parser.parse_args()
    config = RunConfig.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    part = Part(**json.loads(wanted.removeprefix(PLAYED)))
    try:
        resumes = options.resume_from is not None
        code = play(config, part, options.attempt, os.environ[ENV_POD_UID], expects_head=resumes)
    except (Fenced, HeadLost):
        code = ExitCode.FENCED
    sys.exit(int(code))


if __name__ == "__main__":
    main()
