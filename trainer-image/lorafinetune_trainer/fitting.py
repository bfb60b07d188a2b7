"""How many images go through the model at once: as many as the memory holds by formula, evenly split."""

from __future__ import annotations

import math
from typing import Final

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Training
from lorafinetune_trainer import memory
from lorafinetune_trainer.base.files import Files
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.memory import GIB, Need

MAX_GPU: Final = 16
"""More images at once than this keep no GPU busier."""
MAX_CPU: Final = 8
"""The same on the CPU. Measured on the tiny model: 45 ms an image alone, 28 in pairs, 20 by four, 16 by eight."""


def choose(config: RunConfig, files: Files, plan: Plan | None, device: str) -> tuple[int, list[str]]:
    """Return the images of one pass, and remarks: the *plan*'s where there is one, else what fits.

    *device* is this attempt's. A plan of another one is obeyed as long as that goes, and said to be short of memory.
    """
    if plan is not None and plan.device == device:
        return plan.micro_batch, []
    parts = ("text_encoder", "text_encoder_2") if config.training.lora.text_encoder else ()
    wanted = memory.need(
        config,
        files.json("unet/config.json"),
        [files.json(f"{part}/config.json") for part in parts],
        gpu=memory.gpu() is not None,
    )
    host, gpu = memory.host(), memory.gpu()
    if plan is None:
        return micro_batch(config, wanted, host=host, gpu=gpu), []
    lacking = short(config.training, wanted, host=host, gpu=gpu, images=plan.micro_batch)
    return plan.micro_batch, [lacking] if lacking else []


def slots(config: RunConfig) -> int:
    """Return the images of one step, those of the class counted."""
    classes = config.dataset.class_source is not None or config.dataset.class_prompt is not None
    return config.training.images_per_step * (2 if classes else 1)


def micro_batch(config: RunConfig, need: Need, *, host: int, gpu: int | None) -> int:
    """Return the images of one pass for a new plan; Failure (OUT_OF_MEMORY) where not even one fits.

    *host* and *gpu* are the bytes that there are. ``training.microBatch`` is taken as it is: who sets it knows more
    than the formula.
    """
    training, all_of_them = config.training, slots(config)
    if training.micro_batch is not None:
        return min(training.micro_batch, all_of_them)
    if lacking := short(training, need, host=host, gpu=gpu):
        raise Failure(ExitCode.OUT_OF_MEMORY, "OutOfMemory", lacking)
    room = (host if gpu is None else gpu) - need.fixed
    fits = min(room // max(1, need.image), MAX_CPU if gpu is None else MAX_GPU, all_of_them)
    # As few passes as possible, and none of them smaller than it must be.
    return math.ceil(all_of_them / math.ceil(all_of_them / fits))


def short(training: Training, need: Need, *, host: int, gpu: int | None, images: int = 1) -> str:
    """Return in words what *images* at once lack, and the fix; empty where they fit."""
    if gpu is not None and need.host > host:
        return (
            f"the host has {_gib(host)} for this attempt, and loading the model and keeping copies of the state needs "
            f"{_gib(need.host)}: choose nodes or limits with more memory (placement.pools), or lower training.lora.rank"
        )
    there, wanted = (host if gpu is None else gpu), need.of(images)
    if wanted <= there:
        return ""
    what = "the host has" if gpu is None else "the GPU has"
    fixes = [] if training.gradient_checkpointing else ["set training.gradientCheckpointing: true"]
    fixes += [f"lower training.microBatch (now {images})"] if images > 1 else []
    fixes += [
        "lower training.resolution",
        "lower training.lora.rank",
        "choose a pool with more memory (placement.pools)",
    ]
    subject = "1 image" if images == 1 else f"{images} images"
    return (
        f"{what} {_gib(there)} for this attempt, and {subject} of {training.resolution} pixels at once "
        f"need{'s' if images == 1 else ''} {_gib(wanted)} by calculation ({_gib(need.fixed)} for weights and state, "
        f"{_gib(need.image)} for each image): {', or '.join(fixes)}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
