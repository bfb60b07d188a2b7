"""What is to be done: actions (creates and deletes first), the status to write, and when to look again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import LoRAFineTuneStatus


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Hold the run, so that it cannot vanish with its storage uncollected."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Let the run go: the last write of its life."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make attempt *attempt* on *pool*."""

    attempt: int
    pool: str
    pool_spec: GPUPoolSpec
    resume_from: str | None
    on_demand_price_per_hour: str | None


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Ask the platform to end a pod, with its grace."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ReleasePod:
    """Take our finalizer off a pod whose end is stored."""

    name: str
    uid: str


class Job(StrEnum):
    """Work on the bucket that takes time: it runs beside the loop, and its answer wakes it."""

    CHECK = "check"
    MARK = "mark"
    READ = "read"
    VERIFY = "verify"
    REBUILD = "rebuild"
    PRUNE = "prune"
    BURY = "bury"
    COLLECT = "collect"


@dataclass(frozen=True, slots=True)
class StartJob:
    """Start *job* unless it is running already."""

    job: Job


@dataclass(frozen=True, slots=True)
class Abandon:
    """Record that the run's prefix was left behind, and why."""

    message: str


Action = AddFinalizer | RemoveFinalizer | CreatePod | DeletePod | ReleasePod | StartJob | Abandon


@dataclass(frozen=True, slots=True)
class Announcement:
    """A Kubernetes event on the run, told once the status is written."""

    reason: str
    message: str
    warning: bool = False
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an Observation. *reason* and *message* go unchanged to condition, event, log and status."""

    reason: str
    message: str
    status: LoRAFineTuneStatus
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    look_again: float | None = None
    """Seconds; None = when something changes."""
    ended: tuple[tuple[str, str], ...] = field(default=())
    """(cause, pool) of each attempt whose end was found in this pass, for the metrics."""
