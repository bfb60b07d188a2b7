"""One attempt's trainer in virtual time: which step it is at, and what of that is durable, at any instant.

Nothing happens step by step: an attempt that trains is a few numbers, from which every instant's answer is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorafinetune.contract import cadence

_INSTANT = 1e-6
"""Seconds that sums of floats may be wrong by."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What training takes, whichever pool it runs on. All in seconds."""

    step: float
    """One optimizer step."""
    start_up: float
    """From the container's start to the first step: imports, loading, putting back the state."""
    save: float
    """How long the training stands still for one checkpoint."""
    upload: float
    """How long it takes after that until the checkpoint is durable; the training goes on meanwhile."""
    export: float
    """From the last step to the end: the artifact."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """After how many steps an attempt's first checkpoint comes, and how many lie between two."""

    first: int
    every: int


def rhythm(effort: Effort, every_steps: int | None, lifetime: float | None) -> Rhythm:
    """Return the checkpoints of an attempt: the user's, else as the trainer sets them by what it measures."""
    if every_steps is not None:
        return Rhythm(every_steps, every_steps)
    first = cadence.interval(None, lifetime)
    usual = cadence.interval(effort.save, lifetime, durable_after=effort.save + effort.upload)
    return Rhythm(cadence.steps(first, effort.step), cadence.steps(usual, effort.step))


@dataclass(frozen=True, slots=True)
class Spent:
    """What the seconds of an attempt went into. Their sum is what its node was held for."""

    starting: float = 0.0
    training: float = 0.0
    """Steps that count: they were durable when the attempt ended."""
    lost: float = 0.0
    """Steps, and parts of one, that have to be done again."""
    saving: float = 0.0
    """The training stood still for checkpoints, the one on notice included."""
    exporting: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.starting + self.training + self.lost + self.saving + self.exporting


@dataclass(frozen=True, slots=True)
class Training:
    """An attempt whose container started at *started*, to do the steps from *from_step* to *steps*."""

    effort: Effort
    rhythm: Rhythm
    started: float
    from_step: int
    steps: int

    @property
    def began(self) -> float:
        """The instant of its first step."""
        return self.started + self.effort.start_up

    @property
    def trained(self) -> float:
        """The instant at which its last step is done."""
        return self.reached(self.steps)

    @property
    def finished(self) -> float:
        """The instant at which its artifact is there."""
        return self.trained + self.effort.export

    def step(self, now: float) -> int:
        """Return the step that it has done at *now*."""
        return min(self.steps, self.from_step + int(self._stepping(now) / self.effort.step + _INSTANT))

    def reached(self, step: int) -> float:
        """Return the instant at which it has done *step*."""
        done = step - self.from_step
        return self.began + done * self.effort.step + self._marks(done - 1) * self.effort.save

    def durable(self, now: float) -> int:
        """Return the step of its newest durable checkpoint at *now*, or the step that it began with."""
        marks = self._saved(now)
        return self.from_step if marks == 0 else self.from_step + self.rhythm.first + (marks - 1) * self.rhythm.every

    def next_durable(self, now: float) -> float | None:
        """Return when the next checkpoint after *now* is durable; None if there is none to come."""
        mark = self._saved(now)
        if mark >= self._marks(self.steps - self.from_step - 1):
            return None
        return self._durable_at(mark)

    def spent(self, stopped: float, end: float, kept: int) -> Spent:
        """Return what its seconds went into: it trained until *stopped*, ended at *end*, and kept the steps to *kept*.

        What lies between those two instants went into saving.
        """
        lived = max(0.0, stopped - self.started)
        starting = min(lived, self.effort.start_up)
        stepping = self._stepping(stopped)
        counts = min(stepping, (kept - self.from_step) * self.effort.step)
        exporting = max(0.0, stopped - self.trained)
        saving = max(0.0, lived - starting - stepping - exporting) + max(0.0, end - stopped)
        return Spent(starting, counts, stepping - counts, saving, exporting)

    def _stepping(self, now: float) -> float:
        """Return the seconds that went into steps until *now*."""
        whole = (self.steps - self.from_step) * self.effort.step
        elapsed = now - self.began
        first = self.rhythm.first * self.effort.step
        if elapsed <= first or self.rhythm.first >= self.steps - self.from_step:
            return min(whole, max(0.0, elapsed))
        run = self.rhythm.every * self.effort.step
        cycles, rest = divmod(elapsed - first, run + self.effort.save)
        return min(whole, first + cycles * run + max(0.0, rest - self.effort.save))

    def _marks(self, steps: int) -> int:
        """Return how many checkpoints come within its first *steps* steps."""
        if steps < self.rhythm.first:
            return 0
        return 1 + (steps - self.rhythm.first) // self.rhythm.every

    def _durable_at(self, mark: int) -> float:
        stepped = (self.rhythm.first + mark * self.rhythm.every) * self.effort.step
        return self.began + stepped + (mark + 1) * self.effort.save + self.effort.upload

    def _saved(self, now: float) -> int:
        """Return how many checkpoints are durable at *now*."""
        since = now - self._durable_at(0)
        if since < -_INSTANT:
            return 0
        passed = 1 + math.floor((since + _INSTANT) / (self.rhythm.every * self.effort.step + self.effort.save))
        return min(passed, self._marks(self.steps - self.from_step - 1))
