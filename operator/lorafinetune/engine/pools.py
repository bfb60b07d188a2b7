"""Where the next attempt runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from lorafinetune.api.finetune import PlacementSpec
from lorafinetune.api.gpupool import CapacityType, GPUPoolSpec


@dataclass(frozen=True, slots=True)
class Placed:
    """The pool for the next attempt."""

    name: str
    spec: GPUPoolSpec
    on_demand_price: str | None
    """Price of the cheapest on-demand pool with the same GPU product, to tell what was saved."""


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """There is no such pool; the message says what to write or to create."""

    reason: str
    message: str


def choose(placement: PlacementSpec, pools: Mapping[str, GPUPoolSpec], *, preemptions: int) -> Placed | Unplaceable:
    """Choose the first pool named, or the cheapest default one; after enough preemptions, the first on-demand one."""
    named = [*placement.pools, *(placement.on_demand.pools if placement.on_demand else ())]
    known = ", ".join(sorted(pools)) or "none"
    for name in named:
        if name not in pools:
            return Unplaceable(
                "UnknownPool", f"spec.placement names pool {name!r}, which does not exist; GPUPools: {known}"
            )
    on_demand = placement.on_demand
    if on_demand is not None:
        for name in on_demand.pools:
            if pools[name].capacity_type is not CapacityType.ON_DEMAND:
                message = (
                    f"spec.placement.onDemand names {name!r}, whose capacityType is Spot: name it in placement.pools"
                )
                return Unplaceable("NotOnDemand", message)
        if preemptions >= on_demand.after_preemptions:
            return _placed(on_demand.pools[0], pools)
    if placement.pools:
        return _placed(placement.pools[0], pools)
    default = sorted((Decimal(pool.price_per_hour), name) for name, pool in pools.items() if pool.default)
    if not default:
        message = f"no GPUPool is marked default: name one in spec.placement.pools, or mark one; GPUPools: {known}"
        return Unplaceable("NoDefaultPool", message)
    return _placed(default[0][1], pools)


def _placed(name: str, pools: Mapping[str, GPUPoolSpec]) -> Placed:
    product = pools[name].gpu.product
    prices = [
        Decimal(pool.price_per_hour)
        for pool in pools.values()
        if product is not None and pool.gpu.product == product and pool.capacity_type is CapacityType.ON_DEMAND
    ]
    return Placed(name, pools[name], str(min(prices)) if prices else None)
