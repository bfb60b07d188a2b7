"""Deadline policies that ours is measured against."""

from __future__ import annotations

from math import ceil, floor

from lorafinetune.engine.deadline import Choice
from lorafinetune.simulate.job import Job, Moment, Policy


def on_demand(job: Job) -> Policy:
    """Run on demand, always: what is safe, and what savings are counted from."""
    del job
    return lambda moment: Choice.ON_DEMAND


def greedy(job: Job) -> Policy:
    """Run on spot while there is any, else wait; on demand to the end once nothing else is in time (the safety net)."""

    def policy(moment: Moment) -> Choice:
        choice = Choice.SPOT if moment.available else Choice.WAIT
        return _netted(job, moment, choice)

    return policy


def reserve(job: Job, share: float = 0.1, restarts: float = 4.0) -> Policy:
    """Spot whenever it is affordable; wait while slack exceeds a reserve; else on demand, and back to spot at once.

    The reserve is *share* of the work left and some *restarts*. The simplest policy that is any good: what ours adds to
    it is what a longer view of spot is worth.
    """

    def policy(moment: Moment) -> Choice:
        started = moment.running is Choice.ON_DEMAND
        slack = moment.time_left - moment.remaining - job.restart_cost - (moment.restart_left if started else 0.0)
        if moment.running is Choice.SPOT and moment.available:
            return Choice.SPOT if slack < 0 or slack >= min(job.tick, moment.restart_left) else Choice.ON_DEMAND
        if moment.available:
            pays = not started or job.prices.spot * (job.restart_cost + moment.remaining) < (
                job.prices.on_demand * moment.remaining
            )
            return Choice.SPOT if pays and slack >= job.restart_cost else Choice.ON_DEMAND
        kept = share * moment.remaining + restarts * job.restart_cost
        waits = not started and slack >= job.tick and slack > kept
        return Choice.WAIT if waits else Choice.ON_DEMAND

    return policy


def uniform_progress(job: Job, tries_after: float | None = None) -> Policy:
    """Keep up with the line from nothing at the start to everything at the deadline ("Can't Be Late", NSDI 2024).

    With c(t) the progress, e(t) = t * work / deadline the line, d the restart cost:

    - spot is taken whenever a job that is not on demand finds it, and kept until lost (taking risks, exploiting);
    - a job with nothing running that is behind the line, c(t) < e(t), goes on demand; one that is ahead waits;
    - on demand it stays until it is two restarts ahead, c(t) >= e(t + 2d), and there is spot (hysteresis);
    - safety net: with no spot running, once the time left is less than the work and 2d, on demand to the end; spot
      that runs is kept until it is lost.

    The rules leave open whether on-demand is left for spot while behind, and for waiting while ahead. This reading does
    neither, as the simulator of the paper's authors does. Where spot is known only by trying, it never leaves
    on-demand; with *tries_after* it tries once it is far enough ahead and nobody has known for that many seconds.
    """
    line = job.work / job.deadline
    known_at = 0.0

    def policy(moment: Moment) -> Choice:
        nonlocal known_at
        elapsed = job.deadline - moment.time_left
        if moment.available is not None:
            known_at = elapsed
        if moment.running is Choice.ON_DEMAND:
            ahead = moment.progress >= (elapsed + 2 * job.restart_cost) * line
            found = moment.available
            if found is None and tries_after is not None and elapsed - known_at >= tries_after:
                ahead = moment.progress >= (elapsed + 2 * job.restart_cost + job.patience + job.tick) * line
                found = True
            choice = Choice.SPOT if ahead and found else Choice.ON_DEMAND
        elif moment.available:
            choice = Choice.SPOT
        else:
            choice = Choice.ON_DEMAND if moment.progress < elapsed * line else Choice.WAIT
        return _netted(job, moment, choice)

    return policy


def _netted(job: Job, moment: Moment, choice: Choice) -> Choice:
    """Return *choice*, or what the safety net of the paper makes of it, in whole ticks as its authors count."""
    left = floor(moment.time_left / job.tick)
    if moment.running is not Choice.SPOT and ceil((moment.remaining + 2 * job.restart_cost) / job.tick) >= left:
        choice = Choice.ON_DEMAND
    if ceil((moment.remaining + job.restart_cost) / job.tick) >= left:
        kept = moment.running is Choice.SPOT and moment.restart_left <= 0
        choice = Choice.SPOT if kept else Choice.ON_DEMAND
    return choice
