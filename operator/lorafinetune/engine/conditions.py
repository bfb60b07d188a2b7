"""Conditions: the API of the status. A transition time moves only when the status does."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from lorafinetune.api.status import Condition, ConditionStatus
from lorafinetune.engine.times import stamp

MAX_MESSAGE: Final = 1024


class ConditionType(StrEnum):
    """The conditions that every run has from its first sight."""

    ACCEPTED = "Accepted"
    """The spec can be carried out: its pools exist."""
    STORAGE_READY = "StorageReady"
    """The bucket answered, may be written, fences, and holds a data set."""
    RUNNING = "Running"
    """An attempt is training."""
    SUCCEEDED = "Succeeded"
    """The artifact is verified in storage (True), or there will be none (False)."""
    EXACT = "Exact"
    """The newest state, or the artifact, was computed as the plan says from its first step on."""


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return *text* in one line of at most *limit* characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def find(conditions: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of that type, if it is there."""
    return next((one for one in conditions if one.type == kind), None)


def is_true(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and True."""
    one = find(conditions, kind)
    return one is not None and one.status is ConditionStatus.TRUE


def is_false(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and False."""
    one = find(conditions, kind)
    return one is not None and one.status is ConditionStatus.FALSE


def put(
    conditions: Sequence[Condition],
    kind: ConditionType,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: float,
    generation: int,
) -> list[Condition]:
    """Return *conditions* with that one set; the others, and its place, stay."""
    old, message = find(conditions, kind), clip(message)
    same = old is not None and old.status is status
    if same and old and (old.reason, old.message, old.observed_generation) == (reason, message, generation):
        return list(conditions)
    new = Condition(
        type=kind.value,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=old.last_transition_time if old is not None and same else stamp(now),
        observed_generation=generation,
    )
    if old is None:
        return [*conditions, new]
    return [new if one is old else one for one in conditions]
