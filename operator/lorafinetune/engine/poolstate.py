"""What people are shown of a pool: the fleet's knowledge of it in words."""

from __future__ import annotations

from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.poolstatus import GPUPoolStatus, PoolState
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.fleet import PoolKnown
from lorafinetune.engine.times import duration, stamp


def pool_status(known: PoolKnown, spec: GPUPoolSpec, now: float) -> GPUPoolStatus:
    """Return the status of a pool of which that is known."""
    most = spec.max_concurrent_attempts
    state, message = PoolState.OPEN, None
    if most is not None and known.live >= most:
        state, message = PoolState.FULL, f"{_attempts(known.live)} on it, and maxConcurrentAttempts is {most}"
    elif known.is_dry(now):
        why = f": {_shortly(known.why)}" if known.why else ""
        # An attempt that waits there is the try itself: until it has a node or is over, nobody else need make one.
        tried = (
            "an attempt waits for it; others try it from {} on at the latest"
            if known.waiting
            else "tried again from {} on"
        )
        state, message = PoolState.DRY, f"{tried.format(stamp(known.open_again()))}{why}"
    elif known.dry is not None:
        message = f"due for a try after it was dry{f': {_shortly(known.why)}' if known.why else ''}"
    return GPUPoolStatus(
        state=state,
        message=clip(message) if message is not None else None,
        live=known.live,
        waiting=known.waiting,
        dry_since=_stamped(known.dry),
        last_placed=_stamped(known.placed),
        last_taken=_stamped(known.taken),
        lifetime=_lifetime(known, now),
    )


def _attempts(count: int) -> str:
    return "1 attempt is" if count == 1 else f"{count} attempts are"


def _shortly(why: str) -> str:
    """Return the scheduler's sentence without what it says of preempting other pods."""
    return why.partition(" preemption:")[0]


def _stamped(when: float | None) -> str | None:
    return stamp(when) if when is not None else None


def _lifetime(known: PoolKnown, now: float) -> str | None:
    """Return the mean lifetime, to two digits, so that it does not change with every look; None before a few takes."""
    taken = known.preempted(now)
    if taken < 0.5:
        return None
    seconds = known.exposed(now) / taken
    return duration(float(f"{seconds:.1e}"))
