"""Why an attempt ended: the evidence of pod, container, node and trainer, weighed in a fixed order.

The order is that of the signals' strength: what the trainer itself says of the user's input comes before any mark of
the platform, so that a user's error is never booked as a preemption; the platform's marks come before bare exit codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.contract.event import Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.engine.observation import NodeSeen, PodSeen
from lorafinetune.engine.progress import Progress

LATE_EVIDENCE: Final = 30.0
"""Seconds that a bare 137 or 143 waits for the platform's mark, which may come after the container's end."""
LOST_AFTER: Final = 10.0
"""Seconds of a node's silence (after it turned NotReady) and of its trainer's, before the attempt counts as lost."""

STORAGE_REASONS: Final = frozenset({"AccessDenied", "BucketMissing", "StorageUnreachable"})
"""What the bucket may say in the middle of a run: keys expire and buckets go, and come back."""
HEAD_LOST: Final = "HeadLost"
NAN_LOSS: Final = "NaNLoss"

_PLACES: Final = {
    ExitCode.DISK_FULL: ("DiskFull", "a disk of the node is full"),
    ExitCode.STORAGE_UNREACHABLE: ("StorageUnreachable", "the bucket did not answer"),
    ExitCode.STORAGE_REFUSED: ("AccessDenied", "the bucket denied access, or is gone"),
}
"""Codes that speak of a place and not of the run: reason and words, where the trainer left none."""

_SHUTDOWN: Final = {"Terminated", "Shutdown", "NodeShutdown", "Preempting", "NodeLost"}
_REJECTED: Final = {"NodeAffinity", "UnexpectedAdmissionError"}
_SIGNALS: Final = {128 + 9, 128 + 15}


class Cause(StrEnum):
    """Why an attempt ended, in the words of status, event and metric."""

    FINISHED = "Finished"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    ERROR = "Error"
    OUT_OF_MEMORY = "OutOfMemory"
    INVALID = "Invalid"
    INFRASTRUCTURE = "Infrastructure"
    FENCED = "Fenced"
    SUSPENDED = "Suspended"


PREEMPTIONS: Final = frozenset({Cause.PREEMPTED, Cause.NODE_LOST})
"""The platform's doing, never the user's fault: they spend no error budget."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The verdict."""

    cause: Cause
    reason: str
    """CamelCase, finer than the cause."""
    message: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Too early to tell: ask again in *seconds*."""

    seconds: float


def classify(
    pod: PodSeen,
    node: NodeSeen | None,
    *,
    progress: Progress | None,
    suspended: bool,
    now: float,
) -> Ending | Hold:
    """Say why the ended *pod* ended. *node* is None when the node object is gone (or the pod was never bound)."""
    told, words = _last_words(pod, progress)
    saved = _saved(pod, progress)
    if pod.exit_code == ExitCode.FINISHED or (progress and progress.artifact and progress.attempt == pod.attempt):
        return Ending(Cause.FINISHED, "Finished", "the trainer has published its artifact")
    if pod.exit_code == ExitCode.INVALID:
        return Ending(Cause.INVALID, told or "Invalid", words or "the input cannot work")
    if pod.container_reason == "OOMKilled" or pod.exit_code == ExitCode.OUT_OF_MEMORY:
        advice = (
            "set training.gradientCheckpointing: true, lower training.batchSize or training.resolution, "
            "or choose a pool with more memory"
        )
        return Ending(Cause.OUT_OF_MEMORY, "OutOfMemory", f"{words or 'memory ran out'}; {advice}")
    if pod.exit_code == ExitCode.NOT_FINITE:
        advice = "loss or gradient stayed NaN or infinite: lower training.learningRate; see the trainer's log"
        return Ending(Cause.ERROR, NAN_LOSS, words or advice)
    if pod.exit_code == ExitCode.FAILED and told:
        return Ending(Cause.ERROR, told, words)
    if pod.exit_code == ExitCode.FENCED:
        return Ending(Cause.FENCED, told or "Fenced", words or "another attempt holds the head")
    if suspended and pod.deleting:
        return Ending(Cause.SUSPENDED, "Suspended", f"suspended by the user{saved}")
    if pod.disruption:
        if pod.pod_reason == "Evicted":
            return Ending(Cause.INFRASTRUCTURE, "NodePressure", f"{pod.node} evicted the pod: {pod.pod_message}")
        return Ending(Cause.PREEMPTED, pod.disruption, f"{pod.node} was taken back ({pod.disruption}){saved}")
    if pod.pod_reason in _SHUTDOWN:
        return Ending(Cause.PREEMPTED, pod.pod_reason, f"{pod.node} was shut down ({pod.pod_reason}){saved}")
    if pod.pod_reason in _REJECTED or pod.pod_reason.startswith("OutOf"):
        return Ending(
            Cause.INFRASTRUCTURE, pod.pod_reason, f"{pod.node} refused the pod: {pod.pod_message or pod.pod_reason}"
        )
    if pod.pod_reason == "Evicted":
        return Ending(Cause.ERROR, "OverItsLimit", pod.pod_message or "the pod used more than its own limits")
    if node is not None and node.notice:
        return Ending(Cause.PREEMPTED, "NodeReclaimed", f"{node.name} was taken back ({node.notice}){saved}")
    if pod.node and (node is None or not node.ready):
        return Ending(Cause.PREEMPTED, "NodeGone", f"{pod.node} {'is gone' if node is None else 'is not ready'}{saved}")
    if pod.exit_code == ExitCode.YIELDED or pod.deleting:
        return Ending(Cause.PREEMPTED, "Deleted" if pod.deleting else "Yielded", f"the pod was asked to stop{saved}")
    if pod.exit_code in _PLACES:
        reason, what = _PLACES[ExitCode(pod.exit_code)]
        return Ending(Cause.INFRASTRUCTURE, told or reason, words or what)
    if pod.exit_code in _SIGNALS or pod.exit_code is None:
        waited = now - (pod.ended if pod.ended is not None else now)
        if -LATE_EVIDENCE < waited < LATE_EVIDENCE:  # else the node's clock is too far ahead to measure by
            return Hold(LATE_EVIDENCE - waited)
        if pod.capacity_type == CapacityType.SPOT:
            return Ending(Cause.PREEMPTED, "Killed", f"killed on spot node {pod.node} without a word")
        return Ending(
            Cause.INFRASTRUCTURE, "Killed", f"killed on node {pod.node} without a word (exit code {pod.exit_code})"
        )
    return Ending(
        Cause.ERROR, "TrainerFailed", words or f"the trainer ended with exit code {pod.exit_code}; see its log"
    )


def classify_vanished(capacity_type: str | None) -> Ending:
    """Say why an attempt ended whose pod is gone unread."""
    if capacity_type == CapacityType.SPOT:
        return Ending(Cause.PREEMPTED, "PodVanished", "the pod vanished from a spot pool")
    return Ending(Cause.INFRASTRUCTURE, "PodVanished", "the pod vanished")


def is_lost(pod: PodSeen, node: NodeSeen | None, *, progress: Progress | None, now: float) -> Ending | Hold | None:
    """Say whether a pod that never reported its end has been lost with its node; None = no sign of it.

    A trainer that still sends authenticated events is alive, whatever its node says.
    """
    if pod.is_over or not pod.node:
        return None
    if node is not None and node.ready:
        return None
    # A node that we have not heard of yet looks like one that is gone: the pod's binding gives it time.
    bound = pod.bound if pod.bound is not None else pod.created
    since = node.not_ready_since if node is not None and node.not_ready_since is not None else bound
    heard = progress.heard if progress is not None and progress.attempt == pod.attempt else 0.0
    quiet = now - max(since, heard)
    if quiet < LOST_AFTER:
        return Hold(LOST_AFTER - quiet)
    if node is None:
        return Ending(Cause.NODE_LOST, "NodeGone", f"{pod.node} is gone, and its trainer is silent")
    return Ending(
        Cause.NODE_LOST, "NodeNotReady", f"{pod.node} has been silent for {now - since:.0f} s, and so is its trainer"
    )


def _last_words(pod: PodSeen, progress: Progress | None) -> tuple[str, str]:
    """Return reason and message of the trainer itself: of its termination message, else of its last event."""
    reason, message = (pod.termination.reason, pod.termination.message) if pod.termination else ("", "")
    if not reason and progress is not None and progress.attempt == pod.attempt:
        return progress.reason, message or progress.message
    return reason, message


def _saved(pod: PodSeen, progress: Progress | None) -> str:
    saved = (pod.termination.saved if pod.termination else None) or (
        progress.saved if progress and progress.attempt == pod.attempt else None
    )
    if saved is None:
        return ""
    step = pod.termination.durable_step if pod.termination else (progress.step if progress else 0)
    return {
        Saved.NEW: f"; step {step} was saved within the notice",
        Saved.DURABLE: f"; step {step} was saved already",
        Saved.NONE: "; nothing more was saved",
    }[saved]
