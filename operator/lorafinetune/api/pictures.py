"""How users see what a run learns: validation pictures, and figures besides the events."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.places import NO_CONTROLS
from lorafinetune.api.words import ruled, worded
from lorafinetune.contract.runconfig import Metrics, Validation

Prompt = Annotated[
    str,
    Field(
        max_length=512,
        pattern=r"\S",
        json_schema_extra=worded("must hold words, for a picture is made from it", NO_CONTROLS),
    ),
]


class ValidationSpec(Validation):
    """Pictures that show how the training goes. They are no part of its mathematics."""

    model_config = ConfigDict(extra="ignore")

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=8)]
    """What to make pictures of: one picture for each prompt in each row."""
    negative_prompt: Annotated[str, Field(max_length=512, json_schema_extra=ruled(NO_CONTROLS))] = ""
    """What the pictures should not show."""


class MetricsSpec(Metrics):
    """What is written down besides events."""

    model_config = ConfigDict(extra="ignore")
