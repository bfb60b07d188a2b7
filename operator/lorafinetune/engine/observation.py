"""What is so, for one run at one moment: everything that a decision may depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import ArtifactStatus, LoRAFineTuneStatus
from lorafinetune.contract.event import Termination
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry
from lorafinetune.engine.fleet import Fleet
from lorafinetune.engine.progress import Progress

CURRENCY: Final = "$"
"""What stands before sums, where the operator's settings say nothing else."""


@dataclass(frozen=True, slots=True)
class RunSeen:
    """The resource itself, without spec and status."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    """Unix seconds."""
    deleting_since: float | None = None
    has_finalizer: bool = False


@dataclass(frozen=True, slots=True)
class PodSeen:
    """One attempt's pod, reduced to what tells how it is doing or how it ended."""

    name: str
    uid: str
    attempt: int
    pool: str
    phase: str
    """Pending, Running, Succeeded, Failed or Unknown."""
    created: float
    node: str | None = None
    bound: float | None = None
    """When the scheduler gave it its node."""
    started: float | None = None
    """When the trainer's container started."""
    ended: float | None = None
    """When the trainer's container ended, or the pod's end was first known."""
    deleting: bool = False
    deleting_since: float | None = None
    """When its deletion was asked for."""
    has_finalizer: bool = False
    exit_code: int | None = None
    container_reason: str = ""
    """OOMKilled, Error, Completed, ContainerStatusUnknown ... of the ended container."""
    waiting_reason: str = ""
    """ImagePullBackOff, CreateContainerConfigError ... of a container that has not started."""
    waiting_message: str = ""
    pod_reason: str = ""
    """status.reason: Evicted, Terminated, NodeShutdown ..."""
    pod_message: str = ""
    disruption: str = ""
    """Reason of a true DisruptionTarget condition."""
    disruption_since: float | None = None
    """When that condition turned true."""
    unschedulable: str = ""
    """The scheduler's sentence, where it found no node."""
    gated: bool = False
    """Held back by a scheduling gate, as Kueue puts one on until there is quota."""
    queue_word: str = ""
    """Why a queue (Kueue) stopped it, where one did."""
    queue: str = ""
    """The Kueue LocalQueue that it was made for."""
    settings: str = ""
    """What of the spec it was made from and may change since: see edits.settings. Empty on pods of older versions."""
    asks_for: str = ""
    """What it asks of a node, as its pool was then: see pending.asks_for. Empty on pods of older versions."""
    termination: Termination | None = None
    """The trainer's last words."""
    capacity_type: str = ""
    price_per_hour: str = ""
    on_demand_price_per_hour: str = ""
    avoids: bool = False
    """Kept away from nodes on which its run has failed."""
    events_read: float | None = None
    """When its Kubernetes events were last read; what follows is from them."""
    scale_up_since: float | None = None
    """Since when an autoscaler is making a node for it; None where none is, or where it has given that up since."""
    no_scale_up: str = ""
    """The autoscaler's sentence, where it will make no node for it."""
    insufficient_capacity: str = ""
    """The cloud's or its provisioner's sentence, where there is no machine to be had (stockout, quota)."""
    start_problem: str = ""
    """What keeps it from starting on its node, in the kubelet's words (FailedCreatePodSandBox, FailedMount ...)."""
    platform_word: str = ""
    """Reason of the event that tells why it ended: Preempted, TaintManagerEviction, SpotInterrupted ..."""
    platform_message: str = ""
    """That event's sentence."""

    @property
    def is_over(self) -> bool:
        """Whether the trainer's container is known to have ended, or can never start (deleted before it had a node)."""
        return (
            self.phase in ("Succeeded", "Failed") or self.exit_code is not None or (self.deleting and self.node is None)
        )


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node that a pod is bound to."""

    name: str
    ready: bool
    not_ready_since: float | None = None
    notice: str = ""
    """The mark by which its cloud says that it will be taken: a taint's key or a condition's type."""
    notice_since: float | None = None
    """When that mark was set, where it tells."""
    deadline: float | None = None
    """When the machine will be gone, where its cloud tells."""
    uid: str = ""
    boot_id: str = ""
    """Of the machine's present boot."""
    created: float | None = None
    """When the Node object was made."""
    cordoned: bool = False
    taints: tuple[str, ...] = ()
    """Keys of all its taints, sorted."""
    capacity_type: str = ""
    """Spot or OnDemand, where its labels say so."""

    @property
    def machine(self) -> str:
        """Return what tells this machine, in this boot, from another one of the same name."""
        return f"{self.uid}/{self.boot_id}"


@dataclass(frozen=True, slots=True)
class EventsSeen:
    """What the Kubernetes events of one pod tell, as last read: members as those of PodSeen."""

    read: float
    scale_up_since: float | None = None
    no_scale_up: str = ""
    insufficient_capacity: str = ""
    start_problem: str = ""
    platform_word: str = ""
    platform_message: str = ""


@dataclass(frozen=True, slots=True)
class StorageChecked:
    """Whether this run can work with its bucket."""

    ok: bool
    reason: str
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class ArtifactChecked:
    """Whether the artifact in storage is what the head promises."""

    ok: bool
    """Verified, byte by byte."""
    final: bool
    """Asking again would not help: there is no artifact, or it is damaged."""
    reason: str
    message: str
    time: float
    steps: int
    """Steps that it had to have when it was asked for; 0 where nobody could tell."""
    artifact: ArtifactStatus | None = None
    step: int | None = None
    """Of which step it is, where there is one; also where that is too few of steps that may have been raised."""
    attempt: int | None = None
    """Which attempt made it."""

    def is_outgrown(self, attempt: int, from_step: int) -> bool:
        """Whether *attempt*, which began at *from_step*, did all that it was made for, and steps were raised too late.

        A trainer publishes at its end only, so what it made of fewer steps than are wanted now is of all that it knew.
        """
        return not self.ok and self.attempt == attempt and self.step is not None and self.step > from_step


@dataclass(frozen=True, slots=True)
class Tidied:
    """Whether the prefix is as it should be: marked, rebuilt, or rid of what nobody asked to keep."""

    done: bool
    reason: str
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class StorageSeen:
    """What is known of the run's bucket. Each member is None until asked for, and again after the operator restarts."""

    checked: StorageChecked | None = None
    newest: CheckpointEntry | None = None
    """The newest checkpoint in the head as last read."""
    published: ArtifactEntry | None = None
    """The artifact in the head as last read."""
    read: float | None = None
    """When the head was last read."""
    planned_steps: int | None = None
    """Optimizer steps of the run's plan, in the head as last read, where the spec gives none."""
    marked: Tidied | None = None
    """Before the first attempt: the prefix carries the run's owner mark, without which no attempt may begin there."""
    artifact: ArtifactChecked | None = None
    rebuilt: Tidied | None = None
    """After the head was lost: it has been made anew from the manifests."""
    pruned: Tidied | None = None
    """After success: checkpoints and conditioning are gone."""
    buried: Tidied | None = None
    """While deleting, first part: the head is a tombstone, all but it and the owner mark is deleted."""
    collected: Tidied | None = None
    """While deleting, last part: nothing is left but what is kept."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A pod could not be made: quota, policy, another object of that name, a Secret that is missing."""

    reason: str
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """The cluster as a whole, as far as it tells how much our view of it is worth."""

    unbroken_since: float = 0.0
    """Since when pods and nodes have been watched without a gap, Unix seconds."""
    nodes: int = 0
    """Nodes that attempts of any run are bound to."""
    silent: int = 0
    """Of those, the ones that are not Ready, or gone."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All of it."""

    run: RunSeen
    spec: LoRAFineTuneSpec
    status: LoRAFineTuneStatus
    pods: tuple[PodSeen, ...]
    """The run's pods, by attempt."""
    nodes: Mapping[str, NodeSeen]
    """The nodes that exist, of those that the pods are bound to."""
    pools: Mapping[str, GPUPoolSpec]
    now: float
    progress: Progress | None = None
    """Fold of the newest attempt's events."""
    storage: StorageSeen = field(default_factory=StorageSeen)
    cluster: ClusterSeen = ClusterSeen()
    fleet: Fleet = field(default_factory=dict)
    """What all runs together know of each pool."""
    spec_since: float = 0.0
    """When this operator first saw the spec as it is, Unix seconds."""
    refusal: Refusal | None = None
    """The last refused create, until one succeeds."""
    collect_timeout: float = 900.0
    """Seconds after which a run whose bucket cannot be reached is let go."""
    currency: str = CURRENCY
    """What stands before sums that people read."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run: the spec's, else what the trainer made of the data; None until it tells."""
        told = self.progress.total_steps if self.progress is not None else None
        stored = self.status.steps if self.status.start_time is not None else None  # before, the spec may change it
        return self.spec.training.steps or told or self.storage.planned_steps or stored

    def is_booked(self, attempt: int) -> bool:
        """Whether the end of *attempt* stands in the status, or stood there so long ago that only totals know of it."""
        known = {one.number: one.cause is not None for one in self.status.attempts}
        return known.get(attempt, attempt < min(known, default=0))

    def pod_of(self, attempt: int) -> PodSeen | None:
        """Return the pod of *attempt*, if it is still there."""
        return next((pod for pod in self.pods if pod.attempt == attempt), None)
