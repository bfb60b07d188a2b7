"""Small worlds: a few zones, a few runs, minutes of training."""

from __future__ import annotations

from typing import Any

from lorafinetune.api.gpupool import CapacityType, GPUPoolSpec
from lorafinetune.simulate.places import Platform
from lorafinetune.simulate.policies import POLICIES
from lorafinetune.simulate.scenario import ON_DEMAND, Scenario, pool
from lorafinetune.simulate.traces import Trace, Traces
from lorafinetune.simulate.training import Effort
from lorafinetune.simulate.world import START, World

GAP = 60.0


def traces(**zones: list[int]) -> Traces:
    """Zones by the minutes for which they have, and have not, capacity."""
    longest = max(sum(runs) for runs in zones.values())
    whole = {}
    for name, runs in zones.items():
        rest = longest - sum(runs)
        padded = [*runs, rest] if rest else runs
        whole[name.replace("_", "-")] = Trace(tuple(padded), GAP)
    return Traces(whole, GAP)


def pools(traces: Traces, *, spot: str = "1", on_demand: str = "4") -> dict[str, GPUPoolSpec]:
    found = {zone: pool(CapacityType.SPOT, spot, zone) for zone in traces.zones}
    return found | {ON_DEMAND: pool(CapacityType.ON_DEMAND, on_demand, "any")}


def scenario(given: Traces, **changes: Any) -> Scenario:
    """One run of an hour, one step a second, on those traces, with a notice of half a minute."""
    plain: dict[str, Any] = {
        "traces": given,
        "pools": pools(given),
        "zones": {zone: (zone,) for zone in given.zones},
        "runs": 1,
        "steps": 3600,
        "effort": Effort(step=1.0, start_up=60.0, save=1.0, upload=5.0, export=10.0),
        "platform": Platform(provisioning=120.0, notice=30.0, tells_dry=None),
    }
    return Scenario(**(plain | changes))


def lived(given: Scenario, policy: str, until: float | None = None) -> World:
    """The world of *given* under *policy*, after all its time."""
    world = given.world(POLICIES[policy])
    world.run(START + (given.seconds if until is None else until))
    return world
