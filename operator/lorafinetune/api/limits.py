"""What a run may take at most: time, money, and attempts of each kind."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafinetune.api.durations import Duration
from lorafinetune.api.gpupool import PRICE, price_sentence
from lorafinetune.api.instants import Instant
from lorafinetune.api.words import rule, worded
from lorafinetune.contract.model import OpenModel


class AtLimit(StrEnum):
    """What becomes of a run that reaches one of its limits."""

    FAIL = "Fail"
    PUBLISH = "Publish"


class AttemptLimits(OpenModel):
    """How many attempts may end in each way before the run ends. What is not named here has no limit."""

    preemptions: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Preemptions that the run survives. Absent = any number, as long as deadline and cost allow."""
    infrastructure: Annotated[int, Field(ge=0, le=1000)] = 6
    """Failures of storage, hub, node or kubelet without a new checkpoint in between that the run survives."""
    training_errors: Annotated[int, Field(ge=0, le=100)] = 1
    """Training errors that the run survives: one may be a bad node."""
    out_of_memory: Annotated[int, Field(ge=0, le=10)] = 1
    """Times that memory may run out: another process may have held some of it."""
    without_progress: Annotated[int, Field(ge=3, le=1000)] = 12
    """Attempts taken away, with no new checkpoint in between, after which the run ends. After a quarter of
    them checkpoints are made more often, after half of them other pools are tried."""


class LimitsSpec(OpenModel):
    """What the run may take at most. May be changed at any time; a run that has reached a limit does not go on."""

    deadline: Instant | None = None
    """When the LoRA is wanted, for example 2026-12-24T18:00:00Z. Placement takes the cheapest way to be done by then;
    a run that is not done at that time has reached a limit."""
    max_cost: (
        Annotated[
            str,
            Field(
                max_length=13,
                pattern=PRICE,
                json_schema_extra=worded(
                    price_sentence("2.50"),
                    rule("self.matches('[1-9]')", 'must be more than nothing, such as "2.50": or leave it out'),
                ),
            ),
        ]
        | None
    ) = None
    """What the run may cost, in the currency of the pools' prices, as a decimal number in quotes, such as "2.50"."""
    max_duration: Duration | None = None
    """How long the run may take from its creation, waiting included, the time for which it is suspended not, for
    example 12h."""
    attempts: AttemptLimits = Field(default_factory=AttemptLimits)
    """How many attempts may end in each way."""
    at_limit: AtLimit = AtLimit.FAIL
    """What happens at a limit: Fail (the checkpoints stay until the run is deleted), or Publish (one more short attempt
    publishes the newest checkpoint's LoRA as the artifact; the run still counts as failed)."""
