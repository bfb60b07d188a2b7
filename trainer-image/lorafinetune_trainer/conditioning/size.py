"""How much host memory a run's samples take: pure arithmetic, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.training import Training
from lorafinetune_trainer.conditioning.recipe import Recipe
from lorafinetune_trainer.data.buckets import Frame
from lorafinetune_trainer.data.dataset import Dataset
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.memory import GIB

_FLOAT: Final = 4
_CHANNELS, _SHRUNK = 4, 8
"""Latents have 4 channels, and an eighth of the picture's edges."""
_WINDOW, _WIDTH, _POOLED = 77, 2048, 1280
"""Of SDXL's text encoders."""
_LETTERS: Final = 225
"""A window of 75 tokens holds about so many letters of English, or more."""


def host_bytes(recipe: Recipe, dataset: Dataset, classes: Dataset | None = None, validation: Sequence[str] = ()) -> int:
    """Return about how many bytes the samples of *dataset* and *classes* will take in memory, latents and embeddings.

    Images must have been decoded, so that their sizes are known. Long captions are estimated by their letters.
    """
    images = [image for one in (dataset, classes) if one is not None for image in one.images]
    pictures = sum(_latents(frame) for frame in {recipe.latents_key(one): recipe.frame(one) for one in images}.values())
    pictures *= 2 if recipe.training.random_flip else 1
    if recipe.training.lora.text_encoder:
        return pictures
    orders = [recipe.orders(caption) for caption in {image.caption for image in images}]
    return pictures + _prompts(["", *validation, *(one for every in orders for one in every)])


def short(training: Training, wanted: int, room: int) -> Failure | None:
    """Return what to do where *wanted* bytes of samples do not fit into the host's *room*; None where they do."""
    if wanted <= room:
        return None
    fixes = ["choose nodes or limits with more memory (placement.pools)", "use fewer images"]
    fixes += ["set training.randomCrop: false"] if training.random_crop else []
    fixes += ["set training.captions.shuffle: false, or shorten the captions"] if training.captions.shuffle else []
    return Failure(
        ExitCode.OUT_OF_MEMORY,
        "OutOfMemory",
        f"the host has {room / GIB:.1f} GiB for this attempt, and the latents and embeddings of the images alone take "
        f"about {wanted / GIB:.1f} GiB: {', or '.join(fixes)}",
    )


def _latents(frame: Frame) -> int:
    width, height = (edge // _SHRUNK for edge in frame.target)
    return len(frame.cuts) * 2 * _CHANNELS * width * height * _FLOAT  # mean and deviation


def _prompts(captions: Iterable[str]) -> int:
    windows = (max(1, math.ceil(len(caption) / _LETTERS)) for caption in captions)
    return sum((count * _WINDOW * _WIDTH + _POOLED) * _FLOAT for count in windows)
