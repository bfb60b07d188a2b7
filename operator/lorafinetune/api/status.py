"""The status of a LoRAFineTune: one run, as its user reads it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafinetune.api.amounts import Amount
from lorafinetune.api.instants import Timestamp
from lorafinetune.api.words import listed
from lorafinetune.contract.model import OpenModel

MAX_ATTEMPTS_KEPT = 20
MAX_MESSAGE = 1024

Seconds = Annotated[int, Field(ge=0, le=10**11)]
"""Whole seconds, three thousand years of them at most: sums of them are numbers that every reader can take."""


class ConditionStatus(StrEnum):
    """A condition's three values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(OpenModel):
    """One aspect of the run, as metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Accepted, StorageReady, Running, Succeeded or Exact."""
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
    machine: Annotated[str, Field(max_length=128)] | None = None
    """UID of that Node and ID of its boot, by which another machine of the same name is known."""
    pool: Annotated[str, Field(max_length=253)]
    """GPUPool that it was placed on."""
    capacity_type: Annotated[str, Field(max_length=16)] | None = None
    """Spot or OnDemand, copied from the pool when the attempt was made."""
    price_per_hour: Annotated[Amount, Field(max_length=16)] | None = None
    """The pool's price, copied when the attempt was made: later changes rewrite nothing."""
    on_demand_price_per_hour: Annotated[Amount, Field(max_length=16)] | None = None
    """Price of the cheapest on-demand pool with the same GPU product at that time, where there is one."""
    created: Timestamp | None = None
    """When the pod was asked for."""
    queued_until: Timestamp | None = None
    """When its queue let it go, where one held it back."""
    dry: Timestamp | None = None
    """When its pool was found to have no node for it, where that was so."""
    scheduled: Timestamp | None = None
    """When it got its node: cost counts from here."""
    started: Timestamp | None = None
    """When its container started."""
    start_seconds: Seconds | None = None
    """Seconds from its node to its training: image, model, latents, and the state that it put back."""
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
    stopping: Annotated[str, Field(max_length=64)] | None = None
    """Why we end it, where we do: NoCapacity, Moved, LimitReached or Suspended. Written before its pod is deleted."""
    cause: Annotated[str, Field(max_length=64)] | None = None
    """Why it ended: Finished, Preempted, NodeLost, Error, OutOfMemory, Invalid, Infrastructure, Fenced, Suspended,
    NoCapacity, Moved, LimitReached."""
    reason: Annotated[str, Field(max_length=64)] | None = None
    """A finer CamelCase word for the cause, such as EvictionByEvictionAPI or EmptyDataset."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """The same in a sentence."""
    exit_code: int | None = None
    """The trainer's exit code, where one was seen."""
    cost: Amount | None = None
    """What it cost, once it has ended, in the currency of status.cost."""
    lost_seconds: Seconds | None = None
    """Seconds of it that came to nothing: all after its newest checkpoint, or all of it if it committed none."""


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


class LostStatus(OpenModel):
    """What one kind of ending has taken so far."""

    cause: Annotated[str, Field(max_length=64)]
    """The cause, as in attempts."""
    attempts: Annotated[int, Field(ge=0)] = 0
    """Attempts that ended so."""
    seconds: Seconds = 0
    """GPU-seconds that came to nothing by it: theirs, and the start-ups of the attempts that went on after them."""
    cost: Amount = "0"
    """What those seconds cost, in the currency of status.cost."""


class Totals(OpenModel):
    """Sums over the attempts that no longer stand in the list."""

    attempts: Annotated[int, Field(ge=0)] = 0
    """Attempts folded into these sums."""
    cost: Amount = "0"
    """What they cost."""
    on_demand_cost: Amount = "0"
    """What the same hours would have cost on demand, where a price was known."""
    compared_cost: Amount | None = None
    """What those hours have cost: SAVED compares like with like."""
    generating_cost: Amount = "0"
    """What of the cost went into making class images."""
    lost: Annotated[list[LostStatus], Field(max_length=16, json_schema_extra=listed("map", "cause"))] = Field(
        default_factory=list
    )
    """What each kind of ending took with them."""
    infrastructure: Annotated[int, Field(ge=0)] = 0
    """Failures of storage, hub, node or kubelet since the newest checkpoint of theirs."""
    without_progress: Annotated[int, Field(ge=0)] = 0
    """Attempts taken away since the newest checkpoint of theirs."""
    ended_by: Annotated[str, Field(max_length=64)] | None = None
    """Cause of the newest of them that had a node: the start-up of the attempt after it is lost by that."""


class LimitStatus(OpenModel):
    """The limit that a run has reached: no more is trained."""

    reason: Annotated[str, Field(max_length=64)]
    """DeadlineExceeded, MaxCostReached, MaxDurationReached, TooManyPreemptions, NoProgress, ..."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)]
    """The field, and what was used of it."""
    time: Timestamp
    """When it was reached."""
    attempt: Annotated[int, Field(ge=0)]
    """The newest attempt then: later ones publish, and train nothing."""


class TimeStatus(OpenModel):
    """How long the run has been busy with one thing."""

    activity: Annotated[str, Field(max_length=64)]
    """What it did, or waited for: see docs/reasons.md."""
    seconds: Seconds = 0
    """Seconds in all, the present stretch not included."""


class LoRAFineTuneStatus(OpenModel):
    """What is so. Written by the operator only; everything in it can be rebuilt from pods and storage."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status speaks of."""
    phase: Annotated[str, Field(max_length=32)] | None = None
    """One word for people: Pending, Starting, Running, Suspended, Succeeded, Failed or Deleting. Derived from the
    conditions, and not to be relied on by programs."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """What the run is doing or waiting for, in one line."""
    activity: Annotated[str, Field(max_length=64)] | None = None
    """What the run does, or waits for, in one word of a fixed list: see docs/reasons.md."""
    activity_since: Timestamp | None = None
    """Since when."""
    times: Annotated[list[TimeStatus], Field(max_length=32, json_schema_extra=listed("map", "activity"))] = Field(
        default_factory=list
    )
    """How long the run has been busy with each thing: with the present stretch, every second since it was made."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra=listed("map", "type"),
        ),
    ] = Field(default_factory=list)
    """The API of the status: Accepted, StorageReady, Running, Succeeded, Exact."""
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
    lost: Annotated[list[LostStatus], Field(max_length=16, json_schema_extra=listed("map", "cause"))] = Field(
        default_factory=list
    )
    """What each kind of ending has taken so far, over all attempts."""
    moved: Timestamp | None = None
    """When the run was last moved to other capacity by plan."""
    limit: LimitStatus | None = None
    """The limit that the run has reached: no more is trained."""
    preemptions: Annotated[int, Field(ge=0)] | None = None
    """Attempts that the platform took away."""
    preemptions_before: Annotated[int, Field(ge=0)] | None = None
    """Those up to the last time that the run was on on-demand capacity: placement.onDemand counts from there."""
    waited_before: Seconds | None = None
    """Seconds for which the run had waited for capacity when it last got a node: placement.onDemand counts from
    there."""
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
    on_demand_cost: Annotated[str, Field(max_length=32)] | None = None
    """What the same seconds would have cost on demand, where such a price is known."""
    generating_cost: Annotated[str, Field(max_length=32)] | None = None
    """What of that went into making class images, where the run makes its own."""
    saved: Annotated[str, Field(max_length=8)] | None = None
    """How much less the attempts cost than on demand, in percent: those whose on-demand price is known."""
    eta: Annotated[str, Field(max_length=16)] | None = None
    """Time to the verified LoRA, at the present pace and with as many disturbances as so far."""
    seconds_per_step: Annotated[Amount, Field(max_length=16)] | None = None
    """Measured seconds per optimizer step."""
    save_seconds: Annotated[str, Field(max_length=16)] | None = None
    """Measured seconds that a checkpoint takes from the training."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two checkpoints, as the newest attempt has it."""
    images_per_second: Annotated[str, Field(max_length=16)] | None = None
    """Measured images per second."""
    mfu: Annotated[str, Field(max_length=8)] | None = None
    """Share of the GPU's peak rate that the model's own operations reach, in percent, where that is known."""
    memory: Annotated[str, Field(max_length=16)] | None = None
    """Peak memory of the GPU, or of the trainer's process where there is none."""
    event_sequence: Annotated[int, Field(ge=0)] | None = None
    """Sequence of the newest event of the newest attempt that is folded in here: a repeat changes nothing."""
