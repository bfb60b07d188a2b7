"""The learning rate as a pure function of the step, so that no scheduler has a state to save."""

from __future__ import annotations

import math

from lorafinetune.contract.training import Schedule, Training


def factor(training: Training, step: int, total: int) -> float:
    """Return the share of the peak learning rate, 0 ... 1, that *step* (0, 1 ...) of *total* is taken with."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    left = max(1, total - training.warmup_steps)
    done = min(1.0, (step - training.warmup_steps) / left)
    if training.schedule is Schedule.LINEAR:
        return 1.0 - done
    if training.schedule is Schedule.COSINE:
        return _wave(done)
    if training.schedule is Schedule.COSINE_WITH_RESTARTS:
        return _wave(math.fmod(training.schedule_cycles * done, 1.0)) if done < 1.0 else 0.0
    if training.schedule is Schedule.POLYNOMIAL:
        return float((1.0 - done) ** training.schedule_power)
    return 1.0


def _wave(done: float) -> float:
    """Half a period of the cosine: from one to zero."""
    return 0.5 * (1.0 + math.cos(math.pi * done))
