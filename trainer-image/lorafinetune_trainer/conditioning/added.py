"""Prompts of pictures that were asked for after the run began: what is pinned does not know them.

They are no part of the mathematics, so each attempt encodes them for itself and keeps them nowhere; and where that
does not work the training goes on without their pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lorafinetune.contract.training import Precision
from lorafinetune.storage import errors
from lorafinetune_trainer.base import supply
from lorafinetune_trainer.base.files import ENCODERS
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure, explain
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch


def encoded(wires: Wires, samples: Samples, means: Means, device: torch.device) -> Samples:
    """Return *samples* with the prompts of all pictures that are wanted; the text encoders are fetched for new ones.

    Nothing is done where the text encoders are trained: they are there, and each picture asks them.
    """
    config, asked = wires.config, wires.config.validation
    if asked is None or config.training.lora.text_encoder:
        return samples
    wanted = (*asked.prompts, asked.negative_prompt)
    new = [words for words in dict.fromkeys(wanted) if words not in samples.validation_words]
    if not new:
        return samples
    try:
        files = supply.bring(
            config.base_model,
            ENCODERS - {"vae"},
            means,
            half=config.training.precision is not Precision.FP32,
            bucket=wires.bucket,
            digest=None,
            note=wires.reporter.note,
        )
        encode = prompts.encoder(prompts.load(files, device))
        found = [prompts.kept(encode((words,)))[0] for words in new]
    except (Failure, errors.StorageError) as error:
        wires.reporter.note(f"pictures of prompts that were added cannot be made: {explain(error).message}")
        return samples
    return replace(
        samples,
        validation=(*samples.validation, *found),
        validation_words=(*samples.validation_words, *new),
    )
