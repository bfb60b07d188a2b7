"""One attempt's entry in the status: made for its pod, followed while it lives, closed when it has ended."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine import pending
from lorafinetune.engine.activities import Activity
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.ending import Ending
from lorafinetune.engine.observation import Observation, PodSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import instant, stamp

MAX_REASON: Final = 64
"""Characters of a reason that the status takes; some come from other controllers."""


def adopted(pod: PodSeen) -> AttemptStatus:
    """Return the entry of a pod that was made, but not written down before the operator died."""
    return AttemptStatus(
        number=pod.attempt,
        pod=pod.name,
        pod_uid=pod.uid,
        pool=pod.pool,
        capacity_type=pod.capacity_type or None,
        price_per_hour=pod.price_per_hour or None,
        on_demand_price_per_hour=pod.on_demand_price_per_hour or None,
        created=stamp(pod.created),
    )


def followed(entry: AttemptStatus, seen: Observation) -> AttemptStatus:
    """Return *entry* with what its pod, its trainer and the bucket say of it by now; itself where that is no news."""
    changes: dict[str, object] = {}
    if (pod := seen.pod_of(entry.number)) is not None:
        changes |= {"pod_uid": pod.uid, "node": pod.node or entry.node}
        changes |= _pending(entry, pod, seen)
        node = seen.nodes.get(pod.node) if pod.node else None
        if entry.machine is None and entry.cause is None and node is not None and not pod.is_over:
            changes["machine"] = node.machine
        if pod.started is not None and entry.ended is None:
            changes["started"] = stamp(pod.started)
        if pod.bound is not None and entry.scheduled is None:
            changes["scheduled"] = stamp(pod.bound)
    progress = seen.progress
    if progress is not None and progress.attempt == entry.number:
        if progress.resumed_from is not None:
            changes["from_step"] = progress.resumed_from
        changes["to_step"] = max(progress.step, entry.to_step or 0)
        changes |= _generating(entry, progress)
        began = entry.scheduled or entry.started
        if entry.start_seconds is None and progress.phase is Phase.TRAINING and began is not None:
            changes["start_seconds"] = int(max(0.0, progress.phase_since - instant(began)))
    if (durable := _durable(entry, seen)) is not None:
        changes["durable_step"] = durable
    if all(getattr(entry, name) == value for name, value in changes.items()):
        return entry  # most have ended long ago: who compares can do so at a glance
    return entry.model_copy(update=changes)


def closed(entry: AttemptStatus, ending: Ending, seen: Observation) -> AttemptStatus:
    """Return *entry* with its end: when, why, and how far it had come by its own last words."""
    pod = seen.pod_of(entry.number)
    ended = pod.ended if pod is not None and pod.ended is not None else seen.now
    # By so much the node's clock is ahead, at least: waits are counted from the end, and may not grow by it.
    ahead = max(0.0, ended - seen.now)
    entry = recorded(entry, ending, pod)
    changes: dict[str, object] = {"ended": stamp(ended - ahead)}
    if entry.from_step is None:
        changes["from_step"] = _resumed(entry, seen)
    if entry.generating_since is not None and entry.generating_until is None:
        changes["generating_until"] = changes["ended"]
    if pod is not None:
        if ahead and pod.started is not None:
            changes["started"] = stamp(pod.started - ahead)
        if (last_words := pod.termination) is not None:
            changes["to_step"] = max(last_words.step, entry.to_step or 0)
            changes["durable_step"] = max(last_words.durable_step, entry.durable_step or 0)
    return entry.model_copy(update=changes)


def recorded(entry: AttemptStatus, ending: Ending, pod: PodSeen | None) -> AttemptStatus:
    """Return *entry* with *ending* as the reason of its end, the first or a better one."""
    return entry.model_copy(
        update={
            "cause": ending.cause.value,
            "reason": clip(ending.reason, MAX_REASON),
            "message": clip(ending.message),
            "exit_code": pod.exit_code if pod is not None else entry.exit_code,
        }
    )


def _pending(entry: AttemptStatus, pod: PodSeen, seen: Observation) -> dict[str, object]:
    """Return what is new of its wait for a node: that its queue let it go, that there is none, that it has come."""
    if entry.cause is not None:
        return {}
    if pod.node is not None and not pod.deleting and entry.reason == pending.POOL_DRY:
        # It came late, but it is here: going elsewhere now would be paid for twice.
        return {"stopping": None, "reason": None, "message": None}
    changes: dict[str, object] = {}
    if seen.status.activity == Activity.QUEUED and not pod.gated and entry.queued_until is None:
        changes["queued_until"] = stamp(seen.now)
        entry = entry.model_copy(update=changes)
    if entry.dry is None and entry.stopping is None and not pod.avoids:
        words = pending.drought(entry, pod, seen.pools.get(entry.pool), seen.now)
        if words is not None:
            changes |= {"dry": stamp(seen.now), "reason": pending.POOL_DRY, "message": clip(words)}
    return changes


def _durable(entry: AttemptStatus, seen: Observation) -> int | None:
    """Return the step of the attempt's newest checkpoint, as far as anybody has said: it, the head, its successor."""
    progress = seen.progress
    told = progress.checkpoint if progress is not None and progress.attempt == entry.number else None
    steps = [one.step for one in (told, seen.storage.newest) if one is not None and one.attempt == entry.number]
    if entry.cause is not None and entry.from_step is not None:
        after = next((one.from_step for one in seen.status.attempts if one.number == entry.number + 1), None)
        if after is not None and after > entry.from_step:
            steps.append(after)  # nobody else can have committed what the next attempt found
    return max([*steps, *([] if entry.durable_step is None else [entry.durable_step])], default=None)


def _generating(entry: AttemptStatus, progress: Progress) -> dict[str, object]:
    """Return since when, or until when, the attempt has made class images: their cost has a line of its own."""
    if progress.phase is Phase.GENERATING:
        return {"generating_since": entry.generating_since or stamp(progress.phase_since), "generating_until": None}
    if progress.phase is not None and entry.generating_since is not None and entry.generating_until is None:
        return {"generating_until": stamp(progress.phase_since)}
    return {}


def _resumed(entry: AttemptStatus, seen: Observation) -> int | None:
    """Return where an attempt that never said so must have resumed: at the newest checkpoint of those before it."""
    steps = [one.durable_step for one in seen.status.attempts if one.number < entry.number]
    checkpoint = seen.status.checkpoint
    steps.append(checkpoint.step if checkpoint is not None and checkpoint.attempt < entry.number else None)
    return max((step for step in steps if step is not None), default=None)
