"""Why an attempt ended: the evidence of trainer, storage, pod, node and Kubernetes events, weighed in a fixed order.

The order is that of the signals' strength, and the chain at the end of this page is to be read from the top to the
bottom: what the trainer itself says of the user's input comes before any mark of the platform (``said``), so that a
user's error is never booked as a preemption; the platform's marks come before bare exit codes, so that a preemption is
never booked as the user's error. Each rule asks for facts that are there. So more facts can only move a verdict upward
in the chain, and in the end it is the same in whatever order they came.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.engine.ending import (
    HEAD_LOST,
    NAN_LOSS,
    PREEMPTIONS,
    QUEUE_EVICTED,
    STORAGE_REASONS,
    Cause,
    Ending,
    Hold,
)
from lorafinetune.engine.evidence import SIGNALS, UNKNOWN_ENDS, Evidence
from lorafinetune.engine.said import Rule, said

__all__ = [
    "DONE",
    "HEAD_LOST",
    "NAN_LOSS",
    "PREEMPTIONS",
    "STORAGE_REASONS",
    "Cause",
    "Ending",
    "Hold",
    "classify",
]

LATE_EVIDENCE: Final = 30.0
"""Seconds that an end without a word waits for the platform's mark, which may come after the container's end."""

PLACES: Final = {
    ExitCode.DISK_FULL: ("DiskFull", "a disk of the node is full"),
    ExitCode.STORAGE_UNREACHABLE: ("StorageUnreachable", "the bucket did not answer"),
    ExitCode.STORAGE_REFUSED: ("AccessDenied", "the bucket denied access, or is gone"),
}
"""Codes that speak of a place and not of the run: reason and words, where the trainer left none."""

_SHUTDOWN: Final = {"Terminated", "Shutdown", "NodeShutdown", "Preempting", "NodeLost"}
_REJECTED: Final = {"NodeAffinity", "UnexpectedAdmissionError"}
NOT_STARTED: Final = {"StartError", "ContainerCannotRun"}
"""What a container runtime says of a container that it could not start: a hook or a driver of the node failed."""
_TAKEN: Final = {
    "PreemptionByScheduler": "a pod of higher priority took its place on {node}",
    "PreemptionByKubeScheduler": "a pod of higher priority took its place on {node}",
    "DeletionByTaintManager": "{node} was tainted, and its pods were deleted",
    "EvictionByEvictionAPI": "the pod was evicted from {node} through the API",
    "DeletionByPodGC": "{node} is gone, and its pods were cleared away",
    "TerminationByKubelet": "{node} was taken back, and its kubelet ended the pod",
}
"""Reasons of DisruptionTarget, in words."""


def classify(e: Evidence, planned: Ending | None = None) -> Ending | Hold:
    """Say why the ended attempt ended, by the first rule that speaks.

    *planned* is what an attempt that we are ending ends with, unless its trainer says something of its own.
    """
    if (told := said(e)) is not None:
        return told
    if planned is not None and e.pod.deleting:
        return replace(planned, message=f"{planned.message}{e.saved}")
    for rule in DONE:
        if (ending := rule(e)) is not None:
            return ending
    if e.pod.exit_code == ExitCode.FINISHED:
        return _without_a_word(e)  # the bucket was asked meanwhile
    # An end without a word: the platform's mark may come after it.
    waited = e.now - (e.pod.ended if e.pod.ended is not None else e.now)
    if -LATE_EVIDENCE < waited < LATE_EVIDENCE:  # else the node's clock is too far ahead to measure by
        return Hold(LATE_EVIDENCE - waited)
    return _without_a_word(e)


# What the user, the platform and its machines did.


def suspended(e: Evidence) -> Ending | None:
    """The user wanted it to stop."""
    if not (e.suspended and e.pod.deleting):
        return None
    return Ending(
        Cause.SUSPENDED, "Suspended", f"{'its run was deleted' if e.deleted else 'suspended by the user'}{e.saved}"
    )


def queued_again(e: Evidence) -> Ending | None:
    """Kueue took its quota back."""
    if not e.pod.queue_word or not e.was_deleted:
        return None
    return Ending(Cause.PREEMPTED, QUEUE_EVICTED, f"Kueue took its quota back ({e.pod.queue_word}){e.saved}")


def refused_by_node(e: Evidence) -> Ending | None:
    """The kubelet would not take the pod; where it had run there before, the machine behind the name is another."""
    reason = e.pod.pod_reason
    if reason not in _REJECTED and not reason.startswith("OutOf"):
        return None
    if e.started:
        return Ending(Cause.PREEMPTED, "NodeReplaced", f"{e.pod.node} came back as another machine ({reason}){e.saved}")
    return Ending(Cause.INFRASTRUCTURE, reason, f"{e.pod.node} refused the pod: {e.pod.pod_message or reason}")


def disrupted(e: Evidence) -> Ending | None:
    """DisruptionTarget, whatever its reason: Kubernetes says that this was no fault of the pod."""
    if not e.was_disrupted:
        return None
    reason = e.pod.disruption
    words = _TAKEN.get(reason, "{node} was taken back").format(node=e.pod.node or "its node")
    return Ending(Cause.PREEMPTED, reason, f"{words} ({reason}){e.saved}")


def shut_down(e: Evidence) -> Ending | None:
    """The kubelet ended or refused the pod, because its machine goes."""
    if e.pod.pod_reason not in _SHUTDOWN:
        return None
    made_room = e.pod.pod_reason == "Preempting"
    words = f"{e.pod.node} needed the room for a critical pod" if made_room else f"{e.pod.node} was shut down"
    return Ending(Cause.PREEMPTED, e.pod.pod_reason, f"{words} ({e.pod.pod_reason}){e.saved}")


def node_taken(e: Evidence) -> Ending | None:
    """Its node is announced to go, has gone, or is another one: around the time of the end, and not long after it."""
    pod, node = e.pod, e.node
    if node is not None and node.notice and e.is_near(node.notice_since):
        return Ending(Cause.PREEMPTED, "NodeReclaimed", f"{node.name} was taken back ({node.notice}){e.saved}")
    if node is not None and not node.ready and e.is_near(node.not_ready_since):
        return Ending(Cause.PREEMPTED, "NodeNotReady", f"{pod.node} fell silent{e.saved}")
    if e.has_own_code:  # it ended by itself, and nobody knows since when the node is gone
        return None
    if e.is_replaced:
        return Ending(Cause.PREEMPTED, "NodeReplaced", f"{pod.node} is another machine by now{e.saved}")
    if pod.node and node is None:
        return Ending(Cause.PREEMPTED, "NodeGone", f"{pod.node} is gone{e.saved}")
    return None


def ran_too_long(e: Evidence) -> Ending | None:
    """The pod has an activeDeadlineSeconds, which is not from us: a policy of the cluster set it, and will again."""
    if e.pod.pod_reason != "DeadlineExceeded" or not e.has_run:
        return None
    words = (
        "the pod ran longer than its activeDeadlineSeconds, which the operator does not set: a policy of the cluster"
    )
    return Ending(Cause.INFRASTRUCTURE, "DeadlineExceeded", f"{words} does{e.saved}")


def told_by_event(e: Evidence) -> Ending | None:
    """A Kubernetes event of the pod says what the pod itself does not say any more."""
    word, message = e.pod.platform_word, e.pod.platform_message
    if not word or (e.has_own_code and not e.was_deleted):  # an event without a date: it may tell of what came later
        return None
    return Ending(Cause.PREEMPTED, word, f"taken by the platform ({word}: {message}){e.saved}")


def asked_to_stop(e: Evidence) -> Ending | None:
    """It got SIGTERM and obeyed, or its pod was deleted; nothing says by whom."""
    if e.was_deleted:
        return Ending(Cause.PREEMPTED, "Deleted", f"the pod was deleted{e.saved}")
    if e.code == ExitCode.YIELDED:
        return Ending(Cause.PREEMPTED, "Yielded", f"the pod was asked to stop{e.saved}")
    return None


def cordoned(e: Evidence) -> Ending | None:
    """Killed on a node that takes no more pods: by a controller that sets no other mark."""
    if e.node is None or not e.node.cordoned or e.has_own_code:
        return None
    return Ending(Cause.PREEMPTED, "NodeCordoned", f"killed on {e.pod.node}, which was cordoned{e.saved}")


def place_failed(e: Evidence) -> Ending | None:
    """Disk, bucket or hub failed it: another place, or another time, may do."""
    if e.code not in PLACES:
        return None
    reason, what = PLACES[ExitCode(e.code)]
    return Ending(Cause.INFRASTRUCTURE, e.told or reason, e.words or what)


def never_started(e: Evidence) -> Ending | None:
    """The container runtime could not start it; or the kubelet would not, in a word that no rule knows."""
    pod = e.pod
    if pod.phase == "Failed" and pod.pod_reason and pod.node and not e.has_run:
        return Ending(
            Cause.INFRASTRUCTURE, pod.pod_reason, f"{pod.node} refused the pod: {pod.pod_message or 'no word'}"
        )
    if pod.container_reason not in NOT_STARTED:
        return None
    said = e.pod.termination.message if e.pod.termination is not None else "no word of why"
    return Ending(Cause.INFRASTRUCTURE, "StartError", f"{e.pod.node} could not start the container: {said}")


DONE: Final[tuple[Rule, ...]] = (
    suspended,
    queued_again,
    refused_by_node,
    disrupted,
    shut_down,
    node_taken,
    ran_too_long,
    told_by_event,
    asked_to_stop,
    cordoned,
    place_failed,
    never_started,
)


def _without_a_word(e: Evidence) -> Ending:
    """Say what is likeliest: a kill on interruptible capacity is its platform's, a code of its own the trainer's."""
    pod = e.pod
    if pod.phase == "Failed" and pod.node and not e.has_run:
        why = pod.waiting_message or pod.waiting_reason or "no word of why"
        return Ending(Cause.INFRASTRUCTURE, "NeverStarted", f"the container never started on {pod.node}: {why}")
    if pod.exit_code is None or pod.exit_code in SIGNALS or pod.container_reason in UNKNOWN_ENDS:
        if e.is_spot:
            return Ending(Cause.PREEMPTED, "Killed", f"killed on spot node {pod.node} without a word")
        code = f"exit code {pod.exit_code}" if pod.exit_code is not None else "and no end was reported"
        return Ending(Cause.INFRASTRUCTURE, "Killed", f"killed on node {pod.node} without a word ({code})")
    if e.is_unpublished and e.storage.artifact is not None:
        return Ending(Cause.INFRASTRUCTURE, e.storage.artifact.reason, e.storage.artifact.message)
    words = e.words or f"the trainer ended with exit code {pod.exit_code}; see its log"
    return Ending(Cause.ERROR, "TrainerFailed", words)
