"""The world's own account of a run: what it paid and what for, kept beside the engine's ledger to hold that to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lorafinetune.simulate.attempt import Attempt

HOUR = 3600.0


@dataclass(slots=True)
class Account:
    """Sums over the attempts that have ended. Seconds are those of a GPU."""

    cost: float = 0.0
    seconds: float = 0.0
    on_demand_seconds: float = 0.0
    starting: float = 0.0
    training: float = 0.0
    lost: float = 0.0
    saving: float = 0.0
    exporting: float = 0.0
    lost_by: dict[str, float] = field(default_factory=dict)
    """Lost seconds by what ended the attempt."""
    ended_by: Counter[str] = field(default_factory=Counter)
    """Attempts by what ended them."""

    def book(self, attempt: Attempt, cause: str) -> None:
        """Book an attempt that has ended, for *cause*."""
        spent = attempt.spent()
        self.seconds += attempt.seconds
        self.cost += attempt.seconds * attempt.place.price / HOUR
        if not attempt.place.is_spot:
            self.on_demand_seconds += attempt.seconds
        self.starting += spent.starting
        self.training += spent.training
        self.lost += spent.lost
        self.saving += spent.saving
        self.exporting += spent.exporting
        self.ended_by[cause] += 1
        if spent.lost > 0:
            self.lost_by[cause] = self.lost_by.get(cause, 0.0) + spent.lost

    @property
    def taken(self) -> int:
        """Attempts that the platform took away."""
        return self.ended_by[TAKEN] + self.ended_by[TAKEN_SILENTLY]

    @property
    def overhead(self) -> float:
        """The part of the training's time, 0 to 1, that went into saving and into steps that were lost."""
        whole = self.training + self.lost + self.saving
        return (self.lost + self.saving) / whole if whole else 0.0


FINISHED = "finished"
TAKEN = "taken with notice"
TAKEN_SILENTLY = "taken without notice"
STOPPED = "ended by the operator"
NEVER_STARTED = "never started"
RUNNING = "still running"
