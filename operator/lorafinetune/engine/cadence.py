"""How long an attempt lasts on a pool until it is preempted: what the trainer makes its cadence of checkpoints from.

The formula is in ``contract.cadence``; the trainer measures what a save costs and applies it. All preemptions count,
with notice or without: a platform need not keep its promise of a notice.
"""

from __future__ import annotations

from typing import Final

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.contract import cadence
from lorafinetune.engine.fleet import PoolKnown

PRIOR: Final = {CapacityType.SPOT: cadence.LIFETIME, CapacityType.ON_DEMAND: 24 * 3600.0}
"""Seconds between two preemptions that are believed in before any was seen."""


def lifetime(exposed: float, preempted: float, *, prior: float = cadence.LIFETIME) -> float:
    """Return the mean seconds between two preemptions: all the time at risk over the preemptions seen in it.

    *exposed* is the time for which attempts had nodes, those that still have them included; *preempted* how many of
    them were taken. The *prior* counts as one more lifetime: it is believed where nothing was seen, and outvoted by the
    second or third preemption.
    """
    return (prior + exposed) / (1.0 + preempted)


def told_lifetime(known: PoolKnown, capacity_type: CapacityType, now: float) -> float:
    """Return what the next attempt on a pool is told, of which that is *known*: ``CreatePod.lifetime_seconds``."""
    return lifetime(known.exposed(now), known.preempted(now), prior=PRIOR[capacity_type])
