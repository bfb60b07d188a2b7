"""The run's numeric identity: made by the first attempt, obeyed by all others, and what differs said by name."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection
from importlib import metadata
from typing import Final, NamedTuple

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import Mathematics, RunConfig
from lorafinetune.contract.training import MAX_STEPS, Optimizer, Training
from lorafinetune_trainer import instructions
from lorafinetune_trainer.failure import invalid

LIBRARIES: Final = ("accelerate", "diffusers", "numpy", "torch", "transformers")
OPTIMIZERS: Final = {Optimizer.ADAMW_8BIT: "bitsandbytes", Optimizer.PRODIGY: "prodigyopt"}
"""Libraries of the optimizers that are not torch's."""
MAX_THREADS: Final = 8
"""More threads than this gain little on the CPU and tie the run to large nodes."""


def threads() -> int:
    """Return the number of CPU threads for a new plan: ``OMP_NUM_THREADS``, else this process's processors, bounded."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def libraries(training: Training) -> dict[str, str]:
    """Return the version of each library that takes part in the mathematics; Failure where one is missing."""
    wanted = [*LIBRARIES, OPTIMIZERS[training.optimizer]] if training.optimizer in OPTIMIZERS else LIBRARIES
    try:
        return {name: metadata.version(name) for name in wanted}
    except metadata.PackageNotFoundError as error:
        raise invalid(
            "OptimizerMissing",
            f"training.optimizer {training.optimizer} needs the library {error.name}, which this image lacks: use "
            "AdamW, or an image that has it",
        ) from error


def device() -> str:
    """Return the GPU's product name, or ``cpu`` with kind, maker and vector instructions, which change the rounding."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {instructions.maker()} {torch.backends.cpu.get_cpu_capability()}"


STEPS: Final = (300, 3000)
"""Fewest and most steps of a run that says neither steps nor epochs."""
SHOWN: Final = 100
"""How often such a run shows each image."""


def steps(training: Training, images: int) -> int:
    """Return the optimizer steps of a run whose epoch shows *images* images."""
    if training.steps is not None:
        return training.steps
    if training.epochs is not None:
        return min(MAX_STEPS, math.ceil(training.epochs * images / training.images_per_step))
    wanted = math.ceil(SHOWN * images / training.images_per_step)
    return max(STEPS[0], min(STEPS[1], wanted))


def check_warm_up(training: Training, images: int) -> None:
    """Refuse (InvalidConfig) a warm-up that is longer than the run, which would never reach its learning rate."""
    if training.warmup_steps > (found := steps(training, images)):
        raise invalid(
            "InvalidConfig",
            f"training.warmupSteps is {training.warmup_steps}, and the run has {found} steps, so that the learning "
            "rate would never reach its peak: choose less, usually a tenth of the steps, or more training.epochs",
        )


def total(plan: Plan, training: Training) -> int:
    """Return the optimizer steps of a run with *plan*: what the config says (it may be raised), else the plan."""
    found = training.steps or plan.steps
    if found is None:
        raise invalid("PlanMismatch", "training.steps was given when the run began and is absent now: put it back")
    return found


class Base(NamedTuple):
    """What the product takes from the base model, besides weights."""

    layers_per_block: int
    prediction: str
    zero_snr: bool


def make(
    config: RunConfig,
    *,
    dataset_digest: str,
    base_model_digest: str,
    images: int,
    thread_count: int,
    level: str,
    micro_batch: int,
    base: Base,
    class_digest: str | None = None,
    initial_lora_digest: str | None = None,
) -> Plan:
    """Return the plan that this attempt would commit."""
    training = config.training
    return Plan(
        config_digest=config.digest(),
        config=config.mathematics(),
        dataset_digest=dataset_digest,
        class_digest=class_digest,
        base_model_digest=base_model_digest,
        initial_lora_digest=initial_lora_digest,
        steps=steps(training, images),
        micro_batch=micro_batch,
        layers_per_block=base.layers_per_block,
        prediction=base.prediction,
        zero_snr=base.zero_snr,
        compiled=training.compile,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        device=device(),
        instructions=level if device().startswith("cpu") else "",
        threads=thread_count,
        libraries=libraries(training),
    )


NEUTRAL: Final = RunConfig.model_validate(
    {
        "run": {"name": "-", "uid": "-"},
        "baseModel": {"source": "/"},
        "dataset": {"source": "/"},
        "storage": {"uri": "-"},
    }
).mathematics()
"""What a config without a word means."""


def check_config(plan: Plan, config: RunConfig, *, except_for: Collection[str] = ()) -> None:
    """Refuse a *config* whose mathematics are others than the plan's, by the names of the fields."""
    _refuse(_changed(plan.config, config.mathematics(), except_for))


def _changed(before: Mathematics, after: Mathematics, except_for: Collection[str] = ()) -> list[str]:
    # A field that the plan does not know was added later: what it defaults to is what was done before.
    was, now = NEUTRAL | before, NEUTRAL | after
    return [
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name) and name not in except_for
    ]


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise invalid(
            "PlanMismatch",
            f"the run cannot go on with other inputs than it began with: {'; '.join(wrong)}. "
            "Put them back, or delete the run and create it anew (by hand: give it another run.uid)",
        )


def check(plan: Plan, mine: Plan) -> list[str]:
    """Compare the run's *plan* with this attempt's: return what may change bits, refuse what changes the result."""
    wrong = _changed(plan.config, mine.config)
    if plan.dataset_digest != mine.dataset_digest:
        wrong.append("the images or captions of dataset.source have changed")
    if plan.class_digest != mine.class_digest:
        wrong.append("the images or captions of dataset.classSource have changed")
    if plan.base_model_digest != mine.base_model_digest:
        wrong.append("the weights of baseModel.source have changed")
    # None where a checkpoint has taken its place: it is not even fetched then.
    if mine.initial_lora_digest is not None and plan.initial_lora_digest != mine.initial_lora_digest:
        wrong.append("the file of training.lora.initFrom has changed")
    _refuse(wrong)
    remarks = [
        f"{name} {plan.libraries.get(name)} became {version}"
        for name, version in mine.libraries.items()
        if plan.libraries.get(name) != version
    ]
    if plan.device != mine.device:
        remarks.append(f"{plan.device} became {mine.device}")
    elif plan.instructions != mine.instructions:
        remarks.append(f"instructions {plan.instructions or 'of any width'} became {mine.instructions}")
    return remarks
