"""An attempt that trains nothing: the LoRA of the newest checkpoint as the artifact, where a run stops at a limit.

All that it needs lies in the run's own prefix: weights in the checkpoint, images' names and captions in the
conditioning's table of contents, and in the plan what the product takes from the base model. So it fetches no data set
and no base model, and any CPU will do. What it writes is what a run of so few steps would have written.
"""

from __future__ import annotations

from lorafinetune.contract.event import Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import ConditioningEntry, Head
from lorafinetune.contract.plan import Plan
from lorafinetune_trainer import planning, publishing
from lorafinetune_trainer.conditioning import pinned
from lorafinetune_trainer.conditioning.index import Index
from lorafinetune_trainer.data import concepts
from lorafinetune_trainer.ending import Rescued
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.product import intermediate as intermediates
from lorafinetune_trainer.product.intermediate import Intermediate
from lorafinetune_trainer.product.product import Product, Shown
from lorafinetune_trainer.sampling.validation import Validation
from lorafinetune_trainer.saving.checkpoints import Snapshot, Verified
from lorafinetune_trainer.telling.metrics import Metrics
from lorafinetune_trainer.wires import Wires

STEPS = "training.steps"


def is_enough(head: Head) -> bool:
    """Whether all that is needed stands in the *head*; not in one that was made anew, or begun by an older version."""
    return head.conditioning is not None and head.plan is not None and head.plan.prediction is not None


def nothing_to_publish(rejected: int) -> Failure:
    """Return the failure of a run without a checkpoint."""
    damaged = f" that is whole ({rejected} are damaged)" if rejected else ""
    return invalid(
        "NothingToPublish",
        f"the run was to publish the LoRA of its newest checkpoint, and has none{damaged}: it ended before the first "
        "one was made; give it a higher limit, or checkpoint.everySteps a smaller number",
    )


def publish(wires: Wires, found: Verified) -> ExitCode:
    """Publish the LoRA of the newest checkpoint, *found*; of an older one where its bytes are no state."""
    head, config = wires.checkpoints.head, wires.config
    plan, conditioning = head.plan, head.conditioning
    assert plan is not None
    assert conditioning is not None
    # How long the run was to be says nothing about what it has become.
    planning.check_config(plan, config, except_for={STEPS})
    entry, snapshot = _loaded(wires, found)
    standing = wires.ending.standing
    standing.step = standing.durable_step = entry.entry.step
    wires.ending.rescue = lambda _deadline: Rescued(Saved.DURABLE)
    wires.checkpoints.deviation = entry.entry.deviation
    total = config.training.steps or plan.steps
    wires.reporter.total_steps = total
    product = _product(wires, plan, _index(wires, conditioning), snapshot, total)
    weights = snapshot.published(average=config.training.ema_decay is not None)
    steps = intermediates.chosen(config.checkpoint.keep_intermediate, total or snapshot.step)
    return publishing.publish(
        wires,
        product,
        lambda: weights,
        intermediate=Intermediate(
            [one for one in steps if one <= snapshot.step],
            attempt=wires.checkpoints.attempt,
            product=product,
            weights=lambda: weights,
            put=wires.checkpoints.put,
        ),
        metrics=Metrics(
            wires.bucket,
            wires.urgent,
            attempt=wires.checkpoints.attempt,
            step=snapshot.step,
            tensor_board=config.metrics.tensor_board,
            note=wires.reporter.note,
        ),
        pictures=Validation(wires, config.validation, None, total=total or snapshot.step)
        if config.validation is not None
        else None,
        provenance=publishing.computed_on(plan.device, plan.libraries),
    )


def _loaded(wires: Wires, found: Verified | None) -> tuple[Verified, Snapshot]:
    """Return the newest checkpoint that holds weights, and its state."""
    average = wires.config.training.ema_decay is not None
    while found is not None:
        try:
            snapshot = found.snapshot()
            if not snapshot.published(average=average):
                raise ValueError("it holds no weights")
        except ValueError as error:
            wires.checkpoints.reject(found.entry, str(error))
            found = wires.checkpoints.newest_verified()
        else:
            return found, snapshot
    raise nothing_to_publish(len(wires.checkpoints.rejected))


def _index(wires: Wires, conditioning: ConditioningEntry) -> Index:
    from lorafinetune.storage import errors

    try:
        return pinned.contents(wires.bucket, conditioning)
    except errors.OtherVersion:
        raise
    except (errors.NotVerified, errors.ObjectMissing, ValueError, KeyError) as error:
        raise pinned.lost(error) from error


def _product(wires: Wires, plan: Plan, index: Index, snapshot: Snapshot, total: int | None) -> Product:
    assert plan.layers_per_block is not None
    assert plan.prediction is not None
    return Product(
        config=wires.config,
        plan=plan,
        images=len(index.instances),
        steps=snapshot.step,
        updates=snapshot.updates,
        layers_per_block=plan.layers_per_block,
        captions=tuple(Shown(one.captions[0], one.repeats, concepts.folder(one.name)) for one in index.instances),
        class_images=len(index.classes),
        prediction=plan.prediction,
        base_zero_snr=bool(plan.zero_snr),
        planned=total if total is not None and total > snapshot.step else None,
    )
