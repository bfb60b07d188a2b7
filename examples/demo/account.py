"""What a preemption cost: steps to do again, and seconds without training. Pure, from what was seen of the status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Object = Mapping[str, Any]


class Moment(NamedTuple):
    """A status of the run, and when it was seen (in seconds, of any clock that only goes forward)."""

    time: float
    status: Object


@dataclass(frozen=True, slots=True)
class Interruption:
    """How one attempt was taken away, and how the next went on."""

    attempt: int
    cause: str
    reached: int
    """Last step that the attempt told of."""
    resumed: int
    """Step from which the next attempt went on."""
    to_pod: float
    """Seconds from the fault to the next attempt's pod."""
    to_training: float
    """Seconds from that pod to its first new step."""

    @property
    def lost(self) -> int:
        """Steps that were done again."""
        return max(0, self.reached - self.resumed)

    @property
    def lost_steps(self) -> str:
        """The same in words."""
        return f"{self.lost} step{'' if self.lost == 1 else 's'}" if self.lost else "nothing"

    @property
    def gap(self) -> float:
        """Seconds from the fault to the next attempt's first new step."""
        return self.to_pod + self.to_training


def attempt_of(status: Object, number: int) -> Object:
    """Return what the status says of an attempt; empty where it does not know it."""
    found: Object = next((one for one in status.get("attempts") or () if one["number"] == number), {})
    return found


def interruption(moments: Sequence[Moment], attempt: int, fault: float) -> Interruption | None:
    """Return how *attempt*, hit by a fault at the time *fault*, was followed by the next; None while that is open."""
    created = next((one.time for one in moments if attempt_of(one.status, attempt + 1)), None)
    trains = next((one.time for one in moments if _has_new_step(attempt_of(one.status, attempt + 1))), None)
    ended = attempt_of(moments[-1].status, attempt) if moments else {}
    if created is None or trains is None or not ended.get("cause"):
        return None
    return Interruption(
        attempt=attempt,
        cause=ended["cause"],
        reached=ended.get("toStep", 0),
        resumed=attempt_of(moments[-1].status, attempt + 1)["fromStep"],
        to_pod=max(0.0, created - fault),
        to_training=trains - created,
    )


def _has_new_step(attempt: Object) -> bool:
    return "fromStep" in attempt and attempt.get("toStep", 0) > attempt["fromStep"]


def in_words(told: Interruption, *, noticed: bool, every: int) -> str:
    """Return what was lost and how long the gap was, in sentences; *every* is the run's checkpoint interval."""
    number, after = told.attempt, told.attempt + 1
    saved = f"Attempt {number} saved step {told.resumed} within the notice"
    if noticed and not told.lost:
        lost = f"Lost: nothing. {saved}, and attempt {after} goes on from it."
    elif noticed and told.lost == 1:
        lost = f"Lost: {told.lost_steps}. {saved}, with step {told.reached} under way: no more than one is lost."
    else:
        lost = (
            f"Lost: {told.lost_steps}. Attempt {number} told of step {told.reached}, and attempt {after} goes on from "
            f"the checkpoint at {told.resumed}: no more than checkpoint.everySteps ({every}) are lost."
        )
    return (
        f"{lost} Gap: {told.gap:.1f} s without training, of which {told.to_pod:.1f} s until the pod of attempt {after} "
        f"was there and {told.to_training:.1f} s until its first step."
    )


def worth_disturbing(status: Object, attempt: int, *, every: int, latest: int) -> bool:
    """Say whether now is a good moment to take *attempt*'s node.

    It is some way past a checkpoint of its own, so that something could be lost; *latest* is the step from which on it
    is now or never.
    """
    entry = attempt_of(status, attempt)
    reached: int = entry.get("toStep", 0)
    start: int | None = entry.get("fromStep")
    if start is None or entry.get("cause") or reached <= start:
        return False
    durable: int = entry.get("durableStep", 0)
    return reached >= latest or (durable > start and reached >= durable + max(1, every // 3))
