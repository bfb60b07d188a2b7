"""What is asked of a simulation: the traces, the runs, what training takes, how the platform behaves, what it costs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import CapacityType, GPUPoolSpec
from lorafinetune.engine.observation import RunSeen
from lorafinetune.engine.times import stamp
from lorafinetune.simulate.life import Life
from lorafinetune.simulate.places import Place, Platform, Zone
from lorafinetune.simulate.policies import Policy
from lorafinetune.simulate.traces import Traces
from lorafinetune.simulate.training import Effort
from lorafinetune.simulate.world import START, World

ON_DEMAND: Final = "on-demand"
"""The on-demand pool of those simulations that bring no pools of their own."""
PRODUCT: Final = "simulated"
BODY: Final[Mapping[str, Any]] = {
    "baseModel": {"source": "hf://stabilityai/stable-diffusion-xl-base-1.0"},
    "dataset": {"source": "s3://data/images/"},
    "storage": {"uri": "s3://loras/"},
}
"""What a run must say, and a simulation does not look at."""


class Arrival(StrEnum):
    """When runs are applied."""

    SPREAD = "spread"
    """One after the other, at even distances."""
    RANDOM = "random"
    """At random instants, from the seed."""
    TOGETHER = "together"
    """All at the start."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The same for all policies that are compared."""

    traces: Traces
    pools: Mapping[str, GPUPoolSpec]
    """By name, best first."""
    zones: Mapping[str, tuple[str, ...]]
    """Where the nodes of each spot pool come from, best first."""
    runs: int
    steps: int
    effort: Effort
    platform: Platform
    every_steps: int | None = None
    """Steps between two checkpoints; None = as often as pays."""
    deadline: float | None = None
    """Seconds from apply within which each run is wanted."""
    arrival: Arrival = Arrival.SPREAD
    seed: int = 0
    machines: int | None = None
    """Nodes that a zone has at most, while it has any; None = as many as are asked for."""
    body: Mapping[str, Any] = field(default_factory=lambda: BODY)
    """The runs' spec, as its user wrote it; placement and limits come from the policy, steps from *steps*."""

    @property
    def seconds(self) -> float:
        """How long the world lives: as long as the traces."""
        return self.traces.seconds

    def named(self, kind: CapacityType) -> list[str]:
        """Return the names of the pools of one kind, best first."""
        return [name for name, pool in self.pools.items() if pool.capacity_type is kind]

    def spec(self, policy: Policy, created: float) -> LoRAFineTuneSpec:
        """Return the spec of a run under *policy*. Raises ValidationError."""
        body = dict(self.body)
        training = {**(body.get("training") or {}), "steps": self.steps}
        training.pop("epochs", None)
        checkpoint = dict(body.get("checkpoint") or {})
        if self.every_steps is not None:
            checkpoint["everySteps"] = self.every_steps
        limits = dict(body.get("limits") or {})
        limits.pop("deadline", None)
        if policy.keeps_deadline and self.deadline is not None:
            limits["deadline"] = stamp(created + self.deadline)
        placement = policy.placement(self.named(CapacityType.SPOT), self.named(CapacityType.ON_DEMAND), body)
        return LoRAFineTuneSpec.model_validate(
            body | {"training": training, "checkpoint": checkpoint, "limits": limits, "placement": placement}
        )

    def world(self, policy: Policy) -> World:
        """Return the world with all its runs, before its first instant."""
        zones = {name: Zone(name, trace, self.machines) for name, trace in self.traces.zones.items()}
        places = []
        for name, pool in self.pools.items():
            if pool.capacity_type is CapacityType.SPOT:
                places.append(Place(name, pool, tuple(zones[zone] for zone in self.zones[name])))
            else:
                places.append(Place(name, pool, (Zone(f"{name}-zone"),)))
        world = World(places, self.platform)
        for number, created in enumerate(self.arrivals(), start=1):
            about = RunSeen("default", f"run-{number:03d}", f"{number:08d}-0000-0000", 1, created)
            due = created + self.deadline if self.deadline is not None else None
            world.apply(Life(about, self.spec(policy, created), self.effort, due))
        return world

    def arrivals(self) -> list[float]:
        """Return when each run is applied, such that all of them can be done before the traces end."""
        needed = self.deadline if self.deadline is not None else 2.0 * self.work
        span = max(0.0, self.seconds - needed)
        match self.arrival:
            case Arrival.TOGETHER:
                moments = [0.0] * self.runs
            case Arrival.SPREAD:
                moments = [span * number / max(1, self.runs) for number in range(self.runs)]
            case Arrival.RANDOM:
                chance = random.Random(f"{self.seed}/arrivals")
                moments = sorted(chance.uniform(0.0, span) for _ in range(self.runs))
        return [START + float(round(moment)) for moment in moments]

    @property
    def work(self) -> float:
        """Seconds of a run that nothing disturbs."""
        return self.effort.start_up + self.steps * self.effort.step + self.effort.export

    @property
    def on_demand_price(self) -> float | None:
        """Of one hour, in the cheapest on-demand pool; None where there is none."""
        prices = [float(self.pools[name].price_per_hour) for name in self.named(CapacityType.ON_DEMAND)]
        return min(prices, default=None)


def pool(capacity: CapacityType, price: str, zone: str, most: int | None = None) -> GPUPoolSpec:
    """Return a pool for a zone, or for on-demand capacity, that simulations use where they are given none."""
    return GPUPoolSpec.model_validate(
        {
            "capacityType": capacity.value,
            "nodeSelector": {"topology.kubernetes.io/zone": zone},
            "gpu": {"product": PRODUCT},
            "pricePerHour": price,
            "default": capacity is CapacityType.SPOT,
            "maxConcurrentAttempts": most,
        }
    )


def zones_of(pools: Mapping[str, GPUPoolSpec], zones: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the zones of those spot pools that say them: by the pool's name, or by its label for zones."""
    found: dict[str, tuple[str, ...]] = {}
    for name, spec in pools.items():
        if spec.capacity_type is not CapacityType.SPOT:
            continue
        for zone in (name, spec.node_selector.get("topology.kubernetes.io/zone", name)):
            if zone in zones:
                found[name] = (zone,)
                break
    return found
