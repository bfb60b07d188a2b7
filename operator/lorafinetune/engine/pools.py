"""Where the next attempt runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from math import inf

from lorafinetune.api.gpupool import CapacityType, GPUPoolSpec
from lorafinetune.api.placement import PoolOrder
from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import budgets
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.fallback import NO_FALLBACK, Fallback, Spot, fallback
from lorafinetune.engine.fleet import FIRST_PAUSE, Fleet, PoolKnown
from lorafinetune.engine.news import fold
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.pending import POOL_DRY
from lorafinetune.engine.times import instant, stamp

LOOK_AGAIN = 30.0
"""Seconds after which a run that waits for room in a pool looks again, if nothing wakes it before."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The pool for the next attempt."""

    name: str
    spec: GPUPoolSpec
    on_demand_price: str | None
    """Price of the cheapest on-demand pool with the same GPU product, to tell what was saved."""
    dry: bool = False
    """It has no capacity, as far as anybody knows, and neither has any other: an attempt that waits there finds out."""
    fallback: Fallback = NO_FALLBACK
    """Whether on-demand capacity was wanted, or when it will be."""
    until: float | None = None
    """When time alone may lead to another choice, Unix seconds: a dry pool is tried again, on-demand is wanted."""
    known: PoolKnown = field(default_factory=PoolKnown)
    """What all runs together know of it, with what this pass has found out."""
    passed_over: str = ""
    """What is wrong with a pool that the run names, and goes on without."""

    @property
    def on_demand(self) -> bool:
        """Whether it is here because on-demand capacity was wanted."""
        return self.fallback.wanted and self.spec.capacity_type is CapacityType.ON_DEMAND


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no room now; the message says for what is waited."""

    reason: str
    message: str
    again: float


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """There is no such pool; the message says what to write or to create."""

    reason: str
    message: str


Choice = Placed | Waiting | Unplaceable


def choose(seen: Observation, status: LoRAFineTuneStatus) -> Choice:
    """Choose among the pools that the run may use: open ones before dry ones, then in order; full ones never.

    If all are dry, the attempt goes to the one that last had a node: it waits there, and so finds out. *status* is the
    run's as this pass has it, which may know more than the fleet.
    """
    wrong, spot, on_demand = _wrong(seen), usable(seen), _on_demand(seen)
    if wrong is not None and (not status.attempts or not (spot or on_demand)):
        return wrong
    passed_over = wrong.message if wrong is not None else ""
    now, fleet = seen.now, fold(seen.fleet, seen.status, status, seen.now)
    spot = _ordered(spot, seen, status, fleet)
    room = [name for name in (*spot, *on_demand) if not _is_full(name, seen, fleet)]
    tried = _in_vain(status, fleet)
    open_ = [name for name in room if not _known(fleet, name).is_dry(now) and tried.get(name, 0.0) <= now]
    dear = min((float(seen.pools[name].price_per_hour) for name in on_demand), default=None)
    falls = fallback(seen, status, _together(spot, open_, seen, fleet, last=status.attempts[-1:]), dear)
    wanted = [*on_demand, *spot] if falls.wanted else spot
    turns = [max(_known(fleet, name).open_again(), tried.get(name, 0.0)) for name in room if name not in open_]
    turn = min([one for one in (*turns, falls.at) if one is not None and one < inf], default=None)
    for name in wanted:
        if name in open_:
            return replace(_placed(name, seen, fleet, falls=falls, until=turn), passed_over=passed_over)
    if not wanted and wrong is not None:
        # A run that had begun goes on with what is left: only on-demand capacity is, and its rule has not spoken.
        return (
            wrong if falls.at is None else Waiting("WaitingForSpot", wrong.message + until(falls), _again(falls, now))
        )
    tries = [name for name in wanted if name in room]
    if tries:
        likeliest = max(tries, key=lambda name: (_known(fleet, name).last_up(), -tries.index(name)))
        placed = _placed(likeliest, seen, fleet, falls=falls, until=turn, dry=True)
        return replace(placed, passed_over=passed_over)
    full = "; ".join(_held(name, seen, fleet) for name in wanted)
    message = f"waiting for another run's attempt to end: as many as maxConcurrentAttempts allows are on {full}"
    return Waiting("PoolFull", message + until(falls), _again(falls, now))


def _in_vain(status: LoRAFineTuneStatus, fleet: Fleet) -> dict[str, float]:
    """Return until when (Unix seconds) the run leaves pools alone that had nodes for others, and none for it.

    It may be one that no node of theirs fits, which says nothing to anybody else. Once they have given another node
    since it left, they are worth a try; while it still waits there, it is the try itself.
    """
    found = {}
    for one in status.attempts:
        if one.dry is None or one.reason != POOL_DRY or one.scheduled is not None or one.started is not None:
            continue
        asked, known, dry = one.queued_until or one.created, _known(fleet, one.pool), instant(one.dry)
        if known.dry is not None or known.placed is None or asked is None or known.placed < instant(asked):
            continue
        if one.cause is None or known.placed <= dry:
            found[one.pool] = inf if one.cause is None else dry + FIRST_PAUSE
    return found


def _again(falls: Fallback, now: float) -> float:
    return LOOK_AGAIN if falls.at is None else max(1.0, min(LOOK_AGAIN, falls.at - now))


def _together(
    spot: Sequence[str], open_: Sequence[str], seen: Observation, fleet: Fleet, *, last: Sequence[AttemptStatus]
) -> Spot:
    """Return what is known of the *spot* pools taken together, of which some may be among the *open_* ones.

    A dry pool that is due for another try is open, but that is no sign of capacity: a run that has just left it for
    on-demand capacity would go back to it at once.
    """
    known = {name: _known(fleet, name) for name in spot}
    hope = any(name in open_ and one.dry is None for name, one in known.items())
    gone = max((instant(one.ended or one.created or stamp(seen.now)) for one in last), default=0.0)
    cheap = [seen.pools[name] for name in spot if seen.pools[name].capacity_type is CapacityType.SPOT]
    return Spot(
        is_open=any(name in open_ for name in spot),
        away_since=None if hope else max((one.last_up() for one in known.values()), default=gone),
        price=min((float(pool.price_per_hour) for pool in cheap), default=None),
    )


def until(falls: Fallback) -> str:
    """Return in words until when on-demand capacity is not taken, where that is known."""
    return f"; until {stamp(falls.at)}, then on demand ({falls.wait_why})" if falls.at is not None else ""


def _wrong(seen: Observation) -> Unplaceable | None:
    placement, pools, namespace = seen.spec.placement, seen.pools, seen.run.namespace
    known = ", ".join(sorted(pools)) or "none"
    for name in (*placement.pools, *(placement.on_demand.pools if placement.on_demand else ())):
        if name not in pools:
            return Unplaceable(
                "UnknownPool", f"spec.placement names pool {name!r}, which does not exist; GPUPools: {known}"
            )
        if not _is_allowed(pools[name], namespace):
            message = (
                f"spec.placement names pool {name!r}, which runs in namespace {namespace!r} may not use: have the "
                f"namespace added to its allowedNamespaces, or name another pool"
            )
            return Unplaceable("PoolNotAllowed", message)
    for name in placement.on_demand.pools if placement.on_demand else ():
        if pools[name].capacity_type is not CapacityType.ON_DEMAND:
            message = f"spec.placement.onDemand names {name!r}, whose capacityType is Spot: name it in placement.pools"
            return Unplaceable("NotOnDemand", message)
    if not placement.pools and not usable(seen):
        which = "that this namespace may use " if any(pool.default for pool in pools.values()) else ""
        message = (
            f"no GPUPool {which}is marked default: name one in spec.placement.pools, or mark one; GPUPools: {known}"
        )
        return Unplaceable("NoDefaultPool", message)
    return None


def _is_allowed(pool: GPUPoolSpec, namespace: str) -> bool:
    return pool.allowed_namespaces is None or namespace in pool.allowed_namespaces


def usable(seen: Observation) -> Sequence[str]:
    """Return the pools that are tried first: those that the run names, else the default ones; as far as they exist."""
    named = seen.spec.placement.pools
    names = named or sorted(name for name, pool in seen.pools.items() if pool.default)
    return [name for name in names if name in seen.pools and _is_allowed(seen.pools[name], seen.run.namespace)]


def _on_demand(seen: Observation) -> Sequence[str]:
    """Return the on-demand pools that the run names, as far as they exist and it may use them."""
    named = seen.spec.placement.on_demand.pools if seen.spec.placement.on_demand is not None else ()
    known = [name for name in named if name in seen.pools and _is_allowed(seen.pools[name], seen.run.namespace)]
    return [name for name in known if seen.pools[name].capacity_type is CapacityType.ON_DEMAND]


def places(seen: Observation) -> frozenset[str]:
    """Return all pools that the run may ever use."""
    return frozenset([*usable(seen), *_on_demand(seen)])


def _ordered(names: Sequence[str], seen: Observation, status: LoRAFineTuneStatus, fleet: Fleet) -> list[str]:
    """Return the names in the order in which they are tried, whether they have capacity or not.

    A pool that has just taken a node back counts as two places later, or as three times as dear, less from hour to
    hour; after a lack of memory, pools with more of it come first; one on which nothing comes of the run comes last.
    """
    placement, avoided = seen.spec.placement, budgets.avoided(status, seen.spec.limits.attempts)
    cheapest = placement.order is PoolOrder.CHEAPEST_FIRST or not placement.pools
    enough = _memory_that_was_too_little(status)

    def place(name: str) -> tuple[bool, bool, float, int]:
        penalty, index = _known(fleet, name).penalty(seen.now), names.index(name)
        weight = float(seen.pools[name].price_per_hour) * (1.0 + penalty) if cheapest else index + penalty
        lacks = enough is not None and not _has_more(seen.pools[name], enough, seen.pools)
        return (lacks, name == avoided, weight, index)

    return sorted(names, key=place)


def _memory_that_was_too_little(status: LoRAFineTuneStatus) -> str | None:
    """Return the pool on which the run's newest lack of memory was."""
    return next((one.pool for one in reversed(status.attempts) if one.cause == Cause.OUT_OF_MEMORY), None)


def _has_more(pool: GPUPoolSpec, than: str, pools: Mapping[str, GPUPoolSpec]) -> bool:
    little = pools[than].gpu.memory_gi_b if than in pools else None
    return little is not None and pool.gpu.memory_gi_b is not None and pool.gpu.memory_gi_b > little


def _is_full(name: str, seen: Observation, fleet: Fleet) -> bool:
    """Whether other runs have all the places; one that this run's own attempt has, it may have again."""
    most = seen.pools[name].max_concurrent_attempts
    own = sum(pod.pool == name and not pod.is_over and not seen.is_booked(pod.attempt) for pod in seen.pods)
    return most is not None and _known(fleet, name).live - own >= most


def _held(name: str, seen: Observation, fleet: Fleet) -> str:
    """Return in words who has the places of a full pool: the names of other namespaces' runs are not told."""
    most, known = seen.pools[name].max_concurrent_attempts, _known(fleet, name)
    holders = [one.partition("/") for one in known.holders]
    here = [pod for namespace, _, pod in holders if namespace == seen.run.namespace]
    if not here:
        return f"{name} ({most}{', all of other namespaces' if len(holders) == known.live > 0 else ''})"
    others = known.live - len(here)
    return f"{name} ({most}: {', '.join(here)}{f' and {others} more' if others else ''})"


def _known(fleet: Fleet, name: str) -> PoolKnown:
    return fleet.get(name) or PoolKnown()


def _placed(
    name: str, seen: Observation, fleet: Fleet, *, falls: Fallback, until: float | None, dry: bool = False
) -> Placed:
    pools = seen.pools
    product = pools[name].gpu.product
    prices = [
        Decimal(pool.price_per_hour)
        for pool in pools.values()
        if product is not None and pool.gpu.product == product and pool.capacity_type is CapacityType.ON_DEMAND
    ]
    return Placed(name, pools[name], str(min(prices)) if prices else None, dry, falls, until, _known(fleet, name))
