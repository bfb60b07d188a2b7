"""The end of a run by its user's hand: stop its attempt, bury the head, remove its objects, let go."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lorafinetune.engine import ledger
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.comeback import ENDS_WITHIN, is_back
from lorafinetune.engine.decision import (
    Abandon,
    Action,
    Decision,
    DeletePod,
    Job,
    ReleasePod,
    RemoveFinalizer,
    StartJob,
)
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.times import duration, instant, stamp

NOT_OURS: Final = "NotOurs"
"""Reason of a collection that found objects without this run's owner mark."""
RETRY_STORAGE: Final = 15.0
"""Seconds between two questions to a bucket that said no."""
TOLD: Final = 10.0
"""Seconds of its life within which a run that we hold has been given a status."""
LONGEST_SAVE: Final = 120.0
"""Seconds for which a lost attempt may still be writing; then its prefix may be cleared."""


def deleting(now: Settled) -> Decision | None:
    """The user deleted the run: end its attempt, bury the head, remove its objects, then let go."""
    seen = now.seen
    if seen.run.deleting_since is None:
        return None
    if not seen.run.has_finalizer:
        return conclude(now, "Deleting", "Released", "the run is let go")
    now = _remembered(now)
    stop = _stop(now)
    if now.status.start_time is None and not now.status.attempts and not now.status.attempt and not seen.pods:
        return conclude(
            now, "Deleting", "Released", "the run never started: nothing to collect", actions=[RemoveFinalizer()]
        )
    if seen.storage.collected is not None and seen.storage.collected.done and not _unreleased(now):
        message = seen.storage.collected.message
        # What may not be deleted for want of the owner mark stays, so somebody must be told where it lies.
        foreign = [Abandon(message)] if seen.storage.collected.reason == NOT_OURS else []
        return conclude(now, "Deleting", "Collected", message, actions=[*stop, *foreign, RemoveFinalizer()])
    if (trouble := _storage_trouble(now)) is not None:
        waited = seen.now - seen.run.deleting_since
        if waited >= seen.collect_timeout and not _unreleased(now):
            message = f"left behind after {duration(waited)}: {trouble}"
            return conclude(
                now, "Deleting", "Abandoned", message, actions=[*stop, Abandon(message), RemoveFinalizer()], warn=True
            )
        left = duration(max(0.0, seen.collect_timeout - waited))
        message = f"collecting storage: {trouble}; trying again, for {left} more"
        return conclude(now, "Deleting", "CollectRetry", message, actions=[*stop, *_tidy(now)], again=RETRY_STORAGE)
    if (wait := _writers_left(now)) is not None:
        return conclude(now, "Deleting", "Stopping", wait, actions=[*stop, *_tidy(now)], again=2.0)
    return conclude(
        now, "Deleting", "Collecting", "collecting storage", actions=[*stop, *_tidy(now)], again=RETRY_STORAGE
    )


def _remembered(now: Settled) -> Settled:
    """Take a run that we have held, and that has lost its status, to have started: its bucket is to be looked at.

    A first status follows our finalizer, so one that says nothing was wiped, or the run was restored without it.
    """
    run, status = now.seen.run, now.status
    if now.seen.status.conditions or status.start_time is not None or (run.deleting_since or 0) - run.created < TOLD:
        return now
    return replace(now, status=status.model_copy(update={"start_time": stamp(run.created)}))


def end_live(now: Settled) -> list[Action]:
    """Return what ends every pod whose trainer may still run."""
    return [DeletePod(pod.name, pod.uid) for pod in now.live_pods if not pod.deleting]


def _stop(now: Settled) -> list[Action]:
    """While deleting, nothing is written down any more, so pods are let go as soon as they are over or lost."""
    chores: list[Action] = list(end_live(now))
    over = {entry.number for entry in now.status.attempts if entry.cause is not None}
    chores += [ReleasePod(pod.name, pod.uid) for pod in _unreleased(now) if pod.is_over or pod.attempt in over]
    return chores


def _unreleased(now: Settled) -> list[PodSeen]:
    return [pod for pod in now.seen.pods if pod.has_finalizer]


def _writers_left(now: Settled) -> str | None:
    """Say whom the collection waits for: a container may still write until its end is known, or its time is up."""
    waits = []
    for pod in now.live_pods:
        entry = next((one for one in now.status.attempts if one.number == pod.attempt), None)
        given_up = instant(entry.ended) if entry is not None and entry.ended is not None else None
        if given_up is not None and now.seen.now - given_up >= LONGEST_SAVE and not is_back(now, pod):
            continue
        if entry is None and pod.attempt <= ledger.folded(now.status):
            continue  # twenty attempts ago
        waits.append(f"{pod.name} {_until(now, pod, given_up)}")
    return f"waiting for {', '.join(waits[:3])}" if waits else None


def _until(now: Settled, pod: PodSeen, given_up: float | None) -> str:
    """Say for what of *pod* is waited, and until when where that is known."""
    asked = pod.deleting_since
    if given_up is not None and is_back(now, pod):
        until = f", until {stamp(asked + ENDS_WITHIN)} at most" if asked is not None else ""
        return f"to end on {pod.node}, which answers again{until}"
    if given_up is not None:
        return f"on {pod.node}, which is lost: it may be writing, until {stamp(given_up + LONGEST_SAVE)} at most"
    return f"to end, by {stamp(asked + ENDS_WITHIN)} if its node answers" if asked is not None else "to end"


def _tidy(now: Settled) -> list[Action]:
    """Clear the bucket: while a container may still write, head (a tombstone) and owner mark stay."""
    storage = now.seen.storage
    job, last = (Job.BURY, storage.buried) if _writers_left(now) else (Job.COLLECT, storage.collected)
    if last is None or (not last.done and now.seen.now - last.time >= RETRY_STORAGE):
        return [StartJob(job)]
    return []


def _storage_trouble(now: Settled) -> str | None:
    """Return why the bucket could not be cleared, if it was tried."""
    for tried in (now.seen.storage.collected, now.seen.storage.buried):
        if tried is not None and not tried.done:
            return tried.message
    return None
