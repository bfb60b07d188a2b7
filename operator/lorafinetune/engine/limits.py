"""What a run may take at most, of time and money: whether it has, and when it will have at the present price."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from lorafinetune.api import durations
from lorafinetune.engine import ledger
from lorafinetune.engine.activities import Activity, seconds_of
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.times import instant, stamp

DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
MAX_COST_REACHED: Final = "MaxCostReached"
MAX_DURATION_REACHED: Final = "MaxDurationReached"
SOON: Final = 0.05
"""Seconds that a look at a limit is put off at least, so that rounding makes no hot loop."""


class Limit(NamedTuple):
    """One limit of the run, and how far away it is."""

    left: float
    """Seconds until it is reached, at the present price; not above zero once it is."""
    reason: str
    message: str
    """The field, and what was used of it."""


def reached(now: Settled) -> Limit | None:
    """Return the limit that the run has reached, if it has; of several the one that was passed first."""
    return min((one for one in _limits(now) if one.left <= 0), default=None)


def seconds_left(now: Settled) -> float | None:
    """Return the seconds after which the run will have reached a limit if all goes on as it does; None = never."""
    left = min((one.left for one in _limits(now) if one.left > 0), default=None)
    return None if left is None else max(SOON, left)


def _limits(now: Settled) -> Iterator[Limit]:
    limits, seen = now.seen.spec.limits, now.seen
    if limits.deadline is not None:
        due = instant(limits.deadline)
        message = f"not done by spec.limits.deadline ({limits.deadline})"
        if due <= seen.run.created:
            message = (
                f"spec.limits.deadline ({limits.deadline}) was over when the run was created "
                f"({stamp(seen.run.created)}): create it anew with a later one, or with none"
            )
        yield Limit(due - seen.now, DEADLINE_EXCEEDED, message)
    if limits.max_duration is not None:
        most = durations.seconds(limits.max_duration)
        used = seen.now - seen.run.created - seconds_of(seen.status, Activity.SUSPENDED, seen.now)
        message = f"not done within spec.limits.maxDuration ({limits.max_duration}), waiting included"
        yield Limit(most - used, MAX_DURATION_REACHED, message)
    if limits.max_cost is not None:
        rest = Decimal(limits.max_cost) - ledger.bill(now.status, seen.now).cost
        hourly = ledger.price_now(now.status)
        spent = f"{now.status.cost or ledger.money(Decimal(0), seen.currency)} spent"
        message = f"not done for spec.limits.maxCost ({seen.currency}{limits.max_cost}): {spent}"
        if rest <= 0:
            yield Limit(float(rest) * 3600, MAX_COST_REACHED, message)
        elif hourly > 0:
            yield Limit(float(rest / hourly) * 3600, MAX_COST_REACHED, message)
