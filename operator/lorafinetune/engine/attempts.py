"""Which attempts there were, how each is doing, and how each ended: the fold of pods and events into the status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.api.status import MAX_ATTEMPTS_KEPT, AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import corrections, ledger, standing
from lorafinetune.engine.activities import CAPACITY, Activity, seconds_of
from lorafinetune.engine.decision import Announcement, Correction, DeletePod, ReadEvents, ReleasePod
from lorafinetune.engine.ending import PREEMPTIONS, Cause, Ending, Hold
from lorafinetune.engine.entries import adopted, closed, followed, recorded
from lorafinetune.engine.housekeeping import housekeeping
from lorafinetune.engine.looks import looks
from lorafinetune.engine.observation import Observation, PodSeen
from lorafinetune.engine.times import stamp
from lorafinetune.engine.verdicts import evidence_of, verdict

PLANNED: Final = frozenset({Cause.FINISHED, Cause.SUSPENDED, Cause.NO_CAPACITY, Cause.MOVED, Cause.LIMIT_REACHED})
"""Endings that are as somebody wanted them: nothing to warn of."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The observation with all that it says of attempts folded into the status."""

    seen: Observation
    status: LoRAFineTuneStatus
    announcements: tuple[Announcement, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()
    corrected: tuple[Correction, ...] = ()
    hold: float | None = None
    """Seconds until evidence that is still awaited is due."""
    housekeeping: tuple[ReleasePod | DeletePod | ReadEvents, ...] = ()
    """Pods whose end is stored, to be let go or cleared away; and those whose Kubernetes events are wanted."""
    revisit: float | None = None
    """Seconds until housekeeping may have more to do."""

    @property
    def last(self) -> AttemptStatus | None:
        """The newest attempt."""
        return self.status.attempts[-1] if self.status.attempts else None

    @property
    def live_pods(self) -> tuple[PodSeen, ...]:
        """Pods whose trainer may still run, zombies of lost nodes included."""
        return tuple(pod for pod in self.seen.pods if not pod.is_over)


def settle(seen: Observation) -> Settled:
    """Fold pods, events and the head into the status: attempts, steps, checkpoint, cost. Nothing ever goes backward."""
    entries = {entry.number: entry for entry in seen.status.attempts}
    floor = min(entries, default=0)
    announcements: list[Announcement] = []
    ended: list[tuple[str, str]] = []
    corrected: list[Correction] = []
    holds: list[float] = []
    for pod in seen.pods:
        if pod.attempt not in entries and pod.attempt > floor and pod.attempt > ledger.folded(seen.status):
            entries[pod.attempt] = adopted(pod)
    for number in sorted(entries):
        entry = entries[number] = followed(entries[number], seen)
        if entry.cause is not None:
            if (found := _corrected(entry, seen)) is not None:
                entries[number] = recorded(entry, found, seen.pod_of(number))
                if found.cause != entry.cause:
                    corrected.append(Correction(entry.cause, found.cause.value, entry.pool))
                    announcements.append(_told_late(entry, found))
            continue
        ending = verdict(entry, seen)
        if isinstance(ending, Hold):
            holds.append(ending.seconds)
        elif ending is not None:
            entry = entries[number] = closed(entry, ending, seen)
            ended.append((ending.cause.value, entry.pool))
            announcements.append(_told(entry, ending, goes_on=seen.run.deleting_since is None))
    known = {entry.number: entry for entry in seen.status.attempts}
    attempts = [_accounted(entries[number], known.get(number), seen) for number in sorted(entries)]
    status = seen.status.model_copy(update={"attempts": attempts})
    status = _counted(status)
    status = _waited(status, seen)
    status = standing.progressed(status, seen)
    status = ledger.fold_oldest(status, MAX_ATTEMPTS_KEPT)
    if status.attempts or status.totals:
        generating = ledger.generating_cost(status, seen.now, seen.currency)
        paid = ledger.bill(status, seen.now).said(seen.currency) | {"generating_cost": generating}
        status = status.model_copy(update=paid)
    if status.limit is not None and seen.status.activity == Activity.SUSPENDED and not seen.spec.suspend:
        resumed = status.limit.model_copy(update={"time": stamp(seen.now)})  # to publish, it has its time again
        status = status.model_copy(update={"limit": resumed})
    if (committed := standing.new_checkpoint(seen.status, status)) is not None:
        announcements.append(committed)
    asked, again = looks(seen, status.attempts)
    chores, until = housekeeping(seen)
    return Settled(
        seen,
        status,
        tuple(announcements),
        tuple(ended),
        tuple(corrected),
        min(holds, default=None),
        (*chores, *asked),
        min((wait for wait in (again, until) if wait is not None), default=None),
    )


def _corrected(entry: AttemptStatus, seen: Observation) -> Ending | None:
    pod = seen.pod_of(entry.number)
    return corrections.correction(entry, evidence_of(entry, pod, seen)) if pod is not None else None


def _told(entry: AttemptStatus, ending: Ending, *, goes_on: bool) -> Announcement:
    spoken = f"attempt {entry.number}: {ending.message}"
    if goes_on and ending.cause in PREEMPTIONS and entry.to_step is not None:
        lost = entry.to_step - max(entry.durable_step or 0, entry.from_step or 0)
        spoken += f"; {lost} step{'' if lost == 1 else 's'} to do again" if lost > 0 else "; no step lost"
    kind = "Preempted" if ending.cause in PREEMPTIONS else f"Attempt{ending.cause.value}"
    warning = ending.cause not in PLANNED
    return Announcement(kind, spoken, warning=warning, pod=entry.pod)


def _told_late(entry: AttemptStatus, ending: Ending) -> Announcement:
    spoken = f"attempt {entry.number} was booked as {entry.cause} ({entry.reason}); it was {ending.cause.value}"
    return Announcement("EndingCorrected", f"{spoken}: {ending.message}", pod=entry.pod)


def _accounted(entry: AttemptStatus, known: AttemptStatus | None, seen: Observation) -> AttemptStatus:
    """Return *entry* with its account, made anew when what it hangs on has changed since it was written."""
    if entry.cause is None or (entry.cost is not None and (entry is known or entry == known)):
        return entry
    progress = seen.progress
    told = progress.pace if progress is not None and progress.attempt == entry.number else None
    return ledger.accounted(entry, told)


def _counted(status: LoRAFineTuneStatus) -> LoRAFineTuneStatus:
    changes = ledger.counted(status)
    if status.attempts:
        newest = status.attempts[-1]
        changes |= {"attempt": max(newest.number, status.attempt or 0), "pool": newest.pool}
    return status.model_copy(update=changes)


def _waited(status: LoRAFineTuneStatus, seen: Observation) -> LoRAFineTuneStatus:
    """Note what the run had waited for capacity when it got a node, and its preemptions when that was on demand."""
    newest = status.attempts[-1] if status.attempts else None
    if newest is None or (newest.scheduled is None and newest.started is None):
        return status
    changes: dict[str, object] = {}
    if newest.cause is None:
        changes["waited_before"] = int(sum(seconds_of(seen.status, one, seen.now) for one in CAPACITY)) or None
    if newest.capacity_type == CapacityType.ON_DEMAND:
        changes["preemptions_before"] = status.preemptions
    return status.model_copy(update=changes)
