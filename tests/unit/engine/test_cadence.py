"""How often checkpoints are made: the formula against its own model, and what it loses against an oracle."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.contract import cadence
from lorafinetune.engine.cadence import PRIOR, lifetime, told_lifetime
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.fleet import Fading, PoolKnown
from lorafinetune.engine.news import recall
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine import lifetimes
from tests.unit.engine.given import NOW, attempt, ended, seen, status
from tests.unit.engine.lifetimes import Draw

HOUR = 3600.0


def expected(every: float, cost: float, mean: float) -> float:
    """Seconds that a second of work takes on nodes that are lost at random, exactly (Daly, 2006)."""
    return mean * (math.exp((every + cost) / mean) - 1.0) / every


@pytest.mark.parametrize("mean", [600.0, HOUR, 10 * HOUR])
@pytest.mark.parametrize("cost", [0.05, 0.7, 5.0, 60.0])
def test_the_interval_is_the_one_that_costs_least(cost: float, mean: float) -> None:
    least = min(expected(2.0 * 1.01**power, cost, mean) for power in range(900))
    at_best = expected(cadence.best(cost, mean), cost, mean)
    assert at_best - 1.0 <= 1.0005 * (least - 1.0)
    for other in (0.7, 1.4):
        assert expected(other * cadence.best(cost, mean), cost, mean) - 1.0 > 1.01 * (least - 1.0)


@pytest.mark.parametrize(
    ("cost", "mean", "durable", "want"),
    [
        pytest.param(0.5, HOUR, 0.0, 59.8, id="as the formula says"),
        pytest.param(2.0, 4 * HOUR, 0.0, 238.7, id="costlier, and rarer losses"),
        pytest.param(0.001, HOUR, 0.0, cadence.SHORTEST, id="never more often than its requests are worth"),
        pytest.param(5.0, 240 * HOUR, 0.0, cadence.LONGEST, id="never much work at risk"),
        pytest.param(0.5, HOUR, 90.0, 90.0, id="no save begins before the last one has ended"),
        pytest.param(0.5, HOUR, 900.0, 900.0, id="that comes before the bound"),
        pytest.param(None, None, 0.0, 59.8, id="nothing known"),
        pytest.param(None, 240 * HOUR, 0.0, cadence.FIRST, id="the first comes soon"),
        pytest.param(None, 300.0, 0.0, cadence.SHORTEST, id="the first comes sooner where nodes do not last"),
        pytest.param(0.5, None, 0.0, 59.8, id="lifetime not known"),
        pytest.param(100.0, 40.0, 0.0, 40.0, id="a save that costs more than a life"),
    ],
)
def test_bounds(cost: float | None, mean: float | None, durable: float, want: float) -> None:
    assert cadence.interval(cost, mean, durable_after=durable) == pytest.approx(want, abs=0.3)


@pytest.mark.parametrize(
    ("seconds", "step", "want"), [(60.0, 0.8, 75), (30.0, 45.0, 1), (1.0, 900.0, 1), (30.0, 0.0, 30_000_000)]
)
def test_steps(seconds: float, step: float, want: int) -> None:
    assert cadence.steps(seconds, step) == want


@pytest.mark.parametrize(
    ("exposed", "preempted", "want"),
    [
        pytest.param(0.0, 0, HOUR, id="the prior"),
        pytest.param(10 * HOUR, 0, 11 * HOUR, id="nobody was taken in ten hours"),
        pytest.param(9 * 600.0, 9, 900.0, id="nine that lasted ten minutes"),
        pytest.param(9 * HOUR, 2, 10 * HOUR / 3, id="time at risk over losses"),
        pytest.param(0.0, 100, HOUR / 101, id="taken as soon as they start"),
    ],
)
def test_lifetime(exposed: float, preempted: float, want: float) -> None:
    assert lifetime(exposed, preempted) == pytest.approx(want)


def test_an_attempt_is_told_what_all_runs_have_seen_of_its_pool() -> None:
    known = PoolKnown(
        held=Fading(5 * HOUR, NOW), preemptions=Fading(3.0, NOW), serving=2, serving_since=2 * (NOW - HOUR)
    )
    assert told_lifetime(known, CapacityType.SPOT, NOW) == pytest.approx((1 + 5 + 2) * HOUR / 4)
    assert told_lifetime(PoolKnown(), CapacityType.SPOT, NOW) == HOUR
    assert told_lifetime(PoolKnown(), CapacityType.ON_DEMAND, NOW) == PRIOR[CapacityType.ON_DEMAND]


def test_the_preemption_that_makes_the_next_attempt_counts_for_it_once() -> None:
    """It is found out in the pass that makes the next attempt: the fleet as it was before knows nothing of it yet."""
    lived = attempt(1, scheduled=stamp(NOW - HOUR), started=stamp(NOW - HOUR))
    before = status(lived)
    taken = ended(1, disruption="EvictionByEvictionAPI", ended=NOW, started=NOW - HOUR, bound=NOW - HOUR)
    decision = decide(seen(status=before, pods=(taken,), fleet=recall([before], NOW)))
    made = next(one for one in decision.actions if isinstance(one, CreatePod))
    assert made.lifetime_seconds == pytest.approx((HOUR + HOUR) / 2)
    # Written down, learned by the fleet, and made anew after a conflict: it is the same preemption.
    again = seen(status=decision.status, pods=(taken,), fleet=recall([decision.status], NOW))
    made = next(one for one in decide(again).actions if isinstance(one, CreatePod))
    assert made.lifetime_seconds == pytest.approx((HOUR + HOUR) / 2)


@pytest.mark.parametrize("make", [lifetimes.exponential, lifetimes.weibull, lifetimes.lognormal])
@pytest.mark.parametrize("mean", [0.25 * HOUR, HOUR, 3 * HOUR, 10 * HOUR])
@pytest.mark.parametrize("cost", [0.1, 0.7, 2.0])
def test_little_is_lost_or_nearly_as_little_as_can_be(make: Callable[[float], Draw], mean: float, cost: float) -> None:
    """Whatever the lifetimes: 3.5 % at most, or no more than a tenth above the best fixed interval in hindsight."""
    keys, draw = random.Random(f"{make.__name__} {mean} {cost}"), make(mean)
    lives = [draw(keys) for _ in range(400)]
    measured = [cost * keys.lognormvariate(-0.03, 0.25) for _ in lives]
    share = lifetimes.ours(lives, measured).share
    assert share <= 0.035 or share <= 1.1 * lifetimes.oracle(lives, cost)


def test_a_wrong_belief_is_soon_given_up() -> None:
    """A pool whose nodes last ten minutes, or two days, though an hour is believed of it."""
    keys = random.Random(0)
    for mean in (600.0, 48 * HOUR):
        lives = [lifetimes.exponential(mean)(keys) for _ in range(100)]
        known = lifetimes.ours(lives, [0.7] * 100, prior=mean).share
        assert lifetimes.ours(lives, [0.7] * 100).share <= 1.15 * known
