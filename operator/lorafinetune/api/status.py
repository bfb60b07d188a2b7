"""The status of a LoRAFineTune: one run, as its user reads it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafinetune.api.words import listed
from lorafinetune.contract.model import OpenModel

MAX_ATTEMPTS_KEPT = 20
MAX_MESSAGE = 1024

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class ConditionStatus(StrEnum):
    """A condition's three values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(OpenModel):
    """One aspect of the run, as metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Accepted, StorageReady, Running or Succeeded."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """One CamelCase word for why."""
    message: Annotated[str, Field(max_length=32768)]
    """One sentence for people."""
    last_transition_time: Timestamp
    """When status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this was said of."""


class AttemptStatus(OpenModel):
    """One trainer pod of the run."""

    number: Annotated[int, Field(ge=1)]
    """1, 2, 3 ... and never reused."""
    pod: Annotated[str, Field(max_length=253)]
    """Name of the pod."""
    pod_uid: Annotated[Annotated[str, Field(max_length=64)] | None, Field(alias="podUID")] = None
    """UID of the pod, once created."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Node that it ran on."""
    pool: Annotated[str, Field(max_length=253)]
    """GPUPool that it was placed on."""
    capacity_type: Annotated[str, Field(max_length=16)] | None = None
    """Spot or OnDemand, copied from the pool when the attempt was made."""
    price_per_hour: Annotated[str, Field(max_length=16)] | None = None
    """The pool's price, copied when the attempt was made: later changes rewrite nothing."""
    on_demand_price_per_hour: Annotated[str, Field(max_length=16)] | None = None
    """Price of the cheapest on-demand pool with the same GPU product at that time, where there is one."""
    created: Timestamp | None = None
    """When the pod was asked for."""
    started: Timestamp | None = None
    """When its container started: cost counts from here."""
    ended: Timestamp | None = None
    """When it ended."""
    from_step: Annotated[int, Field(ge=0)] | None = None
    """Step that it resumed from."""
    to_step: Annotated[int, Field(ge=0)] | None = None
    """Last step that it reported."""
    durable_step: Annotated[int, Field(ge=0)] | None = None
    """Step of its newest committed checkpoint."""
    generating_since: Timestamp | None = None
    """When it began to make class images, where it did."""
    generating_until: Timestamp | None = None
    """When it was done with that."""
    cause: Annotated[str, Field(max_length=64)] | None = None
    """Why it ended: Finished, Preempted, NodeLost, Error, OutOfMemory, Invalid, Infrastructure, Fenced, Suspended."""
    reason: Annotated[str, Field(max_length=64)] | None = None
    """A finer CamelCase word for the cause, such as EvictionByEvictionAPI or EmptyDataset."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """The same in a sentence."""
    exit_code: int | None = None
    """The trainer's exit code, where one was seen."""


class CheckpointStatus(OpenModel):
    """The newest checkpoint that the operator knows of: what the next attempt resumes from."""

    attempt: Annotated[int, Field(ge=1)]
    """Attempt that committed it."""
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps in it."""
    uri: Annotated[str, Field(max_length=1024)]
    """Its folder."""
    manifest_sha256: Annotated[str, Field(max_length=64)]
    """Hash of its manifest."""
    time: Timestamp | None = None
    """When the operator heard of it."""


class ArtifactStatus(OpenModel):
    """The final LoRA, verified in storage."""

    uri: Annotated[str, Field(max_length=1024)]
    """Its folder."""
    file: Annotated[str, Field(max_length=1024)]
    """The LoRA in diffusers format."""
    sha256: Annotated[str, Field(max_length=64)]
    """SHA-256 of that file."""
    size: Annotated[int, Field(ge=0)]
    """Bytes of that file."""


class Totals(OpenModel):
    """Sums over the attempts that no longer stand in the list."""

    attempts: Annotated[int, Field(ge=0)] = 0
    """Attempts folded into these sums."""
    cost: Annotated[str, Field(max_length=32)] = "0"
    """What they cost."""
    on_demand_cost: Annotated[str, Field(max_length=32)] = "0"
    """What the same hours would have cost on demand, where a price was known."""
    generating_cost: Annotated[str, Field(max_length=32)] = "0"
    """What of the cost went into making class images."""


class LoRAFineTuneStatus(OpenModel):
    """What is so. Written by the operator only; everything in it can be rebuilt from pods and storage."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status speaks of."""
    phase: Annotated[str, Field(max_length=32)] | None = None
    """One word for people: Pending, Starting, Running, Suspended, Succeeded, Failed or Deleting. Derived from the
    conditions, and not to be relied on by programs."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """What the run is doing or waiting for, in one line."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra=listed("map", "type"),
        ),
    ] = Field(default_factory=list)
    """The API of the status: Accepted, StorageReady, Running, Succeeded."""
    start_time: Timestamp | None = None
    """When the first attempt was made: from then on the mathematics may not change."""
    completion_time: Timestamp | None = None
    """When the run succeeded or failed."""
    prefix: Annotated[str, Field(max_length=1024)] | None = None
    """The run's own place in the bucket."""
    attempt: Annotated[int, Field(ge=0)] | None = None
    """Number of the newest attempt."""
    attempts: Annotated[
        list[AttemptStatus],
        Field(
            max_length=MAX_ATTEMPTS_KEPT,
            json_schema_extra=listed("map", "number"),
        ),
    ] = Field(default_factory=list)
    """The last 20 attempts, oldest first."""
    totals: Totals | None = None
    """Sums over older attempts."""
    preemptions: Annotated[int, Field(ge=0)] | None = None
    """Attempts that the platform took away."""
    failures: Annotated[int, Field(ge=0)] | None = None
    """Attempts that ended with a training error."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps done, as reported."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps to do."""
    step_of: Annotated[str, Field(max_length=32)] | None = None
    """Steps done / to do, for the STEP column."""
    progress: Annotated[str, Field(max_length=8)] | None = None
    """Steps done in percent."""
    loss: Annotated[str, Field(max_length=16)] | None = None
    """Loss of the last reported step."""
    pool: Annotated[str, Field(max_length=253)] | None = None
    """GPUPool of the newest attempt."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint. Absent once the run has succeeded or is being deleted, for its folder goes then."""
    artifact: ArtifactStatus | None = None
    """The final LoRA, once verified."""
    pruned: bool | None = None
    """True once storage holds the artifact and nothing else of the run."""
    cost: Annotated[str, Field(max_length=32)] | None = None
    """What the run has cost so far: seconds of its attempts times the price of their pools."""
    generating_cost: Annotated[str, Field(max_length=32)] | None = None
    """What of that went into making class images, where the run makes its own."""
    saved: Annotated[str, Field(max_length=8)] | None = None
    """How much less that is than on demand, in percent, where an on-demand price is known."""
    eta: Annotated[str, Field(max_length=16)] | None = None
    """Time to the last step at the present speed."""
    seconds_per_step: Annotated[str, Field(max_length=16)] | None = None
    """Measured seconds per optimizer step."""
    images_per_second: Annotated[str, Field(max_length=16)] | None = None
    """Measured images per second."""
    mfu: Annotated[str, Field(max_length=8)] | None = None
    """Share of the GPU's peak rate that the model's own operations reach, in percent, where that is known."""
    memory: Annotated[str, Field(max_length=16)] | None = None
    """Peak memory of the GPU, or of the trainer's process where there is none."""
    event_sequence: Annotated[int, Field(ge=0)] | None = None
    """Sequence of the newest event of the newest attempt that is folded in here: a repeat changes nothing."""
