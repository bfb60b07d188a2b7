"""Where nodes come from in virtual time: zones that have capacity or not, and pools that take nodes of zones."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafinetune.api.gpupool import CapacityType, GPUPoolSpec
from lorafinetune.simulate.traces import Trace


@dataclass(slots=True)
class Zone:
    """One zone's machines of one kind. Spot zones follow a trace; on-demand ones (no trace) always have capacity."""

    name: str
    trace: Trace | None = None
    machines: int | None = None
    """How many there are while there is capacity; None = as many as are asked for."""
    nodes: set[str] = field(default_factory=set)
    """Names of the nodes of it that stand, or are being made."""

    def has_room(self, seconds: float) -> bool:
        """Whether a node can be had, *seconds* after the start."""
        there = self.trace is None or self.trace.available(seconds)
        return there and (self.machines is None or len(self.nodes) < self.machines)


@dataclass(frozen=True, slots=True)
class Place:
    """A pool, and the zones that its nodes come from, best first."""

    name: str
    spec: GPUPoolSpec
    zones: tuple[Zone, ...]

    @property
    def is_spot(self) -> bool:
        """Whether its nodes can be taken back."""
        return self.spec.capacity_type is CapacityType.SPOT

    @property
    def price(self) -> float:
        """Of one hour."""
        return float(self.spec.price_per_hour)


@dataclass(frozen=True, slots=True)
class Platform:
    """How the cloud and its autoscaler behave. All in seconds."""

    provisioning: float
    """From the pod's wish to its container's start, where there is capacity."""
    notice: float
    """From the notice to the end of the node; 0 = nodes go without a word."""
    tells_dry: float | None
    """After how long a pod is told that there is no capacity; None = it never is."""
