"""An attempt that has no node yet: what it waits for, and from when on its pool counts as dry.

Nobody pays twice: only positive signs, or the end of the pool's provisioningTimeout, make a pool dry; and while a node
is being made, that one is waited for.
"""

from __future__ import annotations

from typing import Final

from lorafinetune.api.durations import seconds
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import AttemptStatus
from lorafinetune.contract import canonical
from lorafinetune.engine.fleet import PoolKnown
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.times import duration, instant

POOL_DRY: Final = "PoolDry"
"""Reason of an attempt for which its pool has no node."""
SIGNS_AFTER: Final = 10.0
"""Seconds for which nothing that is said of a new pod counts: the scheduler and the autoscaler may not have met yet."""
SCALE_UPS: Final = 3
"""Provisioning time-outs after which an attempt is tired of nodes that are made again and again, and never come."""
AVOIDING: Final = 120.0
"""Seconds after which an attempt that avoids nodes of its own pool gives that up: perhaps there are no others."""
SIGNS_HOLD: Final = 10.0
"""Seconds for which it counts as known that no node is on its way, once a pod's Kubernetes events have been read."""
SIGNS_LOST: Final = 45.0
"""Seconds without a look at a pod's Kubernetes events, after which nothing more is expected of them."""

_DIGITS: Final = 12


def asks_for(pool: GPUPoolSpec) -> str:
    """Return in a short word what attempts in *pool* ask of a node: equal words, equal nodes."""
    tolerated = [one.to_json() for one in pool.tolerations]
    asked = {"selector": pool.node_selector, "tolerations": tolerated, "resource": pool.gpu.resource}
    return canonical.digest(asked)[:_DIGITS]


def left(pool: str, words: str | None, to: str) -> str:
    """Return why an attempt left *pool* for another: *words* say why there was no node for it."""
    return f"{pool} has no node ({words}): going to {to}"


def words_of(message: str | None, pool: str) -> str:
    """Return the *words* of what ``left`` has made of them, or of a message that is nothing else."""
    found = (message or "").removeprefix(f"{pool} has no node (")
    return found if found == message else found.rpartition("): going to ")[0] or found  # a long one was cut off


def waits(pod: PodSeen) -> bool:
    """Whether *pod* waits for a node: not for a queue, and not for its own end."""
    return pod.node is None and pod.phase == "Pending" and not pod.deleting and not pod.gated


def since(attempt: AttemptStatus, pod: PodSeen) -> float:
    """Return since when it waits for a node: its queue's time does not count."""
    queued = instant(attempt.queued_until) if attempt.queued_until is not None else 0.0
    return max(pod.created, queued)


def patience(attempt: AttemptStatus, pod: PodSeen, pool: GPUPoolSpec) -> float:
    """Return until when (Unix seconds) it waits where nobody says that there is no node for it."""
    began, timeout = since(attempt, pod), seconds(pool.provisioning_timeout)
    if pod.scale_up_since is not None:
        return min(began + SCALE_UPS * timeout, max(began, pod.scale_up_since) + timeout)
    return began + (min(AVOIDING, timeout) if pod.avoids else timeout)


def knows_of_none(pod: PodSeen, now: float) -> bool:
    """Whether no node is being made for it, as far as anybody can know: its events were read, or cannot be."""
    age = now - (pod.events_read if pod.events_read is not None else pod.created)
    return pod.scale_up_since is None and ((pod.events_read is not None and age <= SIGNS_HOLD) or age > SIGNS_LOST)


def stays_until(attempt: AttemptStatus, known: PoolKnown, other: PoolKnown) -> float | None:
    """Return until when (Unix seconds) it waits in its dry pool, of which that is *known*, rather than try the *other*.

    None: it need not, for its pool is not dry, or of the other one nobody knows that it was. Two droughts are no reason
    to hurry from one to the other, and less with each time in vain: first its own pool's pause passes, or twice the
    other's, after which that one is likelier to have ended.
    """
    if attempt.dry is None or other.dry is None:
        return None
    return min(instant(attempt.dry) + known.pause(), other.dry + 2.0 * other.pause())


def next_look(attempt: AttemptStatus, pod: PodSeen, pool: GPUPoolSpec, now: float) -> float:
    """Return when time alone may tell more of it, Unix seconds."""
    counts = since(attempt, pod) + SIGNS_AFTER
    return counts if now < counts else patience(attempt, pod, pool)


def drought(attempt: AttemptStatus, pod: PodSeen, pool: GPUPoolSpec | None, now: float) -> str | None:
    """Return in words why there is no node for *pod*; None = one may still come."""
    if pool is None or not waits(pod):
        return None
    waited = now - since(attempt, pod)
    if waited < SIGNS_AFTER:
        return None
    scaling = pod.scale_up_since is not None
    if pod.insufficient_capacity and not scaling:
        return pod.insufficient_capacity
    if pod.no_scale_up and not scaling:
        return pod.no_scale_up
    if now >= patience(attempt, pod, pool):
        return f"no node in {duration(waited)}" + (f": {pod.unschedulable}" if pod.unschedulable else "")
    return None
