"""One attempt from claim to artifact: the order in which the rooms of the trainer are entered."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import MAX_DEVIATION, ArtifactEntry, CheckpointEntry
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer import fitting, imports, inputs, instructions, places, planning
from lorafinetune_trainer.base import keeper as keepers
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Verified
from lorafinetune_trainer.telling import tensorboard
from lorafinetune_trainer.telling.report import Reporter
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    from lorafinetune_trainer.inputs import Inputs
    from lorafinetune_trainer.product.intermediate import Intermediate
    from lorafinetune_trainer.product.product import Product
    from lorafinetune_trainer.saving.saver import Saver
    from lorafinetune_trainer.training.loop import Loop, Progress
    from lorafinetune_trainer.training.model import Model


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
    urgent = bucket.hasty(max(2.0, config.notice_seconds / 4))
    checkpoints = Checkpoints(bucket, urgent, config, told.pod_uid)
    head = checkpoints.claim(told.number, expect_head=told.resume_from is not None)
    ending.reporter = reporter = Reporter(
        run_uid=config.run.uid,
        attempt=checkpoints.attempt,
        webhook=config.webhook,
        on_stop=lambda reason, message: ending.fail(Failure(ExitCode.FENCED, reason, message)),
    )
    level = instructions.hold(head.plan.instructions if head.plan is not None else None)
    tensorboard.require(config.metrics.tensor_board)
    importing = imports.begin(config.training, imports.PUBLISHING if config.publish else imports.HEAVY)
    found = checkpoints.newest_verified()
    standing.step = standing.durable_step = found.entry.step if found is not None else 0
    reporter.total_steps = config.training.steps or (head.plan.steps if head.plan is not None else None)
    reporter.tell(
        EventType.STARTED,
        standing.step,
        phase=Phase.STARTING,
        message=_story(checkpoints, found.entry if found is not None else None, []),
    )
    made = head.artifact
    if made is not None and made.step >= _wanted(config, made, found) and checkpoints.is_whole(made):
        if head.plan is not None and not config.publish:
            planning.check_config(head.plan, config)
        where = f"the run has finished: its LoRA is at {bucket.uri(made.folder)}"
        reporter.tell(EventType.FINISHED, made.step, phase=Phase.EXPORTING, artifact=made, message=where)
        return ExitCode.FINISHED
    ending.scratch = scratch = Path(tempfile.mkdtemp(prefix="lorafinetune-", dir=config.scratch))
    wires = Wires(config, ending, bucket, urgent, checkpoints, reporter, scratch)
    if config.publish:
        importing.join()
        from lorafinetune_trainer import publishnewest

        if found is None:
            raise publishnewest.nothing_to_publish(len(checkpoints.rejected))
        if publishnewest.is_enough(head):
            return publishnewest.publish(wires, found)
    return _train(wires, inputs.gather(wires, importing, level), found)


def _wanted(config: RunConfig, made: ArtifactEntry, found: Verified | None) -> int:
    """Return of how many steps the artifact that is there must be, at least, to be what this attempt is for."""
    if config.publish:
        return found.entry.step if found is not None else 0
    return config.training.steps or made.step


def _train(wires: Wires, given: Inputs, found: Verified | None) -> ExitCode:
    from lorafinetune_trainer import publishing
    from lorafinetune_trainer.sampling import validation
    from lorafinetune_trainer.saving.cadence import Cadence
    from lorafinetune_trainer.saving.saver import Saver
    from lorafinetune_trainer.telling import steps as telling
    from lorafinetune_trainer.training import model as models
    from lorafinetune_trainer.training.loop import Loop

    config, ending, reporter = wires.config, wires.ending, wires.reporter
    training = config.training
    model = models.load(given.files, training, given.accelerator.device, compiled=given.plan.compiled)
    total = planning.total(given.plan, training)
    lacking = fitting.recheck(config, model, given.plan, given.samples.host_bytes) if given.obeyed else ""
    loop = Loop(
        model,
        given.samples,
        training,
        dataset_digest=given.dataset_digest,
        device=given.accelerator.device,
        total=total,
        micro_batch=given.plan.micro_batch,
    )
    entry = _resume(wires, loop, found)
    wires.checkpoints.deviation = _deviation(wires.checkpoints.attempt, entry, given.remarks)
    if entry is None:
        _begin(wires, given, model, loop)
    given = replace(given, initial=None)  # its bytes
    product = _product(wires, given, model, steps=loop.total, planned=total)
    total = loop.total
    intermediate = _intermediate(wires, product, loop)
    del found  # its bytes
    _keep_all()
    steps = telling.begin(wires, model.unet.config, planning.device(), step=loop.step, total=product.planned or total)

    def beside(step: int, deadline: float | None) -> None:
        intermediate.beside(step, deadline, wires.bucket)
        steps.metrics.put(step, deadline)

    cadence = Cadence(config.checkpoint, step=loop.step)
    saver = Saver(wires.checkpoints, take=loop.snapshot, ending=ending, reporter=reporter, beside=beside)
    ending.rescue = saver.rescue
    wires.enter(Phase.TRAINING, _story(wires.checkpoints, entry, given.remarks, lacking))
    pictures = validation.begin(wires, given, model, loop)
    if pictures is not None and loop.step < total:
        pictures.show(loop.step)  # what the attempt before did not come to

    def on_step(progress: Progress) -> None:
        ending.hold()  # before the step is told: what is being saved is the one before it
        due = cadence.due(progress.step, progress.seconds, busy=saver.busy)
        steps.tell(progress, save_seconds=cadence.save_seconds, checkpoint_every_steps=cadence.every_steps)
        ending.standing.step = progress.step
        intermediate.take(progress.step)
        if due and progress.step < total:
            cadence.take(progress.step, lambda: saver.offer(loop.snapshot(), SaveReason.PERIODIC))
        if pictures is not None and progress.step < total:
            pictures.show(progress.step)

    with keepers.keeping(wires, given.files, given.plan, busy=lambda: saver.busy):
        loop.train(on_step)
    _save_last(wires, loop, saver)
    if pictures is not None:
        pictures.show(loop.step)  # the last weights are safe whatever becomes of them
    product = replace(product, updates=loop.updates)
    return publishing.publish(
        wires, product, loop.published, intermediate=intermediate, metrics=steps.metrics, pictures=pictures
    )


def _keep_all() -> None:
    """What lives now lives on: the collector need not walk through it again, which would stall the saver's thread."""
    gc.collect()
    gc.freeze()


def _save_last(wires: Wires, loop: Loop, saver: Saver) -> None:
    """Make the last step durable, if it is not."""
    wires.enter(Phase.SAVING)
    if wires.ending.standing.durable_step < loop.step:
        saver.offer(loop.snapshot(), SaveReason.FINAL)
    saver.drain()


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
    if wires.config.publish:  # with all that a training needs, since the head does not tell enough
        if found is None:
            from lorafinetune_trainer import publishnewest

            raise publishnewest.nothing_to_publish(len(wires.checkpoints.rejected))
        loop.total = loop.step
    standing, steps = wires.ending.standing, loop.total
    standing.step = standing.durable_step = found.entry.step if found is not None else 0
    if loop.step != standing.step:
        raise Failure(
            ExitCode.FAILED, "ResumeFailed", f"the checkpoint of step {standing.step} led to step {loop.step}"
        )
    if loop.step > steps:
        raise invalid("PlanMismatch", f"training.steps is {steps}, but step {loop.step} has been done: raise it again")
    return found.entry if found is not None else None


def _deviation(attempt: int, entry: CheckpointEntry | None, remarks: list[str]) -> str | None:
    """Return what is said of the state from now on: what the checkpoint says that it stands on, else *remarks*."""
    if entry is not None and entry.deviation is not None:
        return entry.deviation
    return f"attempt {attempt}: {', '.join(remarks)}"[:MAX_DEVIATION] if remarks else None


def _begin(wires: Wires, given: Inputs, model: Model, loop: Loop) -> None:
    """Let *loop* begin with the LoRA that the run starts from, if there is one."""
    from lorafinetune_trainer.product import initial

    loop.begin_with(
        initial.load(
            wires.config.training,
            given.plan.initial_lora_digest,
            {name: tuple(weight.shape) for name, weight in model.weights.items()},
            wires.open,
            layers_per_block=int(model.unet.config.layers_per_block),
            body=given.initial,
        )
    )


def _product(wires: Wires, given: Inputs, model: Model, *, steps: int, planned: int) -> Product:
    from lorafinetune_trainer.data import concepts
    from lorafinetune_trainer.product.product import Product, Shown

    return Product(
        config=wires.config,
        plan=given.plan,
        images=len(given.samples.instances),
        steps=steps,
        planned=planned if planned > steps else None,
        updates=0,
        layers_per_block=int(model.unet.config.layers_per_block),
        captions=tuple(
            Shown(one.captions[0], one.repeats, concepts.folder(one.name)) for one in given.samples.instances
        ),
        class_images=len(given.samples.classes),
        prediction=model.prediction,
        base_zero_snr=bool(model.noise.config.rescale_betas_zero_snr),
    )


def _intermediate(wires: Wires, product: Product, loop: Loop) -> Intermediate:
    from lorafinetune_trainer.product import intermediate as intermediates

    found = intermediates.Intermediate(
        intermediates.chosen(wires.config.checkpoint.keep_intermediate, loop.total),
        attempt=wires.checkpoints.attempt,
        product=product,
        weights=loop.published,
        put=wires.checkpoints.put,
    )
    found.take(loop.step)  # if the attempt before had no time to
    return found


def _story(checkpoints: Checkpoints, entry: CheckpointEntry | None, remarks: list[str], lacking: str = "") -> str:
    where = f"resumes at step {entry.step} from {entry.folder}" if entry is not None else "begins at step 0"
    words = [f"attempt {checkpoints.attempt} {where}"]
    words += [f"checkpoint {name} was rejected: {why}" for name, why in checkpoints.rejected.items()]
    if remarks:
        words.append("the bytes may differ from those of an undisturbed run: " + ", ".join(remarks))
    if lacking:
        words.append(lacking)
    return "; ".join(words)
