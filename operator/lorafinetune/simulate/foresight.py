"""Perfect foresight: the least that a job could have cost, had it known its trace. What policies are measured against.

Backward over the ticks. The state is where the job runs, and how much of its slack (deadline less work) is gone: a
tick of waiting takes a tick of it, a start takes the restart cost, and running takes none. So there is one row of costs
over slack for each place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

MAX_CELLS: Final = 20_000
"""Cells of a row. Where more would be needed, restart costs are rounded down: the result is a bound from below then."""
_NEVER: Final = math.inf


def cheapest(
    available: Sequence[bool],
    *,
    tick: int,
    work: int,
    deadline: int,
    restart_cost: int,
    spot_price: float,
    on_demand_price: float,
) -> float | None:
    """Return the least cost of *work* within *deadline*, or None where on-demand from the start would be late.

    Times are whole seconds, prices per hour. *available* says whether there is spot capacity in each tick, up to the
    deadline at least. Decisions are made at ticks, the work ends within one. Each start, anywhere, first takes the
    restart cost, which is paid for like work.
    """
    slack = deadline - work
    if slack < restart_cost:
        return None
    unit = math.gcd(tick, restart_cost)
    if slack // unit >= MAX_CELLS:
        unit = math.ceil(tick / max(1, MAX_CELLS * tick // slack))
    waited, started = max(1, tick // unit), restart_cost // unit
    ticks, jump = -(-deadline // tick), max(1, -(-restart_cost // tick))
    up_for = _up_for(available, ticks)
    prices = (spot_price / 3600, on_demand_price / 3600)
    cells = slack // unit + 1
    waiting = [0.0 if work - ticks * tick + cell * unit <= 0 else _NEVER for cell in range(cells)]
    ahead = [(waiting, waiting)] + [([_NEVER] * cells,) * 2] * jump
    for now in reversed(range(ticks)):
        left = work - now * tick  # while no slack is gone; each cell that is gone adds a unit
        reached = min(cells, (now + jump) * tick // unit + 1)
        done = max(0, min(reached, -left // unit + 1))
        row = waiting[waited : waited + reached]
        row += [_NEVER] * (reached - len(row))
        going: list[list[float] | None] = [None, None]
        for place, price in enumerate(prices):
            if place == 0 and not up_for[now]:
                continue
            going[place] = _ran(ahead[0][place][:reached], price, tick, left, unit)
            if place == 1 or up_for[now] >= min(jump, ticks - now):
                begun = ahead[jump - 1][place][started : started + reached]
                begun = _ran(begun, price, jump * tick, left + restart_cost, unit)
                row[: len(begun)] = map(min, row, begun)
        row[:done] = [0.0] * done
        spot, on_demand = (row if one is None else list(map(min, row, one)) for one in going)
        ahead = [(spot, on_demand), *ahead[:jump]]
        waiting = row
    return waiting[0]


def _up_for(available: Sequence[bool], ticks: int) -> list[int]:
    """Return for each tick for how many ticks, itself included, there will be spot capacity."""
    counts = [0] * (ticks + 1)
    for now in reversed(range(ticks)):
        counts[now] = counts[now + 1] + 1 if available[now] else 0
    return counts


def _ran(row: list[float], price: float, seconds: int, left: int, unit: int) -> list[float]:
    """Return the costs of running for *seconds* and going on as in *row*, or of ending within them."""
    whole = price * seconds
    costs = [whole + cost for cost in row]
    for cell in range(max(0, min(len(row), (seconds - left) // unit + 1))):
        costs[cell] = price * max(0, left + cell * unit)
    return costs
