"""After which steps a checkpoint is made: as the user says, or as often as pays by what one is measured to cost.

What a save costs is the time that the training thread is held for its snapshot, and what the steps that are done while
it goes on take longer than others do: upload, hashing and copying share the machine. When a checkpoint is made changes
nothing in what is computed, so none of this can change a byte of the LoRA.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median
from typing import Final

from lorafinetune.contract import cadence
from lorafinetune.contract.runconfig import Checkpointing

QUIET: Final = 20
"""Latest steps without a save beside them, with which others are compared."""
FEWEST: Final = 3
"""Such steps below which nothing is compared."""
SAVES: Final = 5
"""Latest saves whose median counts: a pause of the machine is none of a save's doing."""


class Cadence:
    """The cadence of one attempt. Used by the training thread alone."""

    def __init__(self, settings: Checkpointing, *, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        """*step* is where the attempt begins."""
        self._clock = clock
        self._given = settings.every_steps
        self._lifetime = settings.lifetime_seconds
        self._begin = self._last = step
        self._newest = 0.0
        """Seconds of the newest step."""
        self._quiet: deque[float] = deque(maxlen=QUIET)
        self._costs: deque[float] = deque(maxlen=SAVES)
        self._spans: deque[float] = deque(maxlen=SAVES)
        """Seconds from snapshots to when they had been saved."""
        self._saving = False
        """Whether a snapshot has been handed over that is still being saved: since then,"""
        self._held = 0.0
        self._steps, self._seconds = 0, 0.0

    @property
    def save_seconds(self) -> float | None:
        """What one checkpoint costs the training; None until one has been measured."""
        return median(self._costs) if self._costs else None

    @property
    def every_steps(self) -> int:
        """Steps from one checkpoint to the next, as they are made now."""
        if self._given is not None:
            return self._given
        span = median(self._spans) if self._spans else 0.0
        seconds = cadence.interval(self.save_seconds, self._lifetime, durable_after=span)
        return cadence.steps(seconds, fmean(self._quiet or [self._newest]))

    def due(self, step: int, seconds: float, *, busy: bool) -> bool:
        """Take note of *step*, which took *seconds*; return whether a checkpoint of it is to be made.

        *busy* is whether an earlier one is still being saved.
        """
        self._learn(step, seconds, busy=busy)
        if self._given is not None:
            return step % self._given == 0
        return not busy and step - self._last >= self.every_steps

    def take(self, step: int, offer: Callable[[], None]) -> None:
        """Call *offer*, which hands over a snapshot of *step*, and take note of how long it holds the training up.

        One that is handed over while another is being saved counts with it.
        """
        began = self._clock()
        offer()
        self._last, self._saving = step, True
        self._held += self._clock() - began

    def _learn(self, step: int, seconds: float, *, busy: bool) -> None:
        self._newest = seconds
        if self._saving:
            self._steps += 1
            self._seconds += seconds
            if not busy:
                self._conclude()
        elif step > self._begin + 1:  # the first of an attempt pays for much that is done once
            self._quiet.append(seconds)

    def _conclude(self) -> None:
        """Find out what the save that has ended did cost."""
        longer = self._seconds - self._steps * fmean(self._quiet) if len(self._quiet) >= FEWEST else 0.0
        self._costs.append(self._held + max(0.0, longer))
        self._spans.append(self._held + self._seconds)
        self._saving, self._held, self._steps, self._seconds = False, 0.0, 0, 0.0
