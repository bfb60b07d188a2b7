"""What a run is busy with, in one word of a fixed list: every second of a run belongs to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from lorafinetune.api.status import LoRAFineTuneStatus, TimeStatus
from lorafinetune.engine.times import instant, stamp


class Activity(StrEnum):
    """All words of status.activity."""

    ACCEPTING = "Accepting"
    """The operator takes the run in, and makes what its first attempt needs."""
    CHECKING_STORAGE = "CheckingStorage"
    """The bucket is being asked, or says no."""
    MISCONFIGURED = "Misconfigured"
    """Something must be mended by people: a pool, a Secret, a policy; the message says what."""
    NO_NODE_FITS = "NoNodeFits"
    """The scheduler finds no node, and nothing says that one is coming."""
    SCALING_UP = "ScalingUp"
    """A node is being brought by the cluster's autoscaler."""
    POOL_DRY = "PoolDry"
    """No pool has capacity: the attempt that waits is the probe."""
    POOL_FULL = "PoolFull"
    """As many attempts as the pool's maxConcurrentAttempts allows are on it."""
    WAITING_FOR_SPOT = "WaitingForSpot"
    """There is time before the deadline, so spot capacity is waited for."""
    QUOTA = "Quota"
    """The API server refuses the pod for want of quota, or by a policy."""
    QUEUED = "Queued"
    """Kueue holds the pod back."""
    IMAGE = "Image"
    """The trainer's image cannot be pulled."""
    BACKING_OFF = "BackingOff"
    """A pause after a failure that may come again at once."""
    UNCLEAR = "Unclear"
    """An attempt or its node is silent, and a sign is waited for."""
    STARTING = "Starting"
    """The pod has a node: its image is pulled, its container starts."""
    PREPARING = "Preparing"
    """The trainer downloads, reads, computes latents, or puts back its state."""
    TRAINING = "Training"
    VALIDATING = "Validating"
    EXPORTING = "Exporting"
    """The last state is saved and the LoRA is published."""
    SAVING = "Saving"
    """The node is being taken, or we stop the attempt: it saves."""
    VERIFYING = "Verifying"
    SUSPENDED = "Suspended"
    DELETING = "Deleting"
    FINISHED = "Finished"


CAPACITY: Final = (
    Activity.NO_NODE_FITS,
    Activity.SCALING_UP,
    Activity.POOL_DRY,
    Activity.POOL_FULL,
    Activity.WAITING_FOR_SPOT,
)
"""Waiting for a node: what placement.onDemand.afterPending counts."""

_BY_REASON: Final = {
    "Held": Activity.ACCEPTING,
    "Starting": Activity.ACCEPTING,
    "MarkingStorage": Activity.CHECKING_STORAGE,
    "CheckingStorage": Activity.CHECKING_STORAGE,
    "HeadLost": Activity.CHECKING_STORAGE,
    "ReadingHead": Activity.CHECKING_STORAGE,
    "UnknownPool": Activity.MISCONFIGURED,
    "NoDefaultPool": Activity.MISCONFIGURED,
    "NotOnDemand": Activity.MISCONFIGURED,
    "PoolNotAllowed": Activity.MISCONFIGURED,
    "PodNameTaken": Activity.MISCONFIGURED,
    "CredentialsMissing": Activity.MISCONFIGURED,
    "BucketMissing": Activity.MISCONFIGURED,
    "AccessDenied": Activity.MISCONFIGURED,
    "StorageNotFencing": Activity.MISCONFIGURED,
    "EmptyDataset": Activity.MISCONFIGURED,
    "CreateRefused": Activity.QUOTA,
    "Unschedulable": Activity.NO_NODE_FITS,
    "ScalingUp": Activity.SCALING_UP,
    "PoolDry": Activity.POOL_DRY,
    "PoolFull": Activity.POOL_FULL,
    "WaitingForSpot": Activity.WAITING_FOR_SPOT,
    "Queued": Activity.QUEUED,
    "BackingOff": Activity.BACKING_OFF,
    "EndingUnclear": Activity.UNCLEAR,
    "NodeSilent": Activity.UNCLEAR,
    "NodeBack": Activity.UNCLEAR,
    "ReplacementHeld": Activity.UNCLEAR,
    "AttemptCreated": Activity.STARTING,
    "PodStarting": Activity.STARTING,
    "TrainerStarting": Activity.PREPARING,
    "Downloading": Activity.PREPARING,
    "Scanning": Activity.PREPARING,
    "Generating": Activity.PREPARING,
    "Conditioning": Activity.PREPARING,
    "Resuming": Activity.PREPARING,
    "Training": Activity.TRAINING,
    "Unheard": Activity.TRAINING,
    "Validating": Activity.VALIDATING,
    "Saving": Activity.EXPORTING,
    "Exporting": Activity.EXPORTING,
    "Interrupted": Activity.SAVING,
    "Moving": Activity.SAVING,
    "DeadlineExceeded": Activity.SAVING,
    "MaxCostReached": Activity.SAVING,
    "MaxDurationReached": Activity.SAVING,
    "NoProgress": Activity.SAVING,
    "TooManyPreemptions": Activity.SAVING,
    "Suspending": Activity.SAVING,
    "Stopping": Activity.DELETING,
    "Verifying": Activity.VERIFYING,
    "ErrImagePull": Activity.IMAGE,
    "ImagePullBackOff": Activity.IMAGE,
    "InvalidImageName": Activity.IMAGE,
    "ImageInspectError": Activity.IMAGE,
    "ErrImageNeverPull": Activity.IMAGE,
}
_BY_PHASE: Final = {
    "Suspended": Activity.SUSPENDED,
    "Deleting": Activity.DELETING,
    "Succeeded": Activity.FINISHED,
    "Failed": Activity.FINISHED,
    "Running": Activity.TRAINING,
    "Starting": Activity.MISCONFIGURED,
    "Pending": Activity.CHECKING_STORAGE,
}
"""For reasons that are others' words: a bucket's, or a container's that cannot start."""


def activity(phase: str, reason: str, *, holds_a_node: bool = False) -> Activity:
    """Return what a run in *phase*, for *reason*, is busy with; *holds_a_node*: its attempt has a node that is paid."""
    if reason == "Starting" and holds_a_node:
        return Activity.PREPARING  # the trainer's own first word, not ours before the first attempt
    if phase in ("Succeeded", "Failed", "Deleting"):
        return _BY_PHASE[phase]
    return _BY_REASON.get(reason) or _BY_PHASE[phase]


def clocked(status: LoRAFineTuneStatus, busy_with: Activity, *, created: float, now: float) -> dict[str, object]:
    """Return the changes of *status* for a run that is *busy_with* something now.

    The stretch that ends is added to its activity's total, in whole seconds from stamp to stamp, so that nothing is
    lost or counted twice: totals and present stretch add up to the time since *created*.
    """
    if status.activity == busy_with and status.activity_since is not None:
        return {}
    # Before its first look, a run waits for the operator.
    known = status.activity_since is not None and status.activity is not None
    before = status.activity if known and status.activity is not None else Activity.ACCEPTING.value
    since = instant(status.activity_since) if known and status.activity_since is not None else created
    until = max(since, float(int(now)))
    times = _added(status.times, before, int(until - since))
    return {"activity": busy_with.value, "activity_since": stamp(until), "times": times}


def seconds_of(status: LoRAFineTuneStatus, busy_with: Activity, now: float) -> float:
    """Return the seconds that the run has been busy with one thing so far, the present stretch included."""
    total = float(sum(one.seconds for one in status.times if one.activity == busy_with))
    if status.activity == busy_with and status.activity_since is not None:
        total += max(0.0, now - instant(status.activity_since))
    return total


def _added(times: Sequence[TimeStatus], busy_with: str, seconds: int) -> list[TimeStatus]:
    if seconds <= 0:
        return list(times)
    known = {one.activity: one.seconds for one in times}
    known[busy_with] = known.get(busy_with, 0) + seconds
    return [TimeStatus(activity=name, seconds=total) for name, total in known.items()]
