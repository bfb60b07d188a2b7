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
class DeleteRun:
    """Delete the resource, if it still is as it was when that was decided."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make attempt *attempt* on *pool*."""

    attempt: int
    pool: str
    pool_spec: GPUPoolSpec
    resume_from: str | None
    on_demand_price_per_hour: str | None
    avoid_nodes: tuple[str, ...] = ()
    """Nodes on which the run's last attempts failed."""
    lifetime_seconds: float | None = None
    """Mean seconds between preemptions on that pool, for the cadence of checkpoints; None = not known."""
    publish: bool = False
    """Train nothing: publish the newest checkpoint's LoRA as the artifact."""


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


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Read the Kubernetes events of a pod: beside the loop, at a bounded rate; the answer wakes the run."""

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
    steps: int | None = None
    """For VERIFY: of how many steps the artifact must be, at least. None = of all; fewer after an attempt that was made
    to publish what there is (``CreatePod.publish``)."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Record that the run's prefix was left behind, and why."""

    message: str


Action = (
    AddFinalizer | RemoveFinalizer | DeleteRun | CreatePod | DeletePod | ReleasePod | ReadEvents | StartJob | Abandon
)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A Kubernetes event on the run, told once the status is written."""

    reason: str
    message: str
    warning: bool = False
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """An attempt that was booked under one cause, and by late evidence stands under another."""

    was: str
    now: str
    pool: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an Observation. *reason* and *message* go unchanged to condition, event, log and status."""

    reason: str
    message: str
    status: LoRAFineTuneStatus
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    look_again: float | None = None
    """Seconds until time alone may change what is to be done; None = only what changes does."""
    refresh: float | None = None
    """Seconds until what people read (cost, ETA, waiting times) is out of date; nothing hangs on that look."""
    ended: tuple[tuple[str, str], ...] = field(default=())
    """(cause, pool) of each attempt whose end was found in this pass, for the metrics."""
    corrected: tuple[Correction, ...] = ()
    """Attempts whose record late evidence has corrected in this pass, for the metrics."""

    @property
    def makes_attempt(self) -> bool:
        """Whether a pod is made."""
        return any(isinstance(action, CreatePod) for action in self.actions)

    @property
    def next_look(self) -> float | None:
        """Seconds until the run is looked at again if nothing wakes it; None = never."""
        return min((due for due in (self.look_again, self.refresh) if due is not None), default=None)
