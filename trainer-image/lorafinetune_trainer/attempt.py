"""One attempt from claim to artifact: the order in which the rooms of the trainer are entered."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import CheckpointEntry, Fenced, HeadLost
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage import errors
from lorafinetune_trainer import imports, inputs, places, planning
from lorafinetune_trainer.base import keeper as keepers
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Verified
from lorafinetune_trainer.telling.report import Reporter
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    from lorafinetune_trainer.inputs import Inputs
    from lorafinetune_trainer.training.loop import Loop, Progress
    from lorafinetune_trainer.training.model import Model

EXPORT_GRACE: Final = 5.0
"""Seconds for which SIGTERM waits while the artifact is being published."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the attempt was told besides the run config."""

    number: int | None = None
    """Its number; None for one more than the last."""
    pod_uid: str = ""
    resume_from: str | None = None
    """The checkpoint that the operator knew of. The head decides."""


def run(config: RunConfig, told: Told, ending: Ending) -> ExitCode:
    """Do all there is to do and return FINISHED, or raise what ends the attempt."""
    standing = ending.standing
    standing.phase = Phase.STARTING
    bucket = places.open_prefix(config)
    checkpoints = Checkpoints(bucket, bucket.hasty(max(2.0, config.notice_seconds / 4)), config, told.pod_uid)
    head = checkpoints.claim(told.number, expect_head=told.resume_from is not None)
    ending.reporter = reporter = Reporter(
        run_uid=config.run.uid,
        attempt=checkpoints.attempt,
        webhook=config.webhook,
        on_stop=lambda reason, message: ending.fail(Failure(ExitCode.FENCED, reason, message)),
    )
    importing = imports.begin()
    found = checkpoints.newest_verified()
    standing.step = standing.durable_step = found.entry.step if found is not None else 0
    reporter.tell(
        EventType.STARTED,
        standing.step,
        phase=Phase.STARTING,
        message=_story(checkpoints, found.entry if found is not None else None, []),
    )
    made = head.artifact
    if made is not None and made.step >= (config.training.steps or made.step) and checkpoints.is_whole(made):
        reporter.tell(EventType.FINISHED, made.step, phase=Phase.EXPORTING, artifact=made)
        return ExitCode.FINISHED
    ending.scratch = scratch = Path(tempfile.mkdtemp(prefix="lorafinetune-", dir=config.scratch))
    wires = Wires(config, ending, bucket, checkpoints, reporter, scratch)
    return _train(wires, inputs.gather(wires, importing), found)


def _train(wires: Wires, given: Inputs, found: Verified | None) -> ExitCode:
    from lorafinetune_trainer.saving.saver import Saver
    from lorafinetune_trainer.training import model as models
    from lorafinetune_trainer.training.loop import Loop

    config, ending, reporter = wires.config, wires.ending, wires.reporter
    training = config.training
    model = models.load(given.files, training, given.accelerator.device)
    total = planning.total(given.plan, training)
    loop = Loop(
        model,
        given.samples,
        training,
        dataset_digest=given.dataset_digest,
        accelerator=given.accelerator,
        total=total,
    )
    entry = _resume(wires, loop, found)
    del found  # its bytes
    # What lives now lives on: the collector need not walk through it again, which would stall the saver's thread.
    gc.collect()
    gc.freeze()
    saver = Saver(wires.checkpoints, take=loop.snapshot, ending=ending, reporter=reporter)
    ending.rescue = saver.rescue
    keeper = keepers.begin(wires, given.files, given.plan, busy=lambda: saver.busy)
    wires.enter(Phase.TRAINING, _story(wires.checkpoints, entry, given.remarks))

    def on_step(progress: Progress) -> None:
        ending.hold()
        ending.standing.step = progress.step
        reporter.tell(
            EventType.PROGRESS,
            progress.step,
            phase=Phase.TRAINING,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            seconds_per_step=progress.seconds_per_step,
        )
        if progress.step % config.checkpoint.every_steps == 0 and progress.step < total:
            saver.offer(loop.snapshot(), SaveReason.PERIODIC)

    loop.train(on_step)
    wires.enter(Phase.SAVING)
    if ending.standing.durable_step < loop.step:
        saver.offer(loop.snapshot(), SaveReason.FINAL)
    saver.drain()
    if keeper is not None:
        keeper.stop()
    return _publish(wires, given, model, loop)


def _resume(wires: Wires, loop: Loop, found: Verified | None) -> CheckpointEntry | None:
    """Put *loop* where the newest good checkpoint stands, and return that; None, and step 0, where there is none."""
    while found is not None:
        try:
            loop.restore(found.snapshot())
        except (ValueError, KeyError) as error:
            wires.checkpoints.reject(found.entry, str(error))
            found = wires.checkpoints.newest_verified()
        else:
            break
    standing, steps = wires.ending.standing, loop.total
    standing.step = standing.durable_step = found.entry.step if found is not None else 0
    if loop.step != standing.step:
        raise Failure(
            ExitCode.FAILED, "ResumeFailed", f"the checkpoint of step {standing.step} led to step {loop.step}"
        )
    if loop.step > steps:
        raise invalid("PlanMismatch", f"training.steps is {steps}, but step {loop.step} has been done: raise it again")
    return found.entry if found is not None else None


def _story(checkpoints: Checkpoints, entry: CheckpointEntry | None, remarks: list[str]) -> str:
    where = f"resumes at step {entry.step} from {entry.folder}" if entry is not None else "begins at step 0"
    words = [f"attempt {checkpoints.attempt} {where}"]
    words += [f"checkpoint {name} was rejected: {why}" for name, why in checkpoints.rejected.items()]
    if remarks:
        words.append("the bytes may differ from those of an undisturbed run: " + ", ".join(remarks))
    return "; ".join(words)


def _publish(wires: Wires, given: Inputs, model: Model, loop: Loop) -> ExitCode:
    """Make the artifact durable; from here on SIGTERM waits a little."""
    from lorafinetune_trainer.product import export

    wires.ending.grace = EXPORT_GRACE
    wires.enter(Phase.EXPORTING)
    product = export.Product(
        config=wires.config,
        plan=given.plan,
        images=len(given.samples.instances),
        steps=loop.total,
        updates=loop.updates,
        layers_per_block=int(model.unet.config.layers_per_block),
    )
    provenance = {
        "device": planning.device(),
        **{f"library.{name}": version for name, version in planning.libraries().items()},
    }
    run_ = wires.config.run
    story = f"\nRun {run_.namespace}/{run_.name} ({run_.uid}), finished by attempt {wires.checkpoints.attempt}.\n"
    files = export.files(loop.published(), product, story=story)
    entry = wires.checkpoints.publish(loop.step, loop.updates, files, provenance)
    wires.reporter.tell(EventType.FINISHED, loop.step, phase=Phase.EXPORTING, artifact=entry)
    try:
        wires.checkpoints.tidy()  # a superseded artifact
    except (errors.StorageError, Fenced, HeadLost) as error:  # the product is safe; the operator sweeps what is left
        wires.reporter.note(f"left-overs could not be deleted: {error}")
    return ExitCode.FINISHED
