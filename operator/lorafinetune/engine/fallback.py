"""When a run stops trying spot capacity and pays for on-demand: the rules of placement.onDemand, first that speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorafinetune.api.durations import seconds
from lorafinetune.api.gpupool import CapacityType
from lorafinetune.api.placement import OnDemandSpec
from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import budgets, streaks
from lorafinetune.engine.activities import CAPACITY, seconds_of
from lorafinetune.engine.deadline import Prices
from lorafinetune.engine.ending import Cause
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.times import duration
from lorafinetune.engine.urgency import blind, urgency

AFTER_PREEMPTIONS: Final = 5
"""Preemptions after which a run goes to on-demand capacity, where its user does not say when."""
UNPRESSED: Final = 900.0
"""Seconds for which a node that is being made, or a queue, is waited for even then, where no step has been measured."""
RETURNING: Final = "ReturningToSpot"
"""Reason of an attempt that we ended on on-demand capacity, to go on where it is cheaper."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Whether on-demand capacity is wanted."""

    wanted: bool = False
    why: str = ""
    """In words, where it is."""
    at: float | None = None
    """When it will be, if nothing else comes (Unix seconds), where that is known."""
    wait_why: str = ""
    """Why it is not wanted before *at*, in words."""
    pressing: bool = False
    """Whether nothing is worth waiting for any more, not even a node that is being made: the deadline needs it now."""


NO_FALLBACK: Final = Fallback()


@dataclass(frozen=True, slots=True)
class Spot:
    """The pools that the run tries first, taken together: those that it names, else the default ones."""

    is_open: bool
    """One of them is worth a try."""
    away_since: float | None
    """Since when none has had a node, as far as anybody knows (0 = none ever had one); None = one may have some."""
    price: float | None
    """Per hour of the cheapest one with spot capacity; None where none has that."""


def fallback(seen: Observation, status: LoRAFineTuneStatus, spot: Spot, dear: float | None) -> Fallback:
    """Say whether the run's next attempt is to run on demand, where *spot* is as it is.

    *dear* is the price per hour of the cheapest on-demand pool that the run may use; None = there is none.
    """
    on_demand = seen.spec.placement.on_demand
    if on_demand is None or dear is None:
        return NO_FALLBACK
    stays = _stays(status.attempts, returns=seen.spec.placement.return_to_spot, spot_is_open=spot.is_open)
    if stays:
        return Fallback(True, stays)
    preempted = (status.preemptions or 0) - (status.preemptions_before or 0)
    limit = _limit(seen, on_demand)
    if limit is not None and preempted >= limit:
        return Fallback(True, f"after {preempted} preemptions")
    barren = streaks.of(status).without_progress
    if barren >= budgets.elsewhere_after(seen.spec.limits.attempts):
        return Fallback(True, f"after {barren} attempts that were taken away before they had a new checkpoint")
    rules = _patience(seen, status, on_demand), _deadline(seen, status, on_demand, spot, dear)
    ends = [one for one in rules if one is not None]
    return min(ends, key=lambda one: (not one.wanted, one.at or 0.0), default=NO_FALLBACK)


def _patience(seen: Observation, status: LoRAFineTuneStatus, on_demand: OnDemandSpec) -> Fallback | None:
    """Return what the user's own patience says: it counts waits for capacity since the run last had a node."""
    if on_demand.after_pending is None:
        return None
    longest = seconds(on_demand.after_pending)
    waited = sum(seconds_of(status, one, seen.now) for one in CAPACITY) - (status.waited_before or 0)
    if waited >= longest:
        return Fallback(True, f"after {duration(waited)} of waiting for spot capacity")
    return Fallback(at=seen.now + longest - waited, wait_why="placement.onDemand.afterPending")


def _deadline(
    seen: Observation, status: LoRAFineTuneStatus, on_demand: OnDemandSpec, spot: Spot, dear: float
) -> Fallback | None:
    """Return what the deadline says. Before a step has been measured it has no ground to ask for much."""
    if on_demand.when_deadline_needs_it is False:
        return None
    looks = blind(seen, status)
    if looks is not None and looks <= 0:
        why = "for no step has been measured yet, and limits.deadline may need all the time there is"
        return Fallback(True, why, pressing=looks <= -UNPRESSED)
    if looks is not None:
        return Fallback(at=seen.now + looks, wait_why="limits.deadline, and no step has been measured")
    stands = urgency(seen, status)
    if stands is None:
        return None
    words = f"{duration(stands.work)} of work, {duration(stands.left)} left"
    if stands.slack <= 0:
        return Fallback(True, f"for limits.deadline needs it ({words})", pressing=True)
    if spot.away_since is None:
        return Fallback(at=seen.now + stands.slack, wait_why="limits.deadline")
    away = seen.now - (spot.away_since or seen.run.created)
    waits = stands.waits(away, _prices(spot, dear))
    if waits <= 0:
        return Fallback(
            True, f"as spot capacity has been away for {duration(away)}, and limits.deadline nears ({words})"
        )
    return Fallback(at=seen.now + waits, wait_why="limits.deadline")


def _prices(spot: Spot, dear: float) -> Prices:
    return Prices(dear if spot.price is None else spot.price, max(dear, 1e-9))  # a pool may be free


def _limit(seen: Observation, on_demand: OnDemandSpec) -> int | None:
    if on_demand.after_preemptions is not None:
        return on_demand.after_preemptions
    deadline = seen.spec.limits.deadline is not None and on_demand.when_deadline_needs_it is not False
    return None if on_demand.after_pending is not None or deadline else AFTER_PREEMPTIONS


def _stays(attempts: Sequence[AttemptStatus], *, returns: bool, spot_is_open: bool) -> str:
    """Return why a run that last had on-demand capacity goes on there; the empty string if it does not."""
    tries = 0
    holder = None
    for one in reversed(attempts):
        if one.scheduled is not None or one.started is not None:
            holder = one
            break
        tries += one.cause == Cause.NO_CAPACITY or one.dry is not None
    if holder is None or holder.capacity_type != CapacityType.ON_DEMAND:
        return ""
    if not returns:
        return "where it was (placement.returnToSpot is false)"
    if holder.cause == Cause.MOVED and holder.reason != RETURNING:
        return "where it was"
    if tries:
        return "for spot capacity was tried, and there was none"
    return "" if spot_is_open else "where it was, for there is no spot capacity"
