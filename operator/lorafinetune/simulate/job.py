"""One job, tick by tick: what a deadline policy pays for it on a trace, and whether it is in time.

A start anywhere takes the restart cost before there is progress, paid like work. Work ends within a tick. Spot is lost
at the tick that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lorafinetune.engine.availability import Seen
from lorafinetune.engine.deadline import Choice, Prices, choose


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, by when, and what it may cost. Times in seconds."""

    work: float
    deadline: float
    restart_cost: float
    tick: float
    prices: Prices
    patience: float = 0.0
    """How long a try on spot that finds none is kept up, where spot is known only by trying."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a policy knows at a tick."""

    progress: float
    remaining: float
    time_left: float
    available: bool | None
    """Whether there is spot in the tick that begins; None: not known."""
    running: Choice
    restart_left: float


class Policy(Protocol):
    """Says where to be in the tick that begins. Made anew for each job; may remember."""

    def __call__(self, moment: Moment) -> Choice:
        """Return the choice."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    cost: float
    met: bool
    starts: int
    seconds: float
    """When it was done, or given up at the deadline."""


def play(job: Job, available: Sequence[bool], policy: Policy, *, visible: bool = True) -> Outcome:
    """Run *job* by *policy*; *available* says for each tick up to the deadline whether there is spot.

    Unless *visible*, nobody knows that while on-demand runs. To choose spot is then a try: where there is none, nothing
    runs until there is, or *patience* has passed.
    """
    per_second = {Choice.SPOT: job.prices.spot / 3600, Choice.ON_DEMAND: job.prices.on_demand / 3600}
    done, now, cost, starts = 0.0, 0.0, 0.0, 0
    running, restart_left, trying = Choice.WAIT, 0.0, 0.0
    for there in available:
        if job.work - done <= 1e-6 or now >= job.deadline:
            break
        if running is Choice.SPOT and not there:
            running, restart_left = Choice.WAIT, 0.0
        if trying > 0:
            choice = Choice.SPOT
        else:
            known = there if visible or running is not Choice.ON_DEMAND else None
            choice = policy(Moment(done, job.work - done, job.deadline - now, known, running, restart_left))
            if choice is Choice.SPOT and not there and known is None:
                trying = job.patience
        span = min(job.tick, job.deadline - now)
        if choice is Choice.SPOT and not there:
            choice = Choice.WAIT
            trying = max(0.0, trying - span)
        else:
            trying = 0.0
        if choice is not running:
            running, restart_left = choice, 0.0 if choice is Choice.WAIT else job.restart_cost
            starts += choice is not Choice.WAIT
        if running is not Choice.WAIT:
            paid = min(span, restart_left + job.work - done)
            done += max(0.0, paid - restart_left)
            restart_left = max(0.0, restart_left - paid)
            cost += per_second[running] * paid
            span = paid
        now += span
    return Outcome(cost, job.work - done <= 1e-6, starts, now)


def ours(job: Job, *, visible: bool = True) -> Policy:
    """Return engine.deadline.choose as a policy."""
    seen = Seen()

    def policy(moment: Moment) -> Choice:
        nonlocal seen
        seen = seen.then(moment.available, job.tick)
        return choose(
            moment.progress,
            moment.remaining,
            moment.time_left,
            seen,
            job.restart_cost,
            job.prices,
            running=moment.running,
            restart_left=moment.restart_left,
            patience=0.0 if visible else job.patience + job.tick,
        )

    return policy
