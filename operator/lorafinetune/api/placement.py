"""Where attempts may run, in which order, and when to pay for on-demand capacity."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.durations import Duration
from lorafinetune.api.places import PoolName
from lorafinetune.api.words import listed, rule, ruled
from lorafinetune.contract.model import OpenModel


class PoolOrder(StrEnum):
    """Which of several pools is tried first."""

    AS_LISTED = "AsListed"
    CHEAPEST_FIRST = "CheapestFirst"


class OnDemandSpec(OpenModel):
    """When to stop trying spot capacity, and what to use then."""

    pools: Annotated[list[PoolName], Field(min_length=1, max_length=16, json_schema_extra=listed("set"))]
    """GPUPools with capacityType OnDemand, best first."""
    after_preemptions: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Preemptions, since the run last was on on-demand capacity, after which it goes there. Absent = 5, unless
    afterPending or limits.deadline says when to go there."""
    after_pending: Duration | None = None
    """How long the run waits for spot capacity before it goes on here, for example 20m. Absent = for ever."""
    when_deadline_needs_it: bool | None = None
    """Whether the run goes here when limits.deadline could not be kept otherwise. Absent = true, where there is one."""


class PlacementSpec(OpenModel):
    """Where attempts may run."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "!has(self.pools) || !has(self.onDemand) || !self.onDemand.pools.exists(name, name in self.pools)",
                "spec.placement.onDemand.pools names a pool that stands in spec.placement.pools too: a pool is either "
                "tried first or fallen back to, remove it from one of them",
                field_path=".onDemand.pools",
            )
        )
    )

    pools: Annotated[list[PoolName], Field(max_length=16, json_schema_extra=listed("set"))] = Field(
        default_factory=list
    )
    """GPUPools, best first. Empty = those that are marked default, the cheapest first."""
    order: PoolOrder = PoolOrder.AS_LISTED
    """Whether pools are tried as they are listed (AsListed) or by price (CheapestFirst). One that is dry, or has just
    taken a node back, comes later in both."""
    on_demand: OnDemandSpec | None = None
    """On-demand capacity to fall back to. Absent = never."""
    return_to_spot: bool = True
    """Whether a run on on-demand capacity goes back to spot, at a checkpoint and at most once an hour, when what that
    saves is more than what moving costs."""
