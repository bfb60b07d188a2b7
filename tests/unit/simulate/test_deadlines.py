"""Runs with a deadline, from the first look on: nobody knows what their steps take until one has been measured."""

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune.engine.times import stamp
from lorafinetune.simulate.life import Life
from lorafinetune.simulate.training import Effort
from lorafinetune.simulate.world import START
from tests.unit.simulate.given import lived, scenario, traces

DAY = 24 * 60


def run(zone: list[int], *, hours: float, step: float, work: float = 20.0) -> Life:
    """One run of *work* hours that is wanted within *hours*, on a spot zone that is there and away by the minute."""
    effort = Effort(step=step, start_up=60.0, save=1.0, upload=5.0, export=10.0)
    changes: dict[str, Any] = {"steps": round(work * 3600 / step), "effort": effort, "deadline": hours * 3600}
    return lived(scenario(traces(zone=zone), **changes), "deadline").lives[0]


@pytest.mark.parametrize("step", [0.5, 240.0])
def test_a_run_whose_steps_nobody_has_measured_begins_on_spot(step: float) -> None:
    life = run([2 * DAY], hours=24, step=step)
    assert life.succeeded
    assert life.account.on_demand_seconds == 0


@pytest.mark.parametrize("step", [0.5, 240.0])
@pytest.mark.parametrize(
    "zone",
    [
        pytest.param([0, 2 * DAY], id="there never is any spot"),
        pytest.param([0, 30, 4, 2 * DAY], id="some, for as long as a node takes to come"),
        pytest.param([0, 34, 8, 2 * DAY], id="gone when it has measured a few steps, if that"),
    ],
)
def test_slow_or_quick_a_deadline_that_leaves_the_reserve_is_met(step: float, zone: list[int]) -> None:
    """22.5 h of work, 5 % in reserve and three starts of five minutes: just in time, had it begun on demand."""
    life = run(zone, hours=24, step=step, work=22.5)
    assert life.succeeded
    assert not life.is_late
    assert life.account.on_demand_seconds > 22 * 3600


def test_without_any_spot_it_goes_on_demand_after_a_fortieth_of_the_time() -> None:
    life = run([0, 2 * DAY], hours=20, step=1.0, work=5.0)
    first = next(one for one in life.status.attempts if one.capacity_type == "OnDemand")
    assert first.created == stamp(START + 20 * 3600 / 40)
