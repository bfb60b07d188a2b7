"""How users see what a run learns: validation pictures, and figures besides the events."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorafinetune.api.places import NO_CONTROLS
from lorafinetune.api.words import ruled, worded
from lorafinetune.contract.model import OpenModel
from lorafinetune.contract.training import MAX_STEPS

Prompt = Annotated[
    str,
    Field(
        max_length=512,
        pattern=r"\S",
        json_schema_extra=worded("must hold words, for a picture is made from it", NO_CONTROLS),
    ),
]


class ValidationSpec(OpenModel):
    """Pictures that show how the training goes. They are no part of its mathematics."""

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=8)]
    """What to make pictures of: one picture for each prompt in each row."""
    negative_prompt: Annotated[str, Field(max_length=512, json_schema_extra=ruled(NO_CONTROLS))] = ""
    """What the pictures should not show."""
    every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 100
    """Optimizer steps between two rows of pictures; the last step always has one. At most 64 rows."""
    inference_steps: Annotated[int, Field(ge=1, le=100)] = 25
    """Denoising steps of one picture."""
    guidance: Annotated[float, Field(ge=1, le=30)] = 5.0
    """How closely a picture follows its prompt."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The noise that pictures begin with follows from this number and the prompt's place: each row begins alike."""


class MetricsSpec(OpenModel):
    """What is written down besides events."""

    tensor_board: bool = False
    """Write TensorBoard files too: loss, learning rate, gradient norm, speed and memory over all attempts. The same
    figures always stand as JSON lines beside the artifact."""
