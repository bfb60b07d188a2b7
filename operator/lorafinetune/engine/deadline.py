"""The cheapest way to be done in time: spot, on-demand, or wait. Pure; the operator asks it, and so can you.

Tick by tick, outside the operator (Seen is in availability.py)::

    seen, running = Seen(), Choice.WAIT
    while remaining > 0:
        seen = seen.then(spot_is_available, seconds=tick)  # True, False, or None: not known
        if running is Choice.SPOT and not spot_is_available:
            running = Choice.WAIT  # preempted
        running = choose(progress, remaining, time_left, seen, restart_cost, Prices(0.92, 3.06), running=running)
        ...  # run a tick of it; a start, anywhere, takes restart_cost before there is progress; time_left -= tick

What it does, in words. On-demand runs when nothing else can be in time: that is the safety net. Above it, slack is
compared with a reserve (deadline_reserves.py), some percent of the work left and a few restarts: while spot is away and
slack is above it, wait; below it, start on demand. Spot that comes back is taken at once, but a restart that is dear
needs more slack, and a window that has lasted a while: half of them are over in half an hour. What a run has seen
counts only by how long spot has been there or away: to learn more of a zone gained nothing. Where spot is known only by
trying, on-demand starts so early that a try in vain can still be paid.

The safety net. Time left must cover the work and an on-demand start after whatever may be lost until the next look: a
tick of waiting; what a start on spot has not yet paid; a try that fails. So a deadline that on-demand from the start
would have met is met, if looks are no further apart than said, and restarts cost no more.

How the operator feeds it. *remaining* is counted from the newest durable checkpoint; *exposure* is the checkpoint
interval and the time until a lost node is noticed. A run that waits has a Pending attempt on spot, so it knows; one
that runs on spot knows; one that runs on demand knows only what other runs' placements tell, else None. Then SPOT means
one planned move at a checkpoint, given up after *patience*, the pool's provisioning time-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import exp
from typing import Final

from lorafinetune.engine.availability import ENDS_DOWN, ENDS_UP, FIRST_AGE, Seen, age_class
from lorafinetune.engine.deadline_reserves import Question, reserve

TICK: Final = 600.0
"""Seconds until the next look, where neither the caller nor what was seen tells."""
TRY_AGAIN: Final = 7200.0
"""Seconds without knowledge after which a run on demand may try spot."""
LASTS: Final = 4 * 3600.0
"""Seconds for which spot that a try finds is expected to last."""
_DEAR_FAILURE: Final = 2.0
"""What a second of slack that a try has taken may cost, in parts of what spot saves in it."""
_ROUNDING: Final = 1e-6
"""Seconds by which sums of times may be wrong."""


class Choice(StrEnum):
    """Where a run is until the next look."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices per hour, in any currency."""

    spot: float
    on_demand: float


@dataclass(frozen=True, slots=True)
class _Situation:
    """A run at a look. Seconds."""

    remaining: float
    slack: float
    """What may be lost before on-demand must have been started."""
    seen: Seen
    restart_cost: float
    price: float
    """Of spot, in parts of on-demand."""

    def keeps(self, question: Question, age: float, *, lost: float = 0.0) -> bool:
        """Return whether *lost* seconds and a restart leave the reserve; spot has been so for *age*."""
        least = reserve(question, age_class(age), restart=self.restart_cost, price=self.price, work=self.remaining)
        return self.slack - lost - self.restart_cost + _ROUNDING >= least


def choose(  # noqa: PLR0917 - the six that the policy is a function of, in this order
    progress: float,
    remaining: float,
    time_left: float,
    seen: Seen,
    restart_cost: float,
    prices: Prices,
    *,
    running: Choice = Choice.WAIT,
    restart_left: float = 0.0,
    tick: float | None = None,
    exposure: float = 0.0,
    patience: float = 0.0,
) -> Choice:
    """Return where to be until the next look.

    All times are seconds: *progress* is the work done, *remaining* the work left (at full speed), *time_left* the time
    to the deadline, *restart_cost* what any start takes before there is progress. *running* is what runs now, WAIT
    after a preemption; *restart_left* is what of its start is still to come. The next look is in *tick* seconds at the
    latest; by default as far off as the last was. A preemption costs up to *exposure* more than a restart; a start on
    spot that is not known to be available is given up after *patience*. Where on-demand cannot be in time any more, it
    runs all the same, or what runs already.
    """
    if remaining <= 0:
        return Choice.WAIT
    look = tick if tick is not None else (seen.tick or TICK)
    started = running is Choice.ON_DEMAND
    slack = time_left - remaining - restart_cost - exposure - (restart_left if started else 0.0) + _ROUNDING
    if running is Choice.SPOT and seen.available is not False:
        # While spot makes progress it takes no slack, but for what its start has still to pay.
        return Choice.SPOT if slack < 0 or slack >= min(look, restart_left) else Choice.ON_DEMAND
    if prices.spot >= prices.on_demand:
        return Choice.ON_DEMAND
    now = _Situation(remaining, slack, seen, restart_cost, prices.spot / prices.on_demand)
    if started and seen.available is None:
        return Choice.SPOT if _try(now, max(patience, look)) else Choice.ON_DEMAND
    if seen.available:
        pays = not started or now.price * (restart_cost + remaining) < remaining
        taken = pays and now.keeps(Question.RETURN if started else Question.TAKE, seen.age)
        return Choice.SPOT if taken else Choice.ON_DEMAND
    question = Question.PAUSE if started else Question.WAIT
    waits = now.keeps(question, seen.age + seen.unknown, lost=look + patience)
    return Choice.WAIT if waits else Choice.ON_DEMAND


def _try(now: _Situation, lost: float) -> bool:
    """Return whether to leave on-demand for spot of which nothing is known; a try that fails takes *lost* seconds."""
    if now.seen.unknown < TRY_AGAIN:
        return False
    there, restart = _likely(now.seen), now.restart_cost
    saved = (1 - now.price) * min(now.remaining, LASTS) - (1 + now.price) * restart
    spent = restart + _DEAR_FAILURE * (1 - now.price) * lost
    pays = there * saved > (1 - there) * spent
    # A moment that is not chosen by spot lies in a long window rather than in a short one.
    return pays and now.keeps(Question.RETURN, FIRST_AGE, lost=lost)


def _likely(seen: Seen) -> float:
    """Return the chance that spot is there after a time without knowledge, from what was last known."""
    ends = ENDS_UP[age_class(seen.unknown)]
    begins = ENDS_DOWN[age_class(seen.unknown + (0.0 if seen.last else seen.age))]
    settled = begins / (begins + ends)
    return settled + ((1.0 if seen.last else 0.0) - settled) * exp(-(begins + ends) * seen.unknown / 3600)
