"""How many images go through the model at once: as many as the memory holds by formula, evenly split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Training
from lorafinetune_trainer import memory
from lorafinetune_trainer.base.files import Files
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.memory import GIB, Need, Parts

if TYPE_CHECKING:
    from lorafinetune_trainer.training.model import Model

MAX_GPU: Final = 16
"""More images at once than this keep no GPU busier."""
MAX_CPU: Final = 8
"""The same on the CPU. Measured on the tiny model: 45 ms an image alone, 28 in pairs, 20 by four, 16 by eight."""


def choose(config: RunConfig, files: Files, *, samples: int, largest: int) -> int:
    """Return the images of one pass for a new plan; Failure (OUT_OF_MEMORY) where not even one fits.

    *samples* are the bytes of all latents and embeddings, *largest* the pixels of the largest image.
    """
    parts = ("text_encoder", "text_encoder_2") if config.training.lora.text_encoder else ()
    host, gpu = memory.host(), memory.gpu()
    unet = files.json("unet/config.json")
    encoders: list[Mapping[str, Any]] = [files.json(f"{part}/config.json") for part in parts]
    wanted = memory.need(config, unet, encoders, gpu=gpu is not None, samples=samples)
    making = memory.conditioning(config, wanted.unet, largest, gpu=gpu is not None)
    if lacking := short_host(making, host, "to make the latents and embeddings"):
        raise Failure(ExitCode.OUT_OF_MEMORY, "OutOfMemory", lacking)
    return micro_batch(config, wanted, host=host, gpu=gpu)


def recheck(config: RunConfig, model: Model, plan: Plan, samples: int) -> str:
    """Return in words what a later attempt lacks for the *plan*, whose *model* it has loaded; empty where it fits.

    The device may be of the same name and have less: a part of a GPU, or other processes on it.
    """
    host, gpu = memory.host(), memory.gpu()
    trained = sum(weight.numel() for weight in model.weights.values())
    unet, *encoders = (
        sum(weight.numel() for weight in part.parameters())
        for part in (model.unet, *(one.model for one in model.encoders))
    )
    mine = sum(weight.numel() for name, weight in model.weights.items() if name.startswith("unet."))
    wanted = memory.need_of(
        config,
        frozen_unet=unet - mine,
        frozen=unet + sum(encoders) - trained,
        trained=trained,
        gpu=gpu is not None,
        samples=samples,
    )
    lacking = short(config.training, wanted, host=host, gpu=gpu, images=plan.micro_batch)
    return f"this attempt may run out of memory, for the plan's split is kept: {lacking}" if lacking else ""


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
    if gpu is not None and (lacking := short_host(need.host, host, "to train")):
        return lacking
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
    fixed = "weights and state" if gpu is not None else _largest(need.host)
    return (
        f"{what} {_gib(there)} for this attempt, and {subject} of {training.resolution} pixels at once "
        f"need{'s' if images == 1 else ''} {_gib(wanted)} by calculation ({_gib(need.fixed)} for {fixed}, "
        f"{_gib(need.image)} for each image): {', or '.join(fixes)}"
    )


def short_host(parts: Parts, host: int, purpose: str) -> str:
    """Return in words that the *host*'s bytes are fewer than *parts*, and which of them are big; empty where not."""
    if (wanted := sum(parts.values())) <= host:
        return ""
    fixes = ["choose nodes or limits with more memory (placement.pools)"]
    biggest = max(parts, key=lambda one: parts[one])
    fixes += {
        "the latents and embeddings": ["use fewer images"],
        "copies of the state": ["lower training.lora.rank"],
        "images that are read": ["scale the largest images down"],
        "what the VAE computes": ["lower training.resolution"],
    }.get(biggest, [])
    return (
        f"the host has {_gib(host)} for this attempt, and {_gib(wanted)} are needed {purpose} by calculation, for "
        f"{_largest(parts)}: {', or '.join(fixes)}"
    )


def _largest(parts: Parts) -> str:
    every = sorted((one for one in parts if parts[one] >= GIB // 20), key=lambda one: -parts[one])
    return ", ".join(f"{one} ({_gib(parts[one])})" for one in every)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
