"""The least that a job can be expected to cost, if all it knows is for how long spot has been there or away.

A dynamic program, layer by layer of time left. Out of it come the reserves of engine/deadline_reserves.py
(reserves.py makes them), and a bound for any policy that knows no more (bound.py).

Time goes in steps. In each, the state of spot may end, with a chance that depends on its age class; else it may grow
into the next class. All arrays run over work left in steps, last; *restart* steps of a start are no progress. State 0
is away, 1 is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]

IMPOSSIBLE = 1e6
"""The cost of being late: more than any job's."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Expected costs of what a job may do next, with one time left. Below 1e5, the deadline is sure to be met."""

    wait: Costs
    """[state, age, work]: nothing runs for a step."""
    start_spot: Costs
    """[age, work]"""
    start_on_demand: Costs
    """[state, age, work]"""
    stay_spot: Costs
    """[restart left, age, work]"""
    stay_on_demand: Costs
    """[restart left, state, age, work]"""


def layers(
    *,
    ends: Costs,
    grows: Costs,
    restart: int,
    spot: float,
    on_demand: float,
    work: int,
    time: int,
    idle_beside_spot: bool = False,
) -> Iterator[Layer]:
    """Yield the layers for 1, 2, ... *time* steps left, of up to *work*, at the prices of a step.

    *ends*: chance that a state ends in a step, [state, age]; *grows*: chance that it grows a class older, [age].
    *idle_beside_spot*: a job may also wait while spot is there.
    """
    q, g = ends[:, :, None], grows[None, :, None]

    def later(costs: Costs) -> Costs:
        older = np.concatenate([costs[..., 1:, :], costs[..., -1:, :]], axis=-2)
        return (1 - g) * costs + g * older

    def a_step_on(costs: Costs) -> Costs:
        return np.concatenate([np.zeros((*costs.shape[:-1], 1)), costs[..., :-1]], axis=-1)

    ages = ends.shape[1]
    idle = np.full((2, ages, work + 1), IMPOSSIBLE)
    on_spot = np.full((restart + 1, ages, work + 1), IMPOSSIBLE)
    dear = np.full((restart + 1, 2, ages, work + 1), IMPOSSIBLE)
    for costs in (idle, on_spot, dear):
        costs[..., 0] = 0.0
    for _ in range(time):
        wait = q * idle[::-1, :1] + (1 - q) * later(idle)
        after_spot = q[1] * idle[0, :1] + (1 - q[1]) * later(on_spot)
        after_dear = q * dear[:, ::-1, :1] + (1 - q) * later(dear)
        stay_spot = spot + np.concatenate([a_step_on(after_spot[:1]), after_spot[:-1]])
        stay_dear = on_demand + np.concatenate([a_step_on(after_dear[:1]), after_dear[:-1]])
        layer = Layer(wait, stay_spot[restart], stay_dear[restart], stay_spot, stay_dear)
        yield layer
        idle = np.minimum(layer.wait, layer.start_on_demand)
        if not idle_beside_spot:
            idle[1] = layer.start_on_demand[1]
        idle[1] = np.minimum(idle[1], layer.start_spot)
        dear = stay_dear.copy()
        dear[:, 0] = np.minimum(dear[:, 0], layer.wait[0])
        if idle_beside_spot:
            dear[:, 1] = np.minimum(dear[:, 1], layer.wait[1])
        dear[:, 1] = np.minimum(dear[:, 1], layer.start_spot)
        on_spot = np.minimum(stay_spot, layer.start_on_demand[1])
        for costs in (idle, on_spot, dear):
            costs[..., 0] = 0.0
            np.minimum(costs, IMPOSSIBLE, out=costs)
