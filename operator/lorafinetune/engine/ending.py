"""The words for why an attempt ended: cause, reason and sentence, as they stand in status, event and metric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

STORAGE_REASONS: Final = frozenset({"AccessDenied", "BucketMissing", "StorageUnreachable"})
"""What the bucket may say in the middle of a run: keys expire and buckets go, and come back."""
HEAD_LOST: Final = "HeadLost"
NAN_LOSS: Final = "NaNLoss"


class Cause(StrEnum):
    """Why an attempt ended, in the words of status, event and metric."""

    FINISHED = "Finished"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    ERROR = "Error"
    OUT_OF_MEMORY = "OutOfMemory"
    INVALID = "Invalid"
    INFRASTRUCTURE = "Infrastructure"
    FENCED = "Fenced"
    SUSPENDED = "Suspended"
    NO_CAPACITY = "NoCapacity"
    """Its pool had no node for it in time: the next one is tried."""
    MOVED = "Moved"
    """Ended by us, at a checkpoint, to go on elsewhere or with an edited spec."""
    LIMIT_REACHED = "LimitReached"
    """Ended by us, with its work saved, because the run may not take more."""


PREEMPTIONS: Final = frozenset({Cause.PREEMPTED, Cause.NODE_LOST})
"""The platform's doing, never the user's fault: they spend no error budget."""


QUEUE_EVICTED: Final = "KueueEvicted"
"""Reason of an attempt whose queue took its place back: no pool's doing."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The verdict."""

    cause: Cause
    reason: str
    """CamelCase, finer than the cause."""
    message: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Too early to tell: ask again in *seconds*."""

    seconds: float
