"""Lifetimes of attempts, drawn or read, and what a cadence of checkpoints loses on them: replayed second by second."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lorafinetune.contract import cadence
from lorafinetune.engine.cadence import lifetime

Draw = Callable[[random.Random], float]

RESTART = 90.0
"""Seconds from a container's start to its first step."""


def exponential(mean: float) -> Draw:
    """Nodes that are taken at any moment alike."""
    return lambda keys: keys.expovariate(1.0 / mean)


def weibull(mean: float, shape: float = 0.5) -> Draw:
    """Heavy-tailed: many are taken soon, some stay very long. Shape 0.5 has a mean of twice its scale."""
    assert shape == 0.5
    return lambda keys: keys.weibullvariate(mean / 2.0, shape)


def lognormal(mean: float, sigma: float = 1.5) -> Draw:
    """Heavy-tailed in another way: few are taken at once."""
    import math

    return lambda keys: keys.lognormvariate(math.log(mean) - sigma**2 / 2.0, sigma)


class Lost(NamedTuple):
    """Seconds of training time, and those of them in which no step that counts was made."""

    training: float
    saving: float
    again: float

    @property
    def share(self) -> float:
        return (self.saving + self.again) / self.training if self.training else 0.0


def live(seconds: float, cost: float, first: float, every: float) -> Lost:
    """Train for *seconds* until the node is gone without notice: a save after *first*, and then after each *every*.

    A save holds the training up for *cost*; what was done since the last one that was complete is to be done again.
    """
    durable = at = 0.0
    following, saves = first, 0
    while at + following + cost <= seconds:
        at += following + cost
        durable += following
        saves += 1
        following = every
    return Lost(seconds, saves * cost, seconds - saves * cost - durable)


def total(parts: Sequence[Lost]) -> Lost:
    return Lost(*(sum(values) for values in zip(*parts, strict=True)))


def fixed(lives: Sequence[float], cost: float, every: float) -> Lost:
    """One interval for all lives."""
    return total([live(max(0.0, one - RESTART), cost, every, every) for one in lives])


def oracle(lives: Sequence[float], cost: float) -> float:
    """The share that the best of all fixed intervals loses, which knows every life beforehand."""
    return min(fixed(lives, cost, 2.0 * 1.05**power).share for power in range(150))


def ours(lives: Sequence[float], costs: Sequence[float], *, prior: float = cadence.LIFETIME) -> Lost:
    """What the product does: each life is told what was seen before it, and measures what a save costs.

    *costs* are the measured ones, one for each life; the true one is their mean.
    """
    cost = sum(costs) / len(costs)
    seen: list[float] = []
    parts = []
    for one, measured in zip(lives, costs, strict=True):
        told = lifetime(sum(seen), len(seen), prior=prior)
        parts.append(
            live(max(0.0, one - RESTART), cost, cadence.interval(None, told), cadence.interval(measured, told))
        )
        seen.append(one)
    return total(parts)
