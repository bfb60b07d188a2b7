"""A bound: what a policy could pay at best that knows only for how long spot has been there or away.

Its chances are counted on the very traces that it is judged on, per zone, which no policy can have; and it counts with
steps of a tick exactly. What foresight has more than this is luck that nobody can know of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lorafinetune.engine.availability import FIRST_AGE
from lorafinetune.engine.deadline import Choice
from lorafinetune.simulate.job import Job, Moment, Policy
from tests.bench.deadline.expectation import layers

_LONGEST: float = 24 * 3600.0
_GROWTH = 1.25
_FEW = 0.02
_ORDER = (Choice.WAIT, Choice.SPOT, Choice.ON_DEMAND)


class Bound:
    """The best choices for jobs of one length, restart cost (whole ticks, one at least) and price in one zone."""

    def __init__(self, watched: Sequence[bool], job: Job, longest: float) -> None:
        """Count chances in *watched*, tick by tick; solve for deadlines up to *longest* seconds."""
        self.edges = [1]
        while self.edges[-1] * job.tick < _LONGEST:
            self.edges.append(max(self.edges[-1] + 1, int(self.edges[-1] * _GROWTH)))
        grows = np.array([1 / (b - a) for a, b in pairwise([0, *self.edges])] + [0.0])
        self.restart = round(job.restart_cost / job.tick)
        self.choices: list[tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]] = []
        going = layers(
            ends=self._ends(watched),
            grows=grows,
            restart=self.restart,
            spot=job.prices.spot,
            on_demand=job.prices.on_demand,
            work=round(job.work / job.tick),
            time=round(longest / job.tick),
            idle_beside_spot=True,
        )
        for layer in going:
            never = np.full_like(layer.start_spot, np.inf)
            start = np.stack([never, layer.start_spot])
            idle = np.stack([layer.wait, start, layer.start_on_demand])
            dear = np.stack(
                [np.broadcast_to(x, layer.stay_on_demand.shape) for x in (layer.wait, start)] + [layer.stay_on_demand]
            )
            spot = np.stack(
                [
                    np.broadcast_to(layer.wait[1], layer.stay_spot.shape),
                    layer.stay_spot,
                    np.broadcast_to(layer.start_on_demand[1], layer.stay_spot.shape),
                ]
            )
            self.choices.append(
                (idle.argmin(0).astype(np.int8), spot.argmin(0).astype(np.int8), dear.argmin(0).astype(np.int8))
            )

    def _ends(self, watched: Sequence[bool]) -> NDArray[np.float64]:
        ended, looked = np.full((2, len(self.edges) + 1), _FEW), np.ones((2, len(self.edges) + 1))
        age: int | None = None
        for before, after in pairwise(watched):
            if age is not None:
                place = int(before), self._class(age)
                looked[place] += 1
                ended[place] += before != after
                age += 1
            if before != after:
                age = 0
        return ended / looked

    def _class(self, age: int) -> int:
        return int(np.searchsorted(self.edges, age, side="right"))

    def policy(self, job: Job) -> Policy:
        """Return it as a policy for *job*."""
        age, last = round(FIRST_AGE / job.tick), None

        def policy(moment: Moment) -> Choice:
            nonlocal age, last
            age, last = (age if last is None else age + 1 if last == moment.available else 0), moment.available
            left, work = round(moment.time_left / job.tick), round(moment.remaining / job.tick)
            owed, old = round(moment.restart_left / job.tick), self._class(age)
            idle, spot, dear = self.choices[left - 1]
            state = int(bool(moment.available))
            match moment.running:
                case Choice.WAIT:
                    return _ORDER[idle[state, old, work]]
                case Choice.SPOT:
                    return _ORDER[spot[owed, old, work]]
                case Choice.ON_DEMAND:
                    return _ORDER[dear[owed, state, old, work]]

        return policy
