"""Pods whose end is stored: let go of, and, but for the newest, cleared away."""

from __future__ import annotations

from typing import Final

from lorafinetune.engine import corrections, ledger
from lorafinetune.engine.decision import DeletePod, ReleasePod
from lorafinetune.engine.observation import Observation

PODS_KEPT: Final = 3
"""Ended pods that stay for their logs."""


def housekeeping(seen: Observation) -> tuple[list[ReleasePod | DeletePod], float | None]:
    """Return what to do with pods whose end stands in the status as read (never one only about to be written).

    A pod that may still say better why it ended is held a while longer: the seconds until then come second.
    """
    stored = {entry.number: entry for entry in seen.status.attempts if entry.cause is not None}
    newest = max((entry.number for entry in seen.status.attempts), default=0)
    chores: list[ReleasePod | DeletePod] = []
    waits: list[float] = []
    for pod in seen.pods:
        entry = stored.get(pod.attempt)
        if entry is None and pod.attempt > ledger.folded(seen.status):
            # Given up for lost, followed by another, and back before that was written down: the newer one counts.
            if pod.attempt < newest and not pod.is_over and not pod.deleting:
                chores.append(DeletePod(pod.name, pod.uid))
            continue
        held = pod.has_finalizer
        if held and entry is not None and corrections.is_unsettled(entry, seen.now, exit_code=pod.exit_code):
            waits.append(corrections.left(entry, seen.now))
        elif held:
            chores.append(ReleasePod(pod.name, pod.uid))
            continue
        if not pod.deleting and (not pod.is_over or (not held and pod.attempt <= newest - PODS_KEPT)):
            chores.append(DeletePod(pod.name, pod.uid))
    return chores, min(waits, default=None)
