"""What an ending costs: whether another attempt follows, how soon, and what is done otherwise than before.

Preemptions cost nothing but time and money, and those have limits of their own; storage, hub and nodes may fail a few
times without a new checkpoint in between; memory and training may fail once. What never starts (an image that cannot
be pulled, a Secret that is missing) has not ended, and is waited for until a limit in time says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorafinetune.api.limits import AttemptLimits
from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import ledger, streaks
from lorafinetune.engine.ending import NAN_LOSS, PREEMPTIONS, Cause
from lorafinetune.engine.times import duration, instant

FIRST_PAUSE: Final = 5.0
MAX_PAUSE: Final = 300.0
STILLBORN: Final = 10.0
"""Seconds below which a preempted attempt that saved nothing counts as never having lived: the next one waits."""
HOPELESS: Final = frozenset({NAN_LOSS})
"""Training errors that come again in every attempt, since an attempt is a function of its checkpoint."""
FAILURES: Final = frozenset({Cause.INFRASTRUCTURE, Cause.ERROR, Cause.OUT_OF_MEMORY})
SHORTER_BY: Final = 4.0
TOO_MANY_PREEMPTIONS: Final = "TooManyPreemptions"
NO_PROGRESS: Final = "NoProgress"


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt, not before *not_before* (Unix seconds)."""

    not_before: float


@dataclass(frozen=True, slots=True)
class Over:
    """No more attempts."""

    reason: str
    message: str


def after(status: LoRAFineTuneStatus, limits: AttemptLimits, *, run: str) -> Again | Over:
    """Say what follows the newest attempt, which has ended. *run* is the run's UID, from which pauses are jittered."""
    attempts = status.attempts
    last = attempts[-1]
    ended = instant(last.ended) if last.ended is not None else 0.0
    reason, words = last.reason or last.cause or "", last.message or ""

    def pause(row: int) -> Again:
        return Again(ended + _pause(row) * _jitter(run, last.number))

    match last.cause:
        case Cause.INVALID:
            return Over(reason, words)
        case Cause.OUT_OF_MEMORY:
            times = ledger.endings(status, Cause.OUT_OF_MEMORY)
            if times > limits.out_of_memory:
                return Over(
                    reason, f"{words} (spec.limits.attempts.outOfMemory: {times} times)" if times > 1 else words
                )
            return pause(1)
        case Cause.ERROR:
            times = ledger.endings(status, Cause.ERROR)
            if reason in HOPELESS:
                return Over(reason, words)
            if times > limits.training_errors:
                return Over(reason, f"{words} (training failed {times} times)" if times > 1 else words)
            return pause(1)
        case Cause.INFRASTRUCTURE:
            row = streaks.of(status).infrastructure
            if row > limits.infrastructure:
                return Over(reason, f"{words} (storage, hub or nodes failed {_times(row)} without a new checkpoint)")
            return pause(row)
        case Cause.FENCED:
            # One is a zombie's end; several in a row mean that something else holds the head.
            return pause(_run_of(attempts, Cause.FENCED) - 1)
        case cause if cause in PREEMPTIONS:
            return _taken(status, limits) or pause(_stillborn_row(attempts))
        case _:
            return Again(ended)


def publishing_again(attempts: Sequence[AttemptStatus], limit: int, *, run: str) -> Again:
    """Return when a run publishes that may train no more: at once, or a while after a try that failed by no preemption.

    *limit* is the number of the attempt at which it reached its limit: those after it are the tries.
    """
    last = attempts[-1]
    tries = [one for one in attempts if one.number > limit]
    row = next((count for count, one in enumerate(reversed(tries)) if one.cause not in FAILURES), len(tries))
    ended = instant(last.ended) if last.ended is not None else 0.0
    return Again(ended + _pause(row) * _jitter(run, last.number))


def shorter_after(limits: AttemptLimits) -> int:
    """Return the attempts without a new checkpoint in between after which checkpoints are made more often."""
    return max(1, limits.without_progress // 4)


def elsewhere_after(limits: AttemptLimits) -> int:
    """Return those after which their pool is avoided, and on-demand capacity is wanted."""
    return max(2, limits.without_progress // 2)


def lifetime(known: float, status: LoRAFineTuneStatus, limits: AttemptLimits) -> float:
    """Return for how long the next attempt should reckon to live, which sets how often it makes checkpoints.

    *known* is what is known of its pool. A run whose attempts are taken away before they commit any
    reckons with a quarter of that, or of what they lived themselves.
    """
    row = streaks.of(status).without_progress
    if row < shorter_after(limits):
        return known
    lived = [ledger.attempt_seconds(one, 0.0) for one in status.attempts if one.cause in PREEMPTIONS][-row:]
    return max(1.0, min([known, *([sum(lived) / len(lived)] if lived else [])]) / SHORTER_BY)


def avoided(status: LoRAFineTuneStatus, limits: AttemptLimits) -> str | None:
    """Return the pool that the next attempt keeps away from, where attempt after attempt came to nothing on it."""
    if streaks.of(status).without_progress < elsewhere_after(limits):
        return None
    return next((one.pool for one in reversed(status.attempts) if one.cause in PREEMPTIONS), None)


def _taken(status: LoRAFineTuneStatus, limits: AttemptLimits) -> Over | None:
    """Say whether the run has been taken away too often, in all or without getting anywhere."""
    taken, row = status.preemptions or 0, streaks.of(status).without_progress
    if limits.preemptions is not None and taken > limits.preemptions:
        message = (
            f"taken away {_times(taken)}, which is more than spec.limits.attempts.preemptions ({limits.preemptions})"
        )
        return Over(TOO_MANY_PREEMPTIONS, message)
    if row < limits.without_progress:
        return None
    lived = [ledger.attempt_seconds(one, 0.0) for one in status.attempts if one.cause in PREEMPTIONS][-row:]
    mean = f", after {duration(sum(lived) / len(lived))} on average" if lived else ""
    advice = "lower checkpoint.everySteps, name another pool, or raise spec.limits.attempts.withoutProgress"
    message = f"taken away {_times(row)}{mean}, with no new checkpoint in between: {advice}"
    return Over(NO_PROGRESS, message)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _pause(row: int) -> float:
    return min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(row - 1, 16)) if row > 0 else 0.0


def _jitter(run: str, attempt: int) -> float:
    """Return between a half and one, the same for the same attempt: runs that fell together do not rise together."""
    digest = hashlib.sha256(f"{run}/{attempt}".encode()).digest()
    return 0.5 + int.from_bytes(digest[:4]) / 2**33


def _run_of(attempts: Sequence[AttemptStatus], cause: Cause) -> int:
    return next((count for count, one in enumerate(reversed(attempts)) if one.cause != cause), len(attempts))


def _stillborn_row(attempts: Sequence[AttemptStatus]) -> int:
    row = 0
    for attempt in reversed(attempts):
        if attempt.cause not in PREEMPTIONS or attempt.ended is None or streaks.progressed(attempt):
            break
        start = attempt.started or attempt.created
        if start is None or instant(attempt.ended) - instant(start) >= STILLBORN:
            break
        row += 1
    return row
