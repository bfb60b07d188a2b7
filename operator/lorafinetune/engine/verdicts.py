"""The verdict on one attempt: its facts gathered from the observation, and the question that fits its pod."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine import silence
from lorafinetune.engine.classify import classify
from lorafinetune.engine.ending import Cause, Ending, Hold
from lorafinetune.engine.evidence import Evidence
from lorafinetune.engine.lost import is_lost
from lorafinetune.engine.observation import Observation, PodSeen, StorageSeen
from lorafinetune.engine.said import said
from lorafinetune.engine.times import instant

CREATE_VISIBLE: Final = 5.0
"""Seconds that a pod which we made may be absent from the store before it counts as vanished."""


def verdict(entry: AttemptStatus, seen: Observation) -> Ending | Hold | None:
    """Say how the attempt *entry* ended; None if nothing says that it did."""
    pod = seen.pod_of(entry.number)
    if pod is None:
        made = seen.now - (instant(entry.created) if entry.created is not None else 0.0)
        return _vanished(entry, seen) if made >= CREATE_VISIBLE else Hold(CREATE_VISIBLE - made)
    evidence = evidence_of(entry, pod, seen)
    if pod.is_over:
        return classify(evidence, _planned(entry))
    lost = is_lost(pod, evidence.node, progress=seen.progress, now=seen.now, machine=evidence.machine)
    if not isinstance(lost, Ending):
        return lost
    if (told := said(evidence)) is not None:
        return told  # it had told its end before its node took it along
    held = silence.held(pod, evidence.node, seen.cluster, seen.now)
    return lost if held is None else Hold(held.seconds)


def evidence_of(entry: AttemptStatus, pod: PodSeen, seen: Observation) -> Evidence:
    """Return all that is known of the end of *entry*, whose pod is *pod*."""
    progress = seen.progress if seen.progress is not None and seen.progress.attempt == entry.number else None
    newest = max((one.number for one in seen.status.attempts), default=0)
    return Evidence(
        pod=pod,
        node=seen.nodes.get(pod.node) if pod.node else None,
        now=seen.now,
        progress=progress,
        storage=seen.storage if entry.number >= newest else StorageSeen(),
        steps=seen.steps,
        from_step=entry.from_step or 0,
        # What the platform has marked ended before the user suspended, and may only be read after that.
        suspended=seen.run.deleting_since is not None or (seen.spec.suspend and not pod.disruption),
        deleted=seen.run.deleting_since is not None,
        machine=entry.machine or "",
        started=entry.started is not None or pod.started is not None or progress is not None,
    )


def _vanished(entry: AttemptStatus, seen: Observation) -> Ending:
    """Say why an attempt ended whose pod is gone unread: what its trainer told, else what its capacity makes likely."""
    ghost = PodSeen(
        name=entry.pod,
        uid=entry.pod_uid or "",
        attempt=entry.number,
        pool=entry.pool,
        phase="Unknown",
        created=instant(entry.created) if entry.created is not None else 0.0,
        node=entry.node,
        capacity_type=entry.capacity_type or "",
    )
    evidence = evidence_of(entry, ghost, seen)
    if (told := said(evidence)) is not None:
        return told
    if evidence.is_spot:
        return Ending(Cause.PREEMPTED, "PodVanished", "the pod vanished from a spot pool")
    return Ending(Cause.INFRASTRUCTURE, "PodVanished", "the pod vanished")


def _planned(entry: AttemptStatus) -> Ending | None:
    """Return how an attempt ends that we are ending: its reason and message were written when that was decided."""
    if entry.stopping is None:
        return None
    return Ending(Cause(entry.stopping), entry.reason or entry.stopping, entry.message or "ended by plan")
