"""One job on a trace: what is paid, foresight against all there is to try, and ours against both."""

from __future__ import annotations

import random
from functools import cache

import pytest

from lorafinetune.engine.deadline import Choice, Prices
from lorafinetune.simulate.baselines import greedy, on_demand, uniform_progress
from lorafinetune.simulate.foresight import cheapest
from lorafinetune.simulate.generator import generate
from lorafinetune.simulate.job import Job, ours, play

PRICES = Prices(spot=3600.0, on_demand=3 * 3600.0)  # a second costs 1 and 3


def test_time_in_a_place_is_paid_and_starts_are_no_progress() -> None:
    job = Job(work=25.0, deadline=100.0, restart_cost=4.0, tick=10.0, prices=PRICES)
    there = [True, True, False, False, True] + [False] * 5
    outcome = play(job, there, lambda moment: Choice.SPOT if moment.available else Choice.WAIT)
    # 6 + 10 of progress, two ticks without spot, 6 again, and 3 that are never made.
    assert (outcome.cost, outcome.met, outcome.starts, outcome.seconds) == (30.0, False, 2, 100.0)
    outcome = play(job, there, on_demand(job))
    assert (outcome.cost, outcome.met, outcome.starts, outcome.seconds) == (87.0, True, 1, 29.0)


def test_a_try_that_finds_none_takes_its_patience() -> None:
    job = Job(work=25.0, deadline=100.0, restart_cost=0.0, tick=10.0, prices=PRICES, patience=20.0)
    asked: list[bool | None] = []

    def policy(moment: object) -> Choice:
        asked.append(moment.available)  # type: ignore[attr-defined]
        return Choice.SPOT if len(asked) == 2 else Choice.ON_DEMAND

    outcome = play(job, [False] * 10, policy, visible=False)
    assert (asked, outcome.seconds) == ([False, None, False, None], 45.0)


def tried(there: tuple[bool, ...], tick: int, work: int, deadline: int, restart: int) -> float:
    """The least cost, by trying all choices at all ticks."""

    @cache
    def least(now: int, place: str, owed: int, left: int) -> float:
        if left <= 0:
            return 0.0
        span = min(tick, deadline - now * tick)
        if span <= 0:
            return float("inf")
        best = least(now + 1, "wait", 0, left)
        for new, price in (("spot", 1.0), ("on-demand", 3.0)):
            if new == "spot" and not there[now]:
                continue
            due = owed if new == place else restart
            if due + left <= span:
                cost = price * (due + left)
            else:
                after = least(now + 1, new, max(0, due - span), left - max(0, span - due))
                cost = price * span + after
            best = min(best, cost)
        return best

    return least(0, "wait", 0, work)


def test_foresight_is_the_best_of_all_that_can_be_tried() -> None:
    chance = random.Random(5)
    for _ in range(300):
        tick, restart = chance.choice([6, 10]), chance.choice([0, 2, 3, 6, 9, 14, 20, 25])
        ticks = chance.randint(2, 10)
        deadline = ticks * tick - chance.choice([0, 0, 1, 3])
        work = chance.randint(1, deadline)
        there = tuple(chance.random() < 0.6 for _ in range(ticks))
        cost = cheapest(
            there,
            tick=tick,
            work=work,
            deadline=deadline,
            restart_cost=restart,
            spot_price=3600.0,
            on_demand_price=3 * 3600.0,
        )
        if work + restart > deadline:
            assert cost is None
        else:
            assert cost == pytest.approx(tried(there, tick, work, deadline, restart))


def test_ours_is_in_time_and_closes_part_of_the_gap_on_traces_that_it_was_not_made_with() -> None:
    """The figure of docs/bench.md for restarts of some minutes, less a margin for few jobs."""
    paid = {"foresight": 0.0, "uniform progress": 0.0, "ours": 0.0, "greedy": 0.0}
    prices = Prices(0.92, 3.06)
    for zone, trace in generate(4242, days=30).zones.items():
        del zone
        there = trace.samples()
        for start in range(0, len(there) - 700, 4000):
            job = Job(work=16 * 3600, deadline=24 * 3600, restart_cost=195, tick=195, prices=prices)
            seen = there[start : start + int(job.deadline // job.tick) + 1]
            best = cheapest(
                seen,
                tick=195,
                work=16 * 3600,
                deadline=24 * 3600,
                restart_cost=195,
                spot_price=prices.spot,
                on_demand_price=prices.on_demand,
            )
            assert best is not None
            paid["foresight"] += best
            for name, policy in (("uniform progress", uniform_progress), ("ours", ours), ("greedy", greedy)):
                outcome = play(job, seen, policy(job))
                assert outcome.met, (name, start)
                assert outcome.cost >= best - 1e-6
                paid[name] += outcome.cost
    gap = paid["uniform progress"] - paid["foresight"]
    closed = (paid["uniform progress"] - paid["ours"]) / gap
    assert closed >= 0.6, (closed, paid)
    assert paid["ours"] < paid["greedy"]


@pytest.mark.parametrize(
    ("restart", "least", "least_trying"),
    [pytest.param(72, 0.9, 0.35, id="0.02 h"), pytest.param(720, 0.6, 0.45, id="0.2 h")],
)
def test_jobs_of_two_days_as_in_the_paper(restart: int, least: float, least_trying: float) -> None:
    """The table "paper" of docs/bench.md, less a margin: 48 h of work, within 52 and 70 h, looks every 10 min."""
    paid = dict.fromkeys(("foresight", "UP", "ours", "UP, tries", "ours, tries"), 0.0)
    prices = Prices(0.92, 3.06)
    for trace in list(generate(4242, days=30).zones.values())[::2]:
        for hours in (52, 70):
            job = Job(48 * 3600, hours * 3600, restart, 600, prices, patience=600.0)
            there = trace.samples()[2000:]
            seen = [there[int(tick * 600 / trace.gap_seconds)] for tick in range(hours * 6)]
            best = cheapest(
                seen,
                tick=600,
                work=48 * 3600,
                deadline=hours * 3600,
                restart_cost=restart,
                spot_price=prices.spot,
                on_demand_price=prices.on_demand,
            )
            assert best is not None
            paid["foresight"] += best
            paid["UP"] += play(job, seen, uniform_progress(job)).cost
            paid["UP, tries"] += play(job, seen, uniform_progress(job, 3600.0), visible=False).cost
            for visible, name in ((True, "ours"), (False, "ours, tries")):
                outcome = play(job, seen, ours(job, visible=visible), visible=visible)
                assert outcome.met
                paid[name] += outcome.cost
    closed = (paid["UP"] - paid["ours"]) / (paid["UP"] - paid["foresight"])
    trying = (paid["UP, tries"] - paid["ours, tries"]) / (paid["UP, tries"] - paid["foresight"])
    assert closed >= least, paid
    assert trying >= least_trying, paid
