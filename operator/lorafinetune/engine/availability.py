"""How long spot capacity stays, and stays away: what all zones have in common, and what one run has seen.

In every zone measured, the longer there has been capacity, the longer it will stay; and the longer it has been gone,
the longer it will be away. deadline.py decides with this.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final

AGES: Final = (0.06, 0.12, 0.35, 0.75, 1.5, 3.0, 6.0, 12.0, 24.0)
"""Hours at which one class of age ends and the next begins."""
ENDS_UP: Final = (0.02, 3.7, 1.6, 0.88, 0.39, 0.3, 0.18, 0.086, 0.087, 0.028)
"""Chance per hour that capacity ends, per class of its age.

Fitted: ends counted, divided by hours of that age, in the tuning half of the public traces (see tests/bench/deadline).
None of their windows ended before it had been seen twice, so the first is a guess.
"""
ENDS_DOWN: Final = (0.02, 3.9, 1.8, 0.72, 0.42, 0.28, 0.29, 0.13, 0.13, 0.04)
"""Chance per hour that a time without capacity ends, likewise."""
FIRST_AGE: Final = 2 * 3600.0
"""Age of what is found at the first look: a random moment lies in a long window rather than in a short one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What has been seen of spot capacity so far: fold each look into it with :meth:`then`. Times in seconds."""

    available: bool | None = None
    """Whether there is spot capacity now; None is not known."""
    last: bool | None = None
    """What was last known."""
    age: float = 0.0
    """For how long *last* has been so, as far as known."""
    unknown: float = 0.0
    """For how long nothing has been known."""
    tick: float = 0.0
    """For how long the newest look holds: until the next one."""

    def then(self, available: bool | None, seconds: float) -> Seen:
        """Return what is known when spot is found *available* now, with the next look in *seconds*.

        None says that nobody knows: nothing of ours runs on spot or waits for it, and nobody else's does.
        """
        gone = self.tick
        if available is None:
            return replace(self, available=None, unknown=self.unknown + gone, tick=seconds)
        if self.last is None:
            return replace(self, available=available, last=available, age=FIRST_AGE, unknown=0.0, tick=seconds)
        same = available is self.last
        age = self.age + self.unknown + gone if same else 0.0
        return replace(self, available=available, last=available, age=age, unknown=0.0, tick=seconds)


def age_class(seconds: float) -> int:
    """Return the class of an age, an index into ENDS_UP and ENDS_DOWN."""
    return bisect_right(AGES, seconds / 3600)
