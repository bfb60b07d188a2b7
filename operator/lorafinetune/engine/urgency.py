"""How a run stands to its deadline, and what the policy of deadline.py says to that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import deadline
from lorafinetune.engine.activities import Activity, seconds_of
from lorafinetune.engine.availability import Seen
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.times import instant

START_UP: Final = 180.0
"""Seconds that an attempt takes from its node to its training, where none of this run's has shown it."""
NODE: Final = 180.0
"""Seconds until a node on demand is there, where nobody has seen one come."""
UNMEASURED: Final = 1 / 40
"""Part of the time to the deadline that goes into looking for spot before a step has been measured: together with one
start that is lost it is less than RESERVE and RESTARTS, so it makes nobody late who would be in time with those."""
RESERVE: Final = 0.05
"""Share of the work left that is kept for a pace that was told too well."""
RESTARTS: Final = 3.0
"""Start-ups that are kept for what may still befall the run: the way to the node, and one or two that are lost."""
LOOK: Final = 60.0
"""Seconds between two looks at a run that waits, at most."""
GLIMPSES: Final = 48
"""Moments at which it is asked how long a run would wait: as many as fit between now and the end of its slack."""


@dataclass(frozen=True, slots=True)
class Urgency:
    """How a run stands to its deadline. All in seconds."""

    done: float
    """Work that is durable."""
    work: float
    """Work that is left, without any start-up."""
    left: float
    """Time to the deadline."""
    start_up: float
    """From the wish for a node that is sure to come to the first step on it."""

    @property
    def slack(self) -> float:
        """Return for how long the run may do nothing at all, and still be done in time on a node that stays."""
        return self.left - self.work * (1.0 + RESERVE) - RESTARTS * self.start_up

    def waits(self, away: float, prices: deadline.Prices) -> float:
        """Return for how many seconds spot is waited for, if it stays away; it has been for *away* seconds.

        0 = not at all: on-demand capacity is needed, or the cheaper way from here.
        """
        if self.slack <= 0:
            return 0.0
        step = self.slack / GLIMPSES
        held = (glimpse for glimpse in range(GLIMPSES) if not self._is_worth_waiting(glimpse * step, away, prices))
        return next(held, GLIMPSES) * step

    def _is_worth_waiting(self, later: float, away: float, prices: deadline.Prices) -> bool:
        gone = Seen(available=False, last=False, age=away + later, tick=LOOK)
        kept = (RESTARTS - 1.0) * self.start_up
        work = self.work * (1.0 + RESERVE)
        choice = deadline.choose(self.done, work, self.left - later, gone, self.start_up, prices, exposure=kept)
        return choice is deadline.Choice.WAIT


def urgency(seen: Observation, status: LoRAFineTuneStatus) -> Urgency | None:
    """Return how the run stands; None where it has no deadline, or nobody knows yet what its steps take."""
    deadline, steps = seen.spec.limits.deadline, seen.steps
    if deadline is None or steps is None or status.seconds_per_step is None:
        return None
    saved = status.checkpoint.step if status.checkpoint is not None else 0
    pace = float(status.seconds_per_step)
    restart = start_up(status.attempts) + _node(seen)
    return Urgency(saved * pace, max(0, steps - saved) * pace, instant(deadline) - seen.now, restart)


def blind(seen: Observation, status: LoRAFineTuneStatus) -> float | None:
    """Return for how many seconds more spot is looked for although nobody knows what the run's steps take.

    None where a step has been measured, or there is no deadline. Counted from the first attempt, as part of all the
    time that there was then; not above 0 once that is used up.
    """
    deadline = seen.spec.limits.deadline
    if deadline is None or (seen.steps is not None and status.seconds_per_step is not None):
        return None
    left, first = instant(deadline) - seen.now, next(iter(status.attempts), None)
    begun = (first.queued_until or first.created) if first is not None else None
    spent = seen.now - instant(begun) - seconds_of(status, Activity.SUSPENDED, seen.now) if begun is not None else 0.0
    return UNMEASURED * (left + spent) - spent


def _node(seen: Observation) -> float:
    """Return the seconds until a node on demand is there, as all runs have seen it."""
    on_demand = seen.spec.placement.on_demand
    known = [seen.fleet[name] for name in (on_demand.pools if on_demand else ()) if name in seen.fleet]
    waits = [wait for one in known if (wait := one.usual_wait(seen.now)) is not None]
    return max(waits, default=NODE)


def start_up(attempts: Sequence[AttemptStatus]) -> float:
    """Return the seconds that an attempt takes from its node to its training, as this run's newest have shown."""
    shown = [one.start_seconds for one in attempts if one.start_seconds is not None][-3:]
    return max(1.0, sum(shown) / len(shown)) if shown else START_UP
