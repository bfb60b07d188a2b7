"""How many attempts came to nothing since the newest checkpoint: what the budgets count, over folded attempts too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus, Totals
from lorafinetune.engine.ending import PREEMPTIONS, Cause


class Streaks(NamedTuple):
    """Endings without a new checkpoint in between."""

    infrastructure: int = 0
    without_progress: int = 0
    """Attempts that held a node and were taken away."""


def of(status: LoRAFineTuneStatus) -> Streaks:
    """Return the streaks that stand now."""
    totals = status.totals or Totals()
    return after(status.attempts, Streaks(totals.infrastructure, totals.without_progress))


def after(attempts: Iterable[AttemptStatus], before: Streaks) -> Streaks:
    """Return *before* with *attempts* counted, oldest first. A new checkpoint ends both streaks, nothing else does."""
    infrastructure, without_progress = before
    for attempt in attempts:
        if progressed(attempt):
            infrastructure = without_progress = 0
        if attempt.cause == Cause.INFRASTRUCTURE:
            infrastructure += 1
        elif attempt.cause in PREEMPTIONS and not progressed(attempt) and held_a_node(attempt):
            without_progress += 1
    return Streaks(infrastructure, without_progress)


def progressed(attempt: AttemptStatus) -> bool:
    """Whether the attempt committed a checkpoint beyond the one that it resumed from."""
    return (attempt.durable_step or 0) > (attempt.from_step or 0)


def held_a_node(attempt: AttemptStatus) -> bool:
    """Whether it ever had one: one that was taken away while it waited says nothing of nodes."""
    return attempt.scheduled is not None or attempt.started is not None
