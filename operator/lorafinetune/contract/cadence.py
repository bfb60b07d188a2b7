"""How often a checkpoint pays: the interval of Young and Daly, from what one costs and how long nodes last.

Work of W seconds, saved every T seconds at a cost of C seconds each, on nodes that are lost every M seconds on average,
takes about W (1 + C/T + T/2M): each save costs C, and each loss costs half an interval on average, whatever the
distribution of the lifetimes, as long as T is short beside them. The least is at T = sqrt(2 C M) (Young, "A first order
approximation to the optimum checkpoint interval", 1974). Daly ("A higher order estimate of the optimum checkpoint
interval for restart dumps", 2006) has the terms that count where C is not small beside M. It stays good where saves
can only be made at the ends of steps (Inria, hal-02514107).

What a restart takes (a new node, imports, loading) is lost once with each node, however often it saved, so it is no
term of T. A save that goes on beside the training costs what the training is held up and slowed down by it, not the
time until it is durable; that time is but a bound, for no save begins before the one before it has ended.
"""

from __future__ import annotations

import math
from typing import Final

LIFETIME: Final = 3600.0
"""Seconds between two losses of a node that are believed in where nobody has seen any."""
FIRST_COST: Final = 0.5
"""Seconds that a save is believed to cost until one has been measured."""
SHORTEST: Final = 30.0
"""Seconds: the requests of a checkpoint have a price of their own. Twenty (rank 16) cost as much as a second of a cheap
GPU, so more often than this they would cost more than the work that they save."""
LONGEST: Final = 600.0
"""Seconds: nobody should lose more than this for a lifetime that was estimated too long."""
FIRST: Final = 60.0
"""Seconds of training within which the first checkpoint of an attempt comes: it also measures what one costs."""


def best(save_seconds: float, lifetime_seconds: float) -> float:
    """Return Daly's interval between the ends of two saves, in seconds of training; without any bounds."""
    if save_seconds >= 2.0 * lifetime_seconds:
        return lifetime_seconds
    share = save_seconds / (2.0 * lifetime_seconds)
    young = math.sqrt(2.0 * save_seconds * lifetime_seconds)
    return max(0.0, young * (1.0 + math.sqrt(share) / 3.0 + share / 9.0) - save_seconds)


def interval(save_seconds: float | None, lifetime_seconds: float | None = None, *, durable_after: float = 0.0) -> float:
    """Return the seconds of training from one checkpoint to the next.

    *save_seconds* is what one costs the training, None while none has been measured; *lifetime_seconds* the mean time
    between two losses of a node, None where nothing is known; *durable_after* how long a save takes in all, which is
    the least that the interval can be.
    """
    lifetime = LIFETIME if lifetime_seconds is None else lifetime_seconds
    if save_seconds is None:
        return min(FIRST, max(SHORTEST, best(FIRST_COST, lifetime)))
    return min(max(LONGEST, durable_after), max(SHORTEST, durable_after, best(save_seconds, lifetime)))


def steps(seconds: float, seconds_per_step: float) -> int:
    """Return the whole optimizer steps nearest to *seconds*: one at least."""
    return max(1, round(seconds / max(seconds_per_step, 1e-6)))


def lost_share(interval_seconds: float, save_seconds: float, lifetime_seconds: float) -> float:
    """Return the share of the time that saves and work done again take, as the formula above has it."""
    return save_seconds / interval_seconds + interval_seconds / (2.0 * lifetime_seconds)
