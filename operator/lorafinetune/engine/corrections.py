"""Late evidence: an attempt that was closed for want of better is judged again while more may come to light.

The replacement is not kept waiting for that. What the trainer said of the user's input is never taken back.
"""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine.classify import PLACES, classify
from lorafinetune.engine.ending import Cause, Ending
from lorafinetune.engine.evidence import CLOCK_SKEW, Evidence
from lorafinetune.engine.notices import ENDING_WORDS
from lorafinetune.engine.said import said
from lorafinetune.engine.times import instant

WINDOW: Final = 120.0
"""Seconds after an attempt's end within which evidence may correct the record."""

_NEVER: Final = frozenset({Cause.FENCED, Cause.SUSPENDED, Cause.NO_CAPACITY, Cause.MOVED, Cause.LIMIT_REACHED})
"""What became of an attempt after it was given up, by our own doing, says nothing of why it ended."""
_BY_REASON: Final = {
    "PodVanished": 0,
    "Killed": 1,
    "NeverStarted": 1,
    "TrainerFailed": 3,
    "StartError": 4,
    "NodeCordoned": 5,
    "Yielded": 6,
    "Deleted": 7,
    **{word: 8 for word, _, _ in ENDING_WORDS},
    "NodeGone": 9,
    "NodeReclaimed": 9,
    "NodeNotReady": 9,
    "NodeReplaced": 9,
}
_LOST, _UNPUBLISHED, _PLACE, _MARKED, _SURE = 2, 3, 4, 10, 11
_HELD: Final = _PLACE
"""Up to here the cause itself may change: the pod is held until the time for that is over."""


def strength(cause: str, reason: str, exit_code: int | None) -> int:
    """Return how sure a verdict is: the place of its rule in the chain of ``classify``, counted from the end."""
    if cause == Cause.NODE_LOST:
        return _LOST
    if cause == Cause.INFRASTRUCTURE and exit_code == 0:
        return _UNPUBLISHED
    if cause == Cause.INFRASTRUCTURE and exit_code in PLACES:
        return _PLACE
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    return _MARKED if cause == Cause.PREEMPTED else _SURE


def correction(entry: AttemptStatus, e: Evidence) -> Ending | None:
    """Return what the closed attempt *entry* ended with after all, if the evidence by now says something surer."""
    if entry.cause is None or not _in_time(entry, e.now):
        return None
    known = strength(entry.cause, entry.reason or "", entry.exit_code)
    if entry.cause == Cause.FINISHED:
        if not e.is_unpublished:
            return None
        known = _UNPUBLISHED  # the rule that verifies says no better than that there is no artifact
    if known == _SURE:
        return None
    found = classify(e) if e.pod.is_over else said(e)
    if not isinstance(found, Ending) or found.cause in _NEVER:
        return None
    if entry.cause == Cause.NODE_LOST and found.cause is not Cause.PREEMPTED and _after_it_was_given_up(entry, e):
        return None
    return found if strength(found.cause, found.reason, e.pod.exit_code) > known else None


def is_unsettled(entry: AttemptStatus, now: float, *, exit_code: int | None) -> bool:
    """Whether the closed attempt's pod is to be held for what it may still tell."""
    if entry.cause is None or entry.cause == Cause.FINISHED or not _in_time(entry, now):
        return False
    if entry.cause == Cause.NODE_LOST:
        return exit_code is None  # its own word is what is waited for
    return strength(entry.cause, entry.reason or "", entry.exit_code) <= _HELD


def left(entry: AttemptStatus, now: float) -> float:
    """Return the seconds until the closed attempt's record stands for good."""
    return max(0.0, instant(entry.ended) + WINDOW - now) if entry.ended is not None else 0.0


def _in_time(entry: AttemptStatus, now: float) -> bool:
    return entry.ended is not None and now - instant(entry.ended) < WINDOW


def _after_it_was_given_up(entry: AttemptStatus, e: Evidence) -> bool:
    ended = e.pod.ended
    return ended is not None and entry.ended is not None and ended > instant(entry.ended) + CLOCK_SKEW
