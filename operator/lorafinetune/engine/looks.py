"""When the Kubernetes events of a pod are read: while it is Pending, and while it is unclear why it ended."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine import corrections
from lorafinetune.engine.decision import ReadEvents
from lorafinetune.engine.observation import Observation, PodSeen

PATIENCE: Final = 5.0
"""Seconds that a pod may be Pending before its events are of interest."""
AGAIN: Final = 30.0
"""Seconds between two looks at the events of a Pending pod, or of one whose ending is booked but not sure."""
UNCLEAR_AGAIN: Final = 10.0
"""Seconds between two looks while the verdict itself waits for them."""


def looks(seen: Observation, entries: list[AttemptStatus]) -> tuple[list[ReadEvents], float | None]:
    """Return whose events are to be read now, and in how many seconds it may be time for the next ones."""
    now: list[ReadEvents] = []
    waits: list[float] = []
    for entry in entries:
        pod = seen.pod_of(entry.number)
        every = _interval(entry, pod, seen.now) if pod is not None else None
        if pod is None or every is None:
            continue
        last = pod.events_read if pod.events_read is not None else pod.created + PATIENCE - every
        if pod.is_over and pod.events_read is None:
            last = seen.now - every
        due = last + every - seen.now
        if due <= 0:
            now.append(ReadEvents(pod.name, pod.uid))
        waits.append(due if due > 0 else every)
    return now, min(waits, default=None)


def _interval(entry: AttemptStatus, pod: PodSeen | None, now: float) -> float | None:
    """Return how often the events of an attempt's pod are read; None = not at all."""
    if pod is None:
        return None
    if entry.cause is not None:
        return AGAIN if corrections.is_unsettled(entry, now, exit_code=pod.exit_code) else None
    if pod.is_over:
        return UNCLEAR_AGAIN  # it would have a cause if that were clear
    return AGAIN if pod.phase == "Pending" and not pod.gated else None
