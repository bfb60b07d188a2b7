"""Promises of the engine, held over weeks and many runs: with the real `decide`, on traces from a seed."""

from __future__ import annotations

from functools import cache

import pytest

from lorafinetune.simulate import account
from lorafinetune.simulate.command import run
from lorafinetune.simulate.figures import Figures, quantile
from lorafinetune.simulate.generator import generate
from lorafinetune.simulate.places import Platform
from lorafinetune.simulate.policies import POLICIES
from lorafinetune.simulate.scenario import Scenario
from lorafinetune.simulate.traces import Traces
from lorafinetune.simulate.training import Effort
from lorafinetune.simulate.world import START, World
from tests.unit.simulate import given as small
from tests.unit.simulate.given import pools

DAYS = 15.0
EFFORT = Effort(step=2.0, start_up=90.0, save=1.0, upload=6.0, export=20.0)
PATIENT, SILENT = Platform(180.0, 30.0, None), Platform(180.0, 0.0, None)


def nine_zones(platform: Platform = PATIENT, **changes: object) -> Scenario:
    """Twelve runs of six hours in two weeks of nine zones."""
    traces = generate(3, DAYS)
    plain = {
        "traces": traces,
        "pools": pools(traces),
        "zones": {zone: (zone,) for zone in traces.zones},
        "runs": 12,
        "steps": 10_800,
        "effort": EFFORT,
        "platform": platform,
        "deadline": 24 * 3600.0,
    }
    return Scenario(**(plain | changes))  # type: ignore[arg-type]


@cache
def found(policy: str, platform: Platform = PATIENT) -> Figures:
    return run(nine_zones(platform), POLICIES[policy])


@cache
def lived(policy: str, platform: Platform = PATIENT) -> World:
    given = nine_zones(platform)
    world = given.world(POLICIES[policy])
    world.run(START + given.seconds)
    return world


def test_nine_zones_are_much_better_than_one() -> None:
    one, nine = found("spot-one"), found("spot-any")
    assert nine.finished == nine.runs
    assert nine.finish_median is not None
    assert one.finish_median is None or nine.finish_median < 0.7 * one.finish_median
    assert nine.finish_median < 1.4 * 6.0 * 3600
    assert nine.saved is not None
    assert nine.saved > 0.7


def test_on_demand_is_never_late_and_never_cheap() -> None:
    sure = found("on-demand")
    assert (sure.finished, sure.late, sure.preemptions) == (sure.runs, 0, 0)
    assert sure.cost > 3 * found("spot-any").cost


@pytest.mark.parametrize("platform", [PATIENT, SILENT], ids=["notice", "none"])
def test_the_ledger_agrees_with_the_worlds_own_account(platform: Platform) -> None:
    for policy in ("spot-any", "fallback"):
        figures = found(policy, platform)
        assert figures.preemptions > 10
        assert figures.ledger == pytest.approx(figures.cost, rel=0.02)


@pytest.mark.parametrize("platform", [PATIENT, SILENT], ids=["notice", "none"])
def test_halts_and_work_done_again_stay_below_three_and_a_half_percent(platform: Platform) -> None:
    figures = found("spot-any", platform)
    assert 0.0 < figures.overhead <= 0.035


def test_a_loss_without_notice_takes_a_checkpoint_interval_at_most() -> None:
    interval = 150
    given = nine_zones(SILENT, every_steps=interval)
    world = given.world(POLICIES["spot-any"])
    world.run(START + given.seconds)
    most = interval * EFFORT.step + EFFORT.save + EFFORT.upload
    losses = 0
    for life in world.lives:
        taken = life.account.ended_by[account.TAKEN_SILENTLY]
        losses += taken
        assert life.account.lost <= taken * most
    assert losses > 10


def test_with_notice_no_more_than_a_step_is_lost_each_time() -> None:
    for life in lived("spot-any").lives:
        assert life.account.lost <= life.account.taken * EFFORT.step


@pytest.mark.parametrize("hours", [7.0, 8.0, 11.0])
@pytest.mark.parametrize("zones", [("east-1a",), ("east-1b", "east-1c")], ids=["worst", "two"])
def test_no_deadline_that_can_be_kept_is_missed_where_spot_is_known_only_by_trying(
    zones: tuple[str, ...], hours: float
) -> None:
    traces = generate(3, DAYS)
    few = Traces({zone: traces.zones[zone] for zone in zones}, traces.gap_seconds)
    there = {zone: (zone,) for zone in zones}
    given = nine_zones(traces=few, pools=pools(few), zones=there, deadline=hours * 3600, runs=16)
    figures = run(given, POLICIES["deadline"])
    assert figures.finished == figures.runs
    assert figures.late == 0
    assert figures.saved is not None
    assert figures.saved > -0.05, "not dearer than on demand, but for saves and starts"


def test_every_second_of_a_run_has_its_activity() -> None:
    for life in lived("fallback").lives:
        assert life.ended is not None
        named = sum(one.seconds for one in life.status.times)
        assert named == pytest.approx(life.ended - life.about.created, abs=2)


def test_the_same_question_has_the_same_answer() -> None:
    given = nine_zones(runs=3)
    assert run(given, POLICIES["fallback"]) == run(given, POLICIES["fallback"])


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.9) == 4.0
    assert quantile([1.0], 0.9) == 1.0


def test_the_status_tells_where_the_paid_seconds_went_as_the_world_has_it() -> None:
    """Five takes: with each, a start-up and what was not saved are lost; the rest was of use."""
    for notice in (30.0, 5.0):
        cut = small.traces(zone=[14, 8, 16, 9, 14, 8, 17, 8, 14, 11, 14, 8, 1000])
        taken = small.scenario(cut, every_steps=300, platform=Platform(120.0, notice, None))
        life = small.lived(taken, "spot-one").lives[0]
        spent = life.account
        assert spent.taken == 5
        told = sum(one.seconds for one in life.status.lost)
        of_use = 60.0 + spent.training + spent.exporting + spent.saving
        assert told == pytest.approx(spent.seconds - of_use, abs=7.0 * spent.taken), "an upload each"
        assert told >= 5 * 60
