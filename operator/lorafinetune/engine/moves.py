"""Planned moves of an attempt that lives: off a dry pool, and (returning.py) from on-demand back to cheaper capacity.

The attempt is ended first; the next one is made when its pod is known to be over, so there are never two.
"""

from __future__ import annotations

from typing import Final

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine import edits, pending, pools
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.decision import Decision
from lorafinetune.engine.fleet import PoolKnown
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.returning import back
from lorafinetune.engine.stopping import stop

POOL_GONE: Final = "PoolGone"
"""Reason of an attempt whose pool was deleted while it waited for a node."""
POOL_CHANGED: Final = "PoolChanged"
"""Reason of an attempt that waited for nodes such as its pool does not stand for any more."""
AVOIDED: Final = "NodesAvoided"
"""Reason of an attempt that found no other node than those that it avoided."""


def moving(now: Settled) -> Decision | None:
    """Somewhere else is better: end the attempt, with its work saved."""
    last = now.last
    if last is None or last.cause is not None or last.stopping is not None or now.hold is not None:
        return None
    pod = now.seen.pod_of(last.number)
    if pod is None or pod.deleting or pod.is_over:
        return None
    if pod.node is None:
        return _off(now, last, pod)
    if pod.phase == "Running" and last.capacity_type == CapacityType.ON_DEMAND:
        return back(now, last)
    return None


def _off(now: Settled, last: AttemptStatus, pod: PodSeen) -> Decision | None:
    """Its pool has no node for it: go where there may be one, if there is such a place."""
    seen = now.seen
    pool = seen.pools.get(last.pool)
    if pool is None:
        message = f"pool {last.pool} is gone, and attempt {last.number} had no node yet"
        return stop(now, Cause.NO_CAPACITY, POOL_GONE, message)
    if pod.asks_for and pod.asks_for != pending.asks_for(pool):
        message = f"pool {last.pool} has new nodes, selector or tolerations, and attempt {last.number} had no node yet"
        return stop(now, Cause.NO_CAPACITY, POOL_CHANGED, message)
    if last.pool not in pools.places(seen):
        message = (
            f"spec.placement does not lead to pool {last.pool} any more, and attempt {last.number} had no node yet"
        )
        return stop(now, Cause.NO_CAPACITY, edits.SPEC_EDITED, message)
    if pod.gated:
        return _off_a_queue(now, last)
    if not pending.waits(pod):
        return None
    if pod.avoids and (words := pending.drought(last, pod, pool, seen.now)) is not None:
        message = f"no node of {last.pool} but those where this run has failed ({words}): any of them again"
        return stop(now, Cause.NO_CAPACITY, AVOIDED, message)
    choice = pools.choose(seen, now.status)
    if not isinstance(choice, pools.Placed) or choice.name == last.pool or choice.dry:
        return None
    stays = pending.stays_until(last, seen.fleet.get(last.pool) or PoolKnown(), choice.known)
    if stays is not None and seen.now < stays and not choice.fallback.pressing:
        return None
    if last.dry is not None:
        message = pending.left(last.pool, last.message, choice.name)
        if choice.fallback.wanted:
            message += f", on demand {choice.fallback.why}"
        return stop(now, Cause.NO_CAPACITY, pending.POOL_DRY, message)
    waited = seen.now - pending.since(last, pod)
    unpaid = waited >= pending.SIGNS_AFTER and pending.knows_of_none(pod, seen.now)
    if choice.fallback.wanted and (unpaid or choice.fallback.pressing):
        message = f"going to {choice.name}, on demand {choice.fallback.why}"
        return stop(now, Cause.NO_CAPACITY, "WaitedLongEnough", message)
    return None


def _off_a_queue(now: Settled, last: AttemptStatus) -> Decision | None:
    """A queue holds it back: that is waited for as long as the deadline allows."""
    choice = pools.choose(now.seen, now.status)
    if not isinstance(choice, pools.Placed) or choice.name == last.pool or choice.dry or not choice.fallback.pressing:
        return None
    message = f"going to {choice.name}, on demand {choice.fallback.why}"
    return stop(now, Cause.NO_CAPACITY, "WaitedLongEnough", message)
