"""An attempt that is alive: what it does, or what it waits for, in the words of its pod and of its trainer."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import ConditionStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.conditions import ConditionType, is_true
from lorafinetune.engine.decision import Action, Decision, DeletePod, Job, StartJob
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.progress import Progress

REFRESH: Final = 30.0
"""Seconds after which a living run is looked at again, to keep cost and ETA true."""
UNHEARD: Final = 60.0
"""Seconds without an event after which the head is read instead."""
LATE_WORD: Final = 300.0
"""Seconds after a trainer's start without any event, after which people should know that something is in the way."""
RUNNING: Final = frozenset({Phase.TRAINING, Phase.VALIDATING, Phase.SAVING, Phase.EXPORTING})
"""Phases of a trainer that make the run's phase Running; in all others it is Starting."""
DOING: Final = {Phase.GENERATING: "making class images", Phase.VALIDATING: "making validation pictures"}
"""What a phase is called in a message, where its own name does not tell."""


def live(now: Settled) -> Decision | None:
    """An attempt is there: say what it does, or what it waits for."""
    last = now.last
    if last is None or last.cause is not None:
        return None
    pod = now.seen.pod_of(last.number)
    if pod is None:
        return conclude(now, "Starting", "Starting", f"attempt {last.number} is being made", again=2.0)
    if pod.phase != "Running":
        return _waiting(now, pod)
    seen, progress = now.seen, now.seen.progress
    node = seen.nodes.get(pod.node or "")
    where = f"attempt {last.number} on {pod.node} ({last.pool})"
    if pod.deleting or (node is not None and node.notice):
        # Karpenter leaves a pod with do-not-disrupt alone until its node ends: so the notice is passed on by us.
        passed_on: list[Action] = [] if pod.deleting else [DeletePod(pod.name, pod.uid)]
        mark = "the pod is being deleted" if node is None or not node.notice else f"{node.notice} on its node"
        message = f"{where} is being taken back ({mark}): saving"
        return conclude(now, "Running", "Interrupted", message, actions=passed_on, again=REFRESH)
    actions = first_read(now)
    heard = progress.heard if progress is not None and progress.attempt == last.number else pod.started or pod.created
    asked = seen.storage.read
    if asked is not None and seen.now - max(heard, asked) >= UNHEARD:
        actions.append(StartJob(Job.READ))
    if progress is None and is_true(seen.status.conditions, ConditionType.RUNNING):
        # This operator has just begun; its trainer trains on, and will speak soon.
        message = f"{where}: {_step(last.to_step or 0, seen.steps)} when last heard"
        return conclude(
            now, "Running", "Training", message, running=ConditionStatus.TRUE, actions=actions, again=REFRESH
        )
    if progress is None or progress.attempt != last.number or progress.phase is None:
        if pod.started is not None and seen.now - pod.started >= LATE_WORD:
            known = f"step {now.status.checkpoint.step}" if now.status.checkpoint else "none yet"
            message = f"{where}: no word from its trainer (can it reach the webhook?); newest checkpoint: {known}"
            return conclude(now, "Running", "Unheard", message, actions=actions, again=REFRESH)
        return conclude(
            now, "Starting", "TrainerStarting", f"{where}: the trainer is starting", actions=actions, again=REFRESH
        )
    trains = progress.phase in RUNNING
    return conclude(
        now,
        "Running" if trains else "Starting",
        progress.phase.value,
        f"{where}: {_doing(now, progress, progress.phase)}",
        running=ConditionStatus.TRUE if trains else ConditionStatus.FALSE,
        actions=actions,
        again=REFRESH,
    )


def first_read(now: Settled) -> list[Action]:
    """Ask a bucket that this operator has not spoken to yet: what its credentials were must be known before they go.

    A namespace that is being deleted takes its Secrets first, and the operator may have been restarted since the run's.
    """
    return [StartJob(Job.READ)] if now.status.attempts and now.seen.storage.read is None else []


def _doing(now: Settled, progress: Progress, phase: Phase) -> str:
    """Return in words what a trainer does, and how far it has come with it."""
    said = DOING.get(phase, phase.value.lower())
    if progress.done is not None and progress.total:
        said += f": {progress.done} of {progress.total}"
    match phase:
        case Phase.TRAINING:
            speed = f", {progress.seconds_per_step:.3g} s/step" if progress.seconds_per_step else ""
            redo = f", doing steps again up to {now.status.step}" if progress.step < (now.status.step or 0) else ""
            return f"{_step(progress.step, now.seen.steps)}{speed}{redo}"
        case Phase.VALIDATING:
            return f"{said}, at {_step(progress.step, now.seen.steps)}"
        case Phase.GENERATING if now.status.generating_cost is not None:
            return f"{said}, {now.status.generating_cost} so far"
        case _:
            return said


def _step(step: int, steps: int | None) -> str:
    return f"step {step}" if steps is None else f"step {step} of {steps}"


def _waiting(now: Settled, pod: PodSeen) -> Decision:
    """An attempt's pod that has not started: the platform's own sentence says why."""
    where = f"attempt {pod.attempt} ({pod.pool})"
    if pod.unschedulable:
        message = f"{where} waits for a node: {pod.unschedulable}"
        return conclude(now, "Starting", "Unschedulable", message, again=REFRESH, warn=True)
    if pod.waiting_reason and pod.waiting_reason not in ("ContainerCreating", "PodInitializing"):
        message = f"{where} cannot start on {pod.node}: {pod.waiting_message or pod.waiting_reason}"
        return conclude(now, "Starting", pod.waiting_reason, message, again=REFRESH, warn=True)
    return conclude(now, "Starting", "PodStarting", f"{where} is starting", again=REFRESH)
