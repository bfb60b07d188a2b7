"""One authenticated message from trainer to operator. Events are hints: the head and the manifests are the truth."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from lorafinetune.contract.head import MAX_ATTEMPTS, ArtifactEntry, CheckpointEntry
from lorafinetune.contract.model import OpenModel
from lorafinetune.contract.training import MAX_STEPS

EVENTS_PATH: Final = "/v1/events"
AUDIENCE: Final = "lorafinetune.io"
"""The audience of the projected token that authenticates the pod."""
MAX_EVENT_BYTES: Final = 64 * 1024
MAX_MESSAGE: Final = 1024
MAX_COUNT: Final = 2**53
"""No number may be too large for what reads it after us: a status holds 64 bits, and most of its readers 53."""
MAX_SECONDS: Final = 1e9
"""No measured time is longer: what is reckoned with it has an end."""


class EventType(StrEnum):
    """What happened."""

    STARTED = "started"
    """The attempt holds the head; ``step`` is where it resumes, ``phase`` what it does first."""
    PROGRESS = "progress"
    """Steps were done, or another phase began."""
    CHECKPOINT = "checkpoint"
    """A checkpoint was committed; ``checkpoint`` names it."""
    YIELDED = "yielded"
    """SIGTERM was obeyed; ``saved`` says what was saved."""
    FINISHED = "finished"
    """The artifact is committed; ``artifact`` names it."""
    FAILED = "failed"
    """The attempt ends with an error; ``reason`` and ``message`` say which and what to do."""


class Phase(StrEnum):
    """What an attempt is doing: every second belongs to one."""

    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    SCANNING = "Scanning"
    GENERATING = "Generating"
    """Class images are made with the base model."""
    CONDITIONING = "Conditioning"
    RESUMING = "Resuming"
    TRAINING = "Training"
    VALIDATING = "Validating"
    SAVING = "Saving"
    EXPORTING = "Exporting"


class Saved(StrEnum):
    """What SIGTERM found and did."""

    NONE = "none"
    """There was nothing to save, or it could not be saved in time."""
    DURABLE = "durable"
    """The state was committed already."""
    NEW = "new"
    """The state was committed within the notice."""


class Event(OpenModel):
    """One message. (run UID, attempt, sequence) identifies it: a repeat changes nothing."""

    version: Literal[1] = 1
    type: EventType
    run_uid: Annotated[str, Field(min_length=1, max_length=64)]
    attempt: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]
    sequence: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    """1, 2, 3 ... within the attempt."""
    step: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    """Optimizer steps done."""
    time: Annotated[float, Field(ge=0)] = 0.0
    """The sender's clock, Unix seconds: data, never trusted for order."""
    phase: Phase | None = None
    loss: float | None = None
    """Mean loss of the last step."""
    learning_rate: float | None = None
    seconds_per_step: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """Mean over the latest steps."""
    total_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Optimizer steps that the run has in all, once that is known."""
    gradient_norm: Annotated[float, Field(ge=0)] | None = None
    """Of the last step, before it was limited."""
    images_per_second: Annotated[float, Field(ge=0)] | None = None
    mfu: Annotated[float, Field(ge=0)] | None = None
    """Share of the GPU's peak rate that the model's own operations reach, where that is known."""
    memory_bytes: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Peak memory of the GPU, or of the process where there is none."""
    save_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """What one checkpoint costs the training, measured by this attempt: the time that it does not train for it."""
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Steps between two checkpoints, as they are made now."""
    done: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Items of the phase that are done, such as images, of ``total``."""
    total: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    checkpoint: CheckpointEntry | None = None
    artifact: ArtifactEntry | None = None
    saved: Saved | None = None
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9]*$")] | None = None
    """CamelCase word for what went wrong, e.g. ``EmptyDataset``."""
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """With ``failed``: the code that the process is about to end with, should its node take that word with it."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """A sentence for people: what is wrong and what to do."""

    @model_validator(mode="after")
    def _carries_what_its_type_says(self) -> Self:
        needed = {
            EventType.CHECKPOINT: "checkpoint",
            EventType.FINISHED: "artifact",
            EventType.YIELDED: "saved",
            EventType.FAILED: "reason",
        }.get(self.type)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"an event of type {self.type} must carry {needed}")
        return self


class Termination(OpenModel):
    """The trainer's last words, as JSON in the container's termination message (4 KiB at most)."""

    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    step: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps done when the process ended."""
    durable_step: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps of the newest committed checkpoint."""
    phase: Phase | None = None
    saved: Saved | None = None
    reason: str = ""
    message: str = ""
