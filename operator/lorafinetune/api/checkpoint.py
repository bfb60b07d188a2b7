"""What is kept while a run goes on: checkpoints to resume from, and LoRAs of chosen steps to choose from."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.words import listed, rule, ruled
from lorafinetune.contract.model import OpenModel
from lorafinetune.contract.runconfig import MAX_INTERMEDIATE
from lorafinetune.contract.training import MAX_STEPS


class KeepIntermediateSpec(OpenModel):
    """Which steps' LoRAs are kept beside the artifact."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "has(self.steps) != has(self.everySteps)",
                "spec.checkpoint.keepIntermediate takes either steps (a list, such as [200, 400]) or everySteps (a "
                "number): set one of the two",
                field_path=".everySteps",
            )
        )
    )

    steps: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=MAX_STEPS)]],
            Field(min_length=1, max_length=MAX_INTERMEDIATE, json_schema_extra=listed("set")),
        ]
        | None
    ) = None
    """Keep the LoRAs of these steps."""
    every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Keep the LoRA of each step that this number divides."""


class CheckpointSpec(OpenModel):
    """How often training state is committed. May change at any time; taken up at the next checkpoint."""

    every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Optimizer steps between two checkpoints: at most this much is lost when a node goes without notice. Absent = as
    often as pays, by what a checkpoint is seen to cost and how long nodes of the pool are seen to last."""
    keep: Annotated[int, Field(ge=2, le=100)] = 2
    """Newest checkpoints that are kept while the run lives. Two at least, so that a damaged one has a fallback."""
    keep_intermediate: KeepIntermediateSpec | None = None
    """LoRAs of chosen steps, published beside the artifact in both formats, to choose the best from. 64 at most."""
