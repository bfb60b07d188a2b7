"""What the trainer, the bucket or the kubelet says of the run itself: no mark of the platform outweighs that.

The first half of the chain of ``classify``, which says how it is to be read. It counts for a lost or vanished pod, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.engine.ending import NAN_LOSS, Cause, Ending
from lorafinetune.engine.evidence import Evidence

Rule = Callable[[Evidence], Ending | None]

_PRESSURE: Final = ("The node was low on resource", "The node had condition")
"""What the kubelet says when it evicts, or refuses, a pod because of its node: versions put other words before it."""
_EXCEEDED: Final = "exceed"
"""What is in every sentence of a kubelet that evicts a pod for its own use of disk."""


def said(e: Evidence) -> Ending | None:
    """Return what the trainer itself, or the bucket, says of the end: that counts on a lost or vanished pod, too."""
    return next((ending for rule in SAID if (ending := rule(e)) is not None), None)


def finished(e: Evidence) -> Ending | None:
    """The artifact is in storage, or its trainer says so; unless somebody has looked, and it is not."""
    if e.is_published and not e.is_unpublished:
        return Ending(Cause.FINISHED, "Finished", "the trainer has published its artifact")
    if e.pod.exit_code == ExitCode.FINISHED and not e.is_unpublished:
        return Ending(Cause.FINISHED, "Finished", "the trainer says that its artifact is published")
    return None


def input_cannot_work(e: Evidence) -> Ending | None:
    """Its code says that no retry mends it."""
    if e.code != ExitCode.INVALID:
        return None
    return Ending(Cause.INVALID, e.told or "Invalid", e.words or "the input cannot work")


def out_of_memory(e: Evidence) -> Ending | None:
    """The kernel's word, or the GPU's: also on a pod that was being evicted, and whatever code it left."""
    if e.pod.container_reason != "OOMKilled" and e.code != ExitCode.OUT_OF_MEMORY:
        return None
    advice = (
        "set training.gradientCheckpointing: true, lower training.batchSize or training.resolution, "
        "or choose a pool with more memory"
    )
    return Ending(Cause.OUT_OF_MEMORY, "OutOfMemory", f"{e.words or 'memory ran out'}; {advice}")


def diverged(e: Evidence) -> Ending | None:
    """Numbers stayed NaN."""
    if e.code != ExitCode.NOT_FINITE:
        return None
    advice = "loss or gradient stayed NaN or infinite: lower training.learningRate; see the trainer's log"
    return Ending(Cause.ERROR, NAN_LOSS, e.words or advice)


def training_error(e: Evidence) -> Ending | None:
    """An exception, in the trainer's own words."""
    return Ending(Cause.ERROR, e.told, e.words) if e.code == ExitCode.FAILED and e.told else None


def over_its_limit(e: Evidence) -> Ending | None:
    """Evicted by its kubelet: for its node's want (infrastructure), or for using more than the pod itself may."""
    pod, word = e.pod, e.pod.platform_message if e.pod.platform_word == "Evicted" else ""
    evicted = pod.pod_reason == "Evicted"
    said = pod.pod_message if evicted else word
    for_its_node = any(words in said for words in _PRESSURE) or (evicted and pod.disruption == "TerminationByKubelet")
    if for_its_node or (evicted and not e.has_run):  # what has never run cannot have used too much
        did = "evicted" if e.has_run else "refused"
        return Ending(Cause.INFRASTRUCTURE, "NodePressure", f"{pod.node} {did} the pod: {said or 'no word of why'}")
    if evicted or _EXCEEDED in said:
        return Ending(Cause.ERROR, "OverItsLimit", said or "the pod used more than its own limits")
    return None


def fenced(e: Evidence) -> Ending | None:
    """Another attempt holds the head."""
    if e.code != ExitCode.FENCED:
        return None
    if e.deleted:
        return Ending(Cause.SUSPENDED, "Suspended", "stopped, as its run is being deleted")
    return Ending(Cause.FENCED, e.told or "Fenced", e.words or "another attempt holds the head")


SAID: Final[tuple[Rule, ...]] = (
    finished,
    input_cannot_work,
    out_of_memory,
    diverged,
    training_error,
    over_its_limit,
    fenced,
)
"""Read it from the top to the bottom."""
