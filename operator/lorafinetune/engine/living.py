"""An attempt that is alive: what it does, or what it waits for, in the words of its pod and of its trainer."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import ConditionStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine import edits, limits, pending, pools
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.conditions import ConditionType, find, is_true
from lorafinetune.engine.decision import Action, Decision, DeletePod, Job, StartJob
from lorafinetune.engine.fleet import PoolKnown
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import stamp

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
    seen, progress = now.seen, now.seen.progress
    node = seen.nodes.get(pod.node or "")
    is_leaving = node is not None and bool(node.notice)
    if pod.phase != "Running" and not is_leaving:
        return _waiting(now, pod)
    where = f"attempt {last.number} on {pod.node} ({last.pool})"
    if now.status.limit is not None:
        where += f" publishes what there is ({now.status.limit.reason})"
    if pod.deleting or is_leaving:
        # Karpenter leaves a pod with do-not-disrupt alone until its node ends: so the notice is passed on by us. To one
        # that has not started too: what it pulls there is of no use to anybody, and its successor need not wait for it.
        passed_on: list[Action] = [] if pod.deleting else [DeletePod(pod.name, pod.uid)]
        mark = "the pod is being deleted" if node is None or not node.notice else f"{node.notice} on its node"
        until = f", by {stamp(node.deadline)}" if node is not None and node.deadline is not None else ""
        saves = pod.phase == "Running"
        message = f"{where} is being taken back ({mark}{until}): {'saving' if saves else 'it had not started'}"
        phase = "Running" if saves else "Starting"
        return conclude(now, phase, "Interrupted", message, actions=passed_on, refresh=REFRESH)
    actions = first_read(now)
    heard = progress.heard if progress is not None and progress.attempt == last.number else pod.started or pod.created
    asked = seen.storage.read
    if asked is not None and seen.now - max(heard, asked) >= UNHEARD:
        actions.append(StartJob(Job.READ))
    if progress is None and is_true(seen.status.conditions, ConditionType.RUNNING):
        # This operator has just begun; its trainer trains on, and will speak soon.
        message = f"{where}: {_step(last.to_step or 0, seen.steps)} when last heard"
        return conclude(
            now, "Running", "Training", message, running=ConditionStatus.TRUE, actions=actions, refresh=REFRESH
        )
    if progress is None or progress.attempt != last.number or progress.phase is None:
        if pod.started is not None and seen.now - pod.started >= LATE_WORD:
            known = f"step {now.status.checkpoint.step}" if now.status.checkpoint else "none yet"
            message = f"{where}: no word from its trainer (can it reach the webhook?); newest checkpoint: {known}"
            return conclude(now, "Running", "Unheard", message, actions=actions, refresh=REFRESH)
        return conclude(
            now, "Starting", "TrainerStarting", f"{where}: the trainer is starting", actions=actions, refresh=REFRESH
        )
    trains = progress.phase in RUNNING
    return conclude(
        now,
        "Running" if trains else "Starting",
        progress.phase.value,
        f"{where}: {_doing(now, progress, progress.phase)}{edits.awaited(now, pod)}",
        running=ConditionStatus.TRUE if trains else ConditionStatus.FALSE,
        actions=actions,
        refresh=REFRESH,
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


def _is_news(now: Settled, reason: str) -> bool:
    """Whether the run did not wait for that *reason* before: words and instants may change, and are not told again."""
    known = find(now.seen.status.conditions, ConditionType.RUNNING)
    return known is None or known.reason != reason


def _for_a_node(now: Settled, pod: PodSeen, where: str) -> Decision | None:
    """An attempt without a node: until when it waits for one, and what then; None if its pool is gone."""
    last, seen = now.last, now.seen
    pool = seen.pools.get(pod.pool)
    if last is None or pool is None:
        return None
    choice = pools.choose(seen, now.status)
    turn, later = (choice.until, pools.until(choice.fallback)) if isinstance(choice, pools.Placed) else (None, "")
    if last.dry is not None:
        reason = "WaitingForSpot" if later else "PoolDry"
        other = choice.known if isinstance(choice, pools.Placed) and choice.name != last.pool else PoolKnown()
        stays = pending.stays_until(last, seen.fleet.get(last.pool) or PoolKnown(), other)
        turns = [at for at in (turn, stays) if at is not None and at > seen.now]
        again = max(1.0, min(turns) - seen.now) if turns else None
        if turns and not later:
            later = f"; the run's pools are compared again at {stamp(min(turns))}"
        message = f"{where} waits for a node, as {last.pool} has none (since {last.dry}: {last.message}){later}"
        return conclude(now, "Starting", reason, message, again=again, refresh=REFRESH, warn=_is_news(now, reason))
    patience = pending.patience(last, pod, pool)
    falls = choice.fallback.at if isinstance(choice, pools.Placed) else None
    due = pending.next_look(last, pod, pool, seen.now)
    again = max(1.0, (due if falls is None else min(due, falls)) - seen.now)
    ends = limits.seconds_left(now)
    if ends is not None and seen.now + ends < min(patience, falls or patience):
        later = f"; spec.limits ends the run at {stamp(seen.now + ends)}"
    if pod.scale_up_since is not None:
        message = f"{where} waits for a node that is being made, until {stamp(patience)}{later}"
        return conclude(now, "Starting", "ScalingUp", message, again=again, refresh=REFRESH)
    if pod.unschedulable:
        message = f"{where} waits for a node until {stamp(patience)}: {pod.unschedulable}{later}"
        news = _is_news(now, "Unschedulable")
        return conclude(now, "Starting", "Unschedulable", message, again=again, refresh=REFRESH, warn=news)
    return conclude(now, "Starting", "PodStarting", f"{where} is starting", again=again, refresh=REFRESH)


def _waiting(now: Settled, pod: PodSeen) -> Decision:
    """An attempt's pod that has not started: the platform's own sentence says why."""
    where = f"attempt {pod.attempt} ({pod.pool})"
    if pod.gated:
        queue = f"Kueue's queue {pod.queue}" if pod.queue else "whoever put a scheduling gate on its pod"
        return conclude(now, "Starting", "Queued", f"{where} waits for {queue} to let it go on", refresh=REFRESH)
    if pending.waits(pod) and (said := _for_a_node(now, pod, where)) is not None:
        return said
    if pod.unschedulable:
        message = f"{where} waits for a node: {pod.unschedulable}"
        return conclude(now, "Starting", "Unschedulable", message, refresh=REFRESH, warn=_is_news(now, "Unschedulable"))
    if pod.waiting_reason and pod.waiting_reason not in ("ContainerCreating", "PodInitializing"):
        message = f"{where} cannot start on {pod.node}: {pod.waiting_message or pod.waiting_reason}"
        return conclude(now, "Starting", pod.waiting_reason, message, refresh=REFRESH, warn=True)
    if pod.start_problem:
        message = f"{where} is starting on {pod.node}, whose kubelet says: {pod.start_problem}"
        return conclude(now, "Starting", "PodStarting", message, refresh=REFRESH, warn=True)
    return conclude(now, "Starting", "PodStarting", f"{where} is starting", refresh=REFRESH)
