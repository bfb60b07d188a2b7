"""When the run will be done: what is left of its steps, saves and pictures, at the pace that this attempt has shown.

A run that is taken away now and then is reckoned to be taken away as often, and to lose as much each time, as so far.
Waits for capacity that have not begun are in that, for they are between two attempts; nothing is guessed before the
first step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine.activities import Activity, seconds_of
from lorafinetune.engine.ending import Cause
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import instant

PUBLISHING: Final = 5.0
"""Seconds from the last step to the verified artifact: files are written, put and read once more."""
ENOUGH: Final = 3
"""Steps after which an attempt's own pace is believed."""
PASSES: Final = 3.0
"""What training on an image costs in passes through the model; with gradient checkpointing one more."""
GUIDED: Final = 2.0
"""What one denoising step of a picture costs in the same."""


def remaining(seen: Observation, status: LoRAFineTuneStatus) -> float | None:
    """Return the seconds until the artifact is there, as far as can be told; None where nobody can."""
    last, steps = (status.attempts[-1] if status.attempts else None), seen.steps
    if last is None or last.cause is not None or steps is None or status.limit is not None:
        return None
    progress = seen.progress if seen.progress is not None and seen.progress.attempt == last.number else None
    pace = _pace(progress, status)
    if pace is None:
        return None
    here = max(progress.step if progress is not None else 0, last.from_step or 0)
    if here == 0 and status.checkpoint is not None and last.from_step is None:
        here = status.checkpoint.step  # it will resume there
    left = max(0, steps - here) * pace + _rows(seen.spec, here, steps) * _row(progress, seen.spec, pace)
    return _start(status, last, seen.now) + left * (1.0 + _disturbance(status, seen.now)) + PUBLISHING


def _pace(progress: Progress | None, status: LoRAFineTuneStatus) -> float | None:
    """Return the seconds that a step takes with all that is done beside it, pictures apart."""
    if progress is not None and progress.trained_from is not None:
        steps = progress.step - progress.trained_from
        wall = progress.trained_until - progress.trained_since - progress.picture_seconds
        if steps >= ENOUGH and wall > 0:
            return wall / steps
    told = progress.seconds_per_step if progress is not None else None
    pace = told or float(status.seconds_per_step or 0)
    if not pace:
        return None
    save, every = (progress.save_seconds, progress.checkpoint_every_steps) if progress is not None else (None, None)
    return pace + (save / every if save and every else 0.0)


def _rows(spec: LoRAFineTuneSpec, step: int, steps: int) -> int:
    """Return how many rows of pictures are still to be made: one every so many steps, and one of the last step."""
    if spec.validation is None or step >= steps:
        return 0
    every = spec.validation.every_steps
    return (steps - 1) // every - step // every + 1


def _row(progress: Progress | None, spec: LoRAFineTuneSpec, pace: float) -> float:
    """Return the seconds of one row of pictures: as measured, or before the first by passes through the model."""
    if spec.validation is None:
        return 0.0
    if progress is not None and progress.picture_rows:
        return progress.picture_seconds / progress.picture_rows
    training = spec.training
    passes = (PASSES + training.gradient_checkpointing) * training.images_per_step
    return pace * GUIDED * len(spec.validation.prompts) * spec.validation.inference_steps / passes


def _start(status: LoRAFineTuneStatus, last: AttemptStatus, now: float) -> float:
    """Return the seconds until the attempt trains, by what those before it took; 0 once it does."""
    known = [one.start_seconds for one in status.attempts if one.start_seconds is not None]
    if last.start_seconds is not None or not known:
        return 0.0
    begun = last.scheduled or last.started
    return max(0.0, sum(known) / len(known) - (now - instant(begun) if begun is not None else 0.0))


def _disturbance(status: LoRAFineTuneStatus, now: float) -> float:
    """Return the seconds that are lost to endings for each second of training, by this run's own history."""
    endings = sum(one.attempts for one in status.lost if one.cause != Cause.SUSPENDED)
    costs = [
        instant(after.scheduled) + after.start_seconds - instant(before.ended) + (before.lost_seconds or 0)
        for before, after in pairwise(status.attempts)
        if before.cause != Cause.SUSPENDED
        and before.ended is not None
        and after.scheduled is not None
        and after.start_seconds is not None
    ]
    if not endings or not costs:
        return 0.0
    each = sum(costs) / len(costs)
    if each <= 0:
        return 0.0  # so it looks where clocks disagree, or were set back
    trained = seconds_of(status, Activity.TRAINING, now) + seconds_of(status, Activity.VALIDATING, now)
    # Right after the first ending it looks as if they came all the time: none is thought to come sooner than it costs.
    return min(endings * each / max(trained, each), 3.0)
