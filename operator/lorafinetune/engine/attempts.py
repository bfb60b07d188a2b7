"""Which attempts there were, how each is doing, and how each ended: the fold of pods and events into the status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorafinetune.api.status import MAX_ATTEMPTS_KEPT, AttemptStatus, CheckpointStatus, LoRAFineTuneStatus
from lorafinetune.contract import layout
from lorafinetune.contract.event import Phase
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine import ledger
from lorafinetune.engine.classify import PREEMPTIONS, Cause, Ending, Hold, classify, classify_vanished, is_lost
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.decision import Announcement, DeletePod, ReleasePod
from lorafinetune.engine.observation import Observation, PodSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import duration, instant, stamp

PODS_KEPT: Final = 3
"""Ended pods that stay for their logs."""
MAX_REASON: Final = 64
"""Characters of a reason that the status takes; some come from other controllers."""
CREATE_VISIBLE: Final = 5.0
"""Seconds that a pod which we made may be absent from the store before it counts as vanished."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The observation with all that it says of attempts folded into the status."""

    seen: Observation
    status: LoRAFineTuneStatus
    announcements: tuple[Announcement, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()
    hold: float | None = None
    """Seconds until evidence that is still awaited is due."""
    housekeeping: tuple[ReleasePod | DeletePod, ...] = ()
    """Pods whose end is stored, to be let go or cleared away."""

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
    holds: list[float] = []
    for pod in seen.pods:
        if pod.attempt not in entries and pod.attempt > floor and pod.attempt > folded(seen.status):
            entries[pod.attempt] = _adopted(pod)
    for number in sorted(entries):
        entry = entries[number] = _followed(entries[number], seen)
        if entry.cause is not None:
            continue
        verdict = _verdict(entry, seen)
        if isinstance(verdict, Hold):
            holds.append(verdict.seconds)
        elif verdict is not None:
            entry = entries[number] = _closed(entry, verdict, seen)
            ended.append((verdict.cause.value, entry.pool))
            announcements.append(_told(entry, verdict))
    status = seen.status.model_copy(update={"attempts": [entries[number] for number in sorted(entries)]})
    status = _counted(status, ended)
    status = _progressed(status, seen)
    status = ledger.fold_oldest(status, MAX_ATTEMPTS_KEPT)
    account = ledger.bill(status, seen.now)
    if status.attempts or status.totals:
        generating = ledger.generating_cost(status, seen.now)
        paid = {"cost": account.cost_text, "saved": account.saved_text, "generating_cost": generating}
        status = status.model_copy(update=paid)
    if (committed := _new_checkpoint(seen.status, status)) is not None:
        announcements.append(committed)
    return Settled(
        seen, status, tuple(announcements), tuple(ended), min(holds, default=None), tuple(_housekeeping(seen))
    )


def folded(status: LoRAFineTuneStatus) -> int:
    """Return the highest attempt number that only the totals remember."""
    return status.totals.attempts if status.totals else 0


def _adopted(pod: PodSeen) -> AttemptStatus:
    """Return the entry of a pod that was made, but not written down before the operator died."""
    return AttemptStatus(
        number=pod.attempt,
        pod=pod.name,
        pod_uid=pod.uid,
        pool=pod.pool,
        capacity_type=pod.capacity_type or None,
        price_per_hour=pod.price_per_hour or None,
        on_demand_price_per_hour=pod.on_demand_price_per_hour or None,
        created=stamp(pod.created),
    )


def _followed(entry: AttemptStatus, seen: Observation) -> AttemptStatus:
    changes: dict[str, object] = {}
    if (pod := seen.pod_of(entry.number)) is not None:
        changes |= {"pod_uid": pod.uid, "node": pod.node or entry.node}
        if pod.started is not None and entry.ended is None:
            changes["started"] = stamp(pod.started)
    progress = seen.progress
    if progress is not None and progress.attempt == entry.number:
        if progress.resumed_from is not None:
            changes["from_step"] = progress.resumed_from
        changes["to_step"] = max(progress.step, entry.to_step or 0)
        if progress.checkpoint is not None:
            changes["durable_step"] = max(progress.checkpoint.step, entry.durable_step or 0)
        changes |= _generating(entry, progress)
    return entry.model_copy(update=changes)


def _generating(entry: AttemptStatus, progress: Progress) -> dict[str, object]:
    """Return since when, or until when, the attempt has made class images: their cost has a line of its own."""
    if progress.phase is Phase.GENERATING:
        return {"generating_since": entry.generating_since or stamp(progress.phase_since), "generating_until": None}
    if progress.phase is not None and entry.generating_since is not None and entry.generating_until is None:
        return {"generating_until": stamp(progress.phase_since)}
    return {}


def _verdict(entry: AttemptStatus, seen: Observation) -> Ending | Hold | None:
    pod = seen.pod_of(entry.number)
    if pod is None:
        made = seen.now - _created(entry)
        return classify_vanished(entry.capacity_type) if made >= CREATE_VISIBLE else Hold(CREATE_VISIBLE - made)
    node = seen.nodes.get(pod.node) if pod.node else None
    if pod.is_over:
        suspended = seen.spec.suspend or seen.run.deleting_since is not None
        return classify(pod, node, progress=seen.progress, suspended=suspended, now=seen.now)
    return is_lost(pod, node, progress=seen.progress, now=seen.now)


def _created(entry: AttemptStatus) -> float:
    return instant(entry.created) if entry.created is not None else 0.0


def _closed(entry: AttemptStatus, ending: Ending, seen: Observation) -> AttemptStatus:
    pod = seen.pod_of(entry.number)
    ended = pod.ended if pod is not None and pod.ended is not None else seen.now
    # By so much the node's clock is ahead, at least: waits are counted from the end, and may not grow by it.
    ahead = max(0.0, ended - seen.now)
    changes: dict[str, object] = {
        "ended": stamp(ended - ahead),
        "cause": ending.cause.value,
        "reason": clip(ending.reason, MAX_REASON),
        "message": clip(ending.message),
    }
    if entry.generating_since is not None and entry.generating_until is None:
        changes["generating_until"] = changes["ended"]
    if pod is not None:
        changes["exit_code"] = pod.exit_code
        if ahead and pod.started is not None:
            changes["started"] = stamp(pod.started - ahead)
        if (last_words := pod.termination) is not None:
            changes["to_step"] = max(last_words.step, entry.to_step or 0)
            changes["durable_step"] = max(last_words.durable_step, entry.durable_step or 0)
    return entry.model_copy(update=changes)


def _told(entry: AttemptStatus, ending: Ending) -> Announcement:
    spoken = f"attempt {entry.number}: {ending.message}"
    if ending.cause in PREEMPTIONS and entry.to_step is not None:
        lost = entry.to_step - max(entry.durable_step or 0, entry.from_step or 0)
        spoken += f"; {lost} step{'' if lost == 1 else 's'} to do again" if lost > 0 else "; no step lost"
    kind = "Preempted" if ending.cause in PREEMPTIONS else f"Attempt{ending.cause.value}"
    warning = ending.cause not in (Cause.FINISHED, Cause.SUSPENDED)
    return Announcement(kind, spoken, warning=warning, pod=entry.pod)


def _counted(status: LoRAFineTuneStatus, ended: list[tuple[str, str]]) -> LoRAFineTuneStatus:
    preempted = sum(cause in PREEMPTIONS for cause, _ in ended)
    failed = sum(cause == Cause.ERROR for cause, _ in ended)
    changes: dict[str, object] = {
        "preemptions": (status.preemptions or 0) + preempted,
        "failures": (status.failures or 0) + failed,
    }
    if status.attempts:
        newest = status.attempts[-1]
        changes |= {"attempt": max(newest.number, status.attempt or 0), "pool": newest.pool}
    return status.model_copy(update=changes)


def _progressed(status: LoRAFineTuneStatus, seen: Observation) -> LoRAFineTuneStatus:
    if status.completion_time is not None:
        return status  # the last word has been said
    steps, progress = seen.steps, seen.progress
    newest = status.attempts[-1] if status.attempts else None
    stored = _entry(status)
    known = [one for one in (stored, seen.storage.newest, progress.checkpoint if progress else None) if one]
    checkpoint = max(known, key=lambda one: (one.step, one.attempt), default=None)
    step = max(
        status.step or 0,
        checkpoint.step if checkpoint else 0,
        *(entry.to_step or 0 for entry in status.attempts),
        0,
    )
    changes: dict[str, object] = {
        **stepped(step, steps),
        "eta": None,
    }
    if seen.run.deleting_since is not None:
        changes["checkpoint"] = None  # its folder goes
    elif checkpoint is not None and (stored is None or checkpoint.id != stored.id):
        place = layout.run_prefix(seen.spec.storage.uri, seen.run.namespace, seen.run.name, seen.run.uid)
        changes["checkpoint"] = CheckpointStatus(
            attempt=checkpoint.attempt,
            step=checkpoint.step,
            uri=f"{place}{checkpoint.folder}",
            manifest_sha256=checkpoint.manifest_sha256,
            time=stamp(seen.now),
        )
    if newest is not None and newest.number != seen.status.attempt:
        changes["event_sequence"] = 0  # every attempt counts from one: the number before it must not hush it
    if progress is not None and newest is not None and progress.attempt == newest.number:
        changes["event_sequence"] = progress.sequence
        changes |= _speed(progress, steps, live=newest.cause is None)
    return status.model_copy(update=changes)


def stepped(step: int, steps: int | None) -> dict[str, object]:
    """Return the status' members for *step* of *steps*, of which nobody may know yet how many they are."""
    if steps is None:
        return {"step": step, "steps": None, "step_of": f"{step}/?", "progress": None}
    step = min(step, steps)
    return {"step": step, "steps": steps, "step_of": f"{step}/{steps}", "progress": f"{100 * step // steps}%"}


def _speed(progress: Progress, steps: int | None, *, live: bool) -> dict[str, object]:
    changes: dict[str, object] = {}
    if progress.loss is not None:
        changes["loss"] = f"{progress.loss:.4f}"
    if progress.images_per_second is not None:
        changes["images_per_second"] = f"{progress.images_per_second:.3g}"
    if progress.mfu is not None:
        changes["mfu"] = f"{100 * progress.mfu:.0f}%"
    if progress.memory_bytes is not None:
        changes["memory"] = f"{progress.memory_bytes / 2**30:.1f} GiB"
    if progress.seconds_per_step is not None:
        changes["seconds_per_step"] = f"{progress.seconds_per_step:.3g}"
        if live and steps is not None:
            changes["eta"] = duration(progress.seconds_per_step * max(0, steps - progress.step))
    return changes


def _entry(status: LoRAFineTuneStatus) -> CheckpointEntry | None:
    known = status.checkpoint
    if known is None:
        return None
    return CheckpointEntry(attempt=known.attempt, step=known.step, manifest_sha256=known.manifest_sha256)


def _new_checkpoint(before: LoRAFineTuneStatus, after: LoRAFineTuneStatus) -> Announcement | None:
    new = after.checkpoint
    if new is None or (before.checkpoint is not None and before.checkpoint.manifest_sha256 == new.manifest_sha256):
        return None
    return Announcement("CheckpointCommitted", f"attempt {new.attempt} committed a checkpoint at step {new.step}")


def _housekeeping(seen: Observation) -> list[ReleasePod | DeletePod]:
    """Return what to do with pods whose end stands in the status as read (never one only about to be written)."""
    stored = {entry.number for entry in seen.status.attempts if entry.cause is not None}
    newest = max((entry.number for entry in seen.status.attempts), default=0)
    chores: list[ReleasePod | DeletePod] = []
    for pod in seen.pods:
        if pod.attempt not in stored and pod.attempt > folded(seen.status):
            continue
        if pod.has_finalizer:
            chores.append(ReleasePod(pod.name, pod.uid))
        elif pod.deleting:
            continue
        elif not pod.is_over or pod.attempt <= newest - PODS_KEPT:
            chores.append(DeletePod(pod.name, pod.uid))
    return chores
