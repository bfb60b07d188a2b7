"""What an ending costs: whether another attempt follows, and how soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine.classify import NAN_LOSS, PREEMPTIONS, Cause
from lorafinetune.engine.times import instant

TRAINING_ERRORS: Final = 1
"""Training errors that a run survives: one may be a bad node; two are the run."""
INFRASTRUCTURE_IN_A_ROW: Final = 6
"""Infrastructure errors in a row, without a new checkpoint, that a run survives."""
FIRST_PAUSE: Final = 5.0
MAX_PAUSE: Final = 300.0
STILLBORN: Final = 10.0
"""Seconds below which a preempted attempt counts as never having lived: the next one waits a little."""
HOPELESS: Final = frozenset({NAN_LOSS})
"""Training errors that come again in every attempt, since an attempt is a function of its checkpoint."""


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt, not before *not_before* (Unix seconds)."""

    not_before: float


@dataclass(frozen=True, slots=True)
class Over:
    """No more attempts."""

    reason: str
    message: str


def after(attempts: Sequence[AttemptStatus], *, failures: int) -> Again | Over:
    """Say what follows the newest of *attempts*, which has ended."""
    last = attempts[-1]
    ended = instant(last.ended) if last.ended is not None else 0.0
    reason, words = last.reason or last.cause or "", last.message or ""
    match last.cause:
        case Cause.INVALID | Cause.OUT_OF_MEMORY:
            return Over(reason, words)
        case Cause.ERROR if reason in HOPELESS:
            return Over(reason, words)
        case Cause.ERROR if failures > TRAINING_ERRORS:
            return Over(reason, f"{words} (training failed {failures} times)")
        case Cause.ERROR:
            return Again(ended + FIRST_PAUSE)
        case Cause.INFRASTRUCTURE:
            row = _row(attempts)
            if row > INFRASTRUCTURE_IN_A_ROW:
                return Over(reason, f"{words} (infrastructure failed {row} times in a row)")
            return Again(ended + _pause(row))
        case Cause.FENCED:
            # One is a zombie's end; several in a row mean that something else holds the head.
            return Again(ended + _pause(_run_of(attempts, Cause.FENCED) - 1))
        case cause if cause in PREEMPTIONS:
            row = _stillborn_row(attempts)
            return Again(ended + _pause(row))
        case _:
            return Again(ended)


def _pause(row: int) -> float:
    return min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(row - 1, 16)) if row > 0 else 0.0


def _run_of(attempts: Sequence[AttemptStatus], cause: Cause) -> int:
    return next((count for count, one in enumerate(reversed(attempts)) if one.cause != cause), len(attempts))


def _row(attempts: Sequence[AttemptStatus]) -> int:
    """Count the infrastructure errors at the end of the list since the last progress."""
    row = 0
    for attempt in reversed(attempts):
        if attempt.cause != Cause.INFRASTRUCTURE:
            break
        row += 1
        if attempt.durable_step is not None and attempt.durable_step > (attempt.from_step or 0):
            break
    return row


def _stillborn_row(attempts: Sequence[AttemptStatus]) -> int:
    row = 0
    for attempt in reversed(attempts):
        if attempt.cause not in PREEMPTIONS or attempt.ended is None:
            break
        start = attempt.started or attempt.created
        if start is None or instant(attempt.ended) - instant(start) >= STILLBORN:
            break
        row += 1
    return row
