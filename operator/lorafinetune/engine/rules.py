"""What the product does, as a chain of rules: the first that speaks wins. Read it from the top to the bottom.

Each rule looks at one situation and says what is done about it, what the user is told, and when to look again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lorafinetune.api.limits import AtLimit
from lorafinetune.api.status import ConditionStatus
from lorafinetune.engine import avoiding, budgets, cadence, comeback, expiry, pools, silence
from lorafinetune.engine.attempts import Settled, settle
from lorafinetune.engine.classify import HEAD_LOST, PREEMPTIONS, STORAGE_REASONS, Cause
from lorafinetune.engine.closing import (
    at_limit,
    close,
    ended_by_limit,
    failed,
    head_unread,
    in_the_way,
    is_outgrown,
    published,
    publishes,
    watched,
)
from lorafinetune.engine.conditions import ConditionType, is_false, is_true
from lorafinetune.engine.decision import (
    AddFinalizer,
    Announcement,
    CreatePod,
    Decision,
    Job,
    StartJob,
)
from lorafinetune.engine.deleting import RETRY_STORAGE, deleting, end_live
from lorafinetune.engine.edits import edited
from lorafinetune.engine.expiry import expired
from lorafinetune.engine.living import REFRESH, first_read, live
from lorafinetune.engine.moves import moving
from lorafinetune.engine.observation import Observation, StorageChecked, Tidied
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.standing import stepped
from lorafinetune.engine.stopping import marked, stopping
from lorafinetune.engine.times import duration, instant, stamp

SIGN: Final = 10.0
"""Seconds until a silent attempt is looked at again: other nodes may have come back meanwhile."""
SPEAKS: Final = 10.0
"""Seconds for which a word of the trainer counts as new."""
RETRY_CREATE: Final = 15.0
"""Seconds between two tries to create a pod that was refused."""

Rule = Callable[[Settled], Decision | None]


def decide(seen: Observation) -> Decision:
    """Return the first rule's answer, with the chores that hold in every situation."""
    now = settle(seen)
    for rule in CHAIN:
        decision = rule(now)
        if decision is not None:
            return watched(now, decision)
    raise AssertionError("the last rule always speaks")


def unheld(now: Settled) -> Decision | None:
    """A new run: hold it before anything is made for it, else deleting it could leak."""
    if now.seen.run.has_finalizer:
        return None
    return conclude(now, "Pending", "Held", "taking the run in", actions=[AddFinalizer()])


def finished(now: Settled) -> Decision | None:
    """The run has ended for good: keep the product, and nothing else."""
    seen, conditions = now.seen, now.seen.status.conditions
    status, again = expiry.noted(now), expiry.wait(now)
    if is_false(conditions, ConditionType.SUCCEEDED):
        actions = [*end_live(now), *first_read(now)]
        return conclude(now, "Failed", "", "", status=status, keep_conditions=True, actions=actions, again=again)
    if not is_true(conditions, ConditionType.SUCCEEDED):
        return None
    if now.status.pruned:
        actions = first_read(now)
        return conclude(now, "Succeeded", "", "", status=status, keep_conditions=True, actions=actions, again=again)
    if seen.storage.pruned is not None and seen.storage.pruned.done:
        status = now.status.model_copy(update={"pruned": True})
        return conclude(now, "Succeeded", "", "", status=status, keep_conditions=True, again=0.0)
    retry = seen.storage.pruned is None or seen.now - seen.storage.pruned.time >= RETRY_STORAGE
    actions = [StartJob(Job.PRUNE)] if retry else []
    return conclude(now, "Succeeded", "", "", keep_conditions=True, actions=actions, again=RETRY_STORAGE)


def suspended(now: Settled) -> Decision | None:
    """The user said stop: free the GPU, with the work saved, and stay stopped."""
    if not now.seen.spec.suspend:
        return None
    if now.last is not None and now.last.cause is None and now.last.stopping is None:
        # Written down first: suspended and resumed within a second, the attempt still ends by its user's hand.
        status = marked(now, Cause.SUSPENDED, "Suspended", "suspended by the user")
        return conclude(now, "Suspended", "Suspending", "stopping the attempt", status=status, again=0.0)
    # A lost node's pod may stay as long as its node does: an attempt that is booked as ended is not waited for.
    booked = {one.number for one in now.status.attempts if one.cause is not None}
    oldest = min((one.number for one in now.status.attempts), default=0)
    alive = any(pod.attempt not in booked and pod.attempt >= oldest for pod in now.live_pods)
    if (live := end_live(now)) or alive or now.hold is not None:
        return conclude(now, "Suspended", "Suspending", "saving and stopping the attempt", actions=live, again=now.hold)
    saved = now.status.checkpoint
    step = f" at step {saved.step}, which is saved" if saved is not None else ""
    message = f"suspended by spec.suspend{step}; set it to false to go on"
    return conclude(now, "Suspended", "Suspended", message, actions=first_read(now))


def ending_unclear(now: Settled) -> Decision | None:
    """An attempt ended without a word: the platform's mark may come after the container's end, so wait for it."""
    last = now.last
    if now.hold is None or last is None or last.cause is not None:
        return None
    pod = now.seen.pod_of(last.number)
    if pod is not None and not pod.is_over:
        held = silence.held(pod, now.seen.nodes.get(pod.node or ""), now.seen.cluster, now.seen.now)
        reason, why = ("ReplacementHeld", f"; {held.why}") if held is not None else ("NodeSilent", "")
        until = stamp(now.seen.now + now.hold)
        progress = now.seen.progress
        speaks = progress is not None and progress.attempt == last.number and now.seen.now - progress.heard < SPEAKS
        state = f"but its trainer speaks (step {progress.step})" if speaks and progress else "its trainer may be alive"
        message = f"{pod.node} is silent; {state}: waiting for a sign until {until}{why}"
        return conclude(now, "Running", reason, message, running=ConditionStatus.UNKNOWN, again=SIGN)
    message = f"attempt {last.number} ended without a word: waiting {now.hold:.0f} s for the platform's reason"
    return conclude(now, "Pending", "EndingUnclear", message, again=now.hold)


def verifying(now: Settled) -> Decision | None:
    """The trainer says it is done. A pod that exits 0 proves nothing: the artifact is verified in storage."""
    last, seen = now.last, now.seen
    if last is None or last.cause != Cause.FINISHED:
        return None
    found, checkpoint = seen.storage.artifact, now.status.checkpoint
    wanted = checkpoint.step if checkpoint is not None and publishes(now) else None
    ask = StartJob(Job.VERIFY, wanted)
    if found is None or found.steps < (wanted or seen.spec.training.steps or 0):  # raised while it was being verified
        return conclude(now, "Running", "Verifying", "verifying the artifact in storage", actions=[ask])
    if found.ok and found.artifact is not None and publishes(now):
        return published(now, found.artifact, found.step or found.steps)
    if found.ok and found.artifact is not None:
        steps = seen.spec.training.steps or found.steps
        status = now.status.model_copy(
            update={
                "artifact": found.artifact,
                "checkpoint": None,  # its folder goes as soon as this is stored
                "completion_time": stamp(seen.now),
                "eta": None,
                **stepped(steps, steps),
            }
        )
        said = Announcement("Succeeded", f"the LoRA is at {found.artifact.uri}{found.artifact.file}")
        return conclude(
            now,
            "Succeeded",
            "ArtifactVerified",
            f"the LoRA is at {found.artifact.uri}{found.artifact.file} (SHA-256 {found.artifact.sha256[:12]})",
            status=status,
            succeeded=ConditionStatus.TRUE,
            announcements=[said],
            again=0.0,  # checkpoints are deleted once this is stored: until then steps may still be raised
        )
    if is_outgrown(now):
        return None  # it has done all that it was made for: another one trains the rest
    if not found.final:
        actions = [ask] if seen.now - found.time >= RETRY_STORAGE else []
        return conclude(now, "Running", "Verifying", found.message, actions=actions, again=RETRY_STORAGE)
    broken = last.model_copy(
        update={"cause": Cause.INFRASTRUCTURE.value, "reason": found.reason, "message": found.message}
    )
    status = now.status.model_copy(update={"attempts": [*now.status.attempts[:-1], broken]})
    said = Announcement(found.reason, found.message, warning=True)
    return conclude(now, "Pending", found.reason, found.message, status=status, announcements=[said], again=0.0)


def out_of_budget(now: Settled) -> Decision | None:
    """The last attempt's end leaves nothing to try: fail, and say what to mend."""
    last = now.last
    if last is None or now.status.limit is not None:
        return None
    verdict = _verdict(now)
    if not isinstance(verdict, budgets.Over):
        return None
    if verdict.reason == budgets.NO_PROGRESS and (unread := head_unread(now, verdict.reason)) is not None:
        return unread
    if now.seen.spec.limits.at_limit is AtLimit.PUBLISH and last.cause != Cause.INVALID:
        return close(now, verdict.reason, verdict.message)
    return failed(now, verdict.reason, verdict.message)


def unplaceable(now: Settled) -> Decision | None:
    """No such pool: wait for it, and say which."""
    choice = pools.choose(now.seen, now.status)
    if not isinstance(choice, pools.Unplaceable):
        return None
    message = in_the_way(now, choice.message)
    return conclude(now, "Pending", choice.reason, message, accepted=ConditionStatus.FALSE, refresh=REFRESH, warn=True)


def head_lost(now: Settled) -> Decision | None:
    """Somebody deleted the head: make it anew from the manifests before another attempt asks for it."""
    last = now.last
    if last is None or last.reason != HEAD_LOST or last.ended is None:
        return None
    rebuilt = now.seen.storage.rebuilt
    if rebuilt is None or rebuilt.time < instant(last.ended):
        message = f"{last.message}; making it anew from the manifests"
        return conclude(now, "Pending", HEAD_LOST, message, actions=[StartJob(Job.REBUILD)], again=RETRY_STORAGE)
    if rebuilt.done:
        return None
    return _denied(now, Job.REBUILD, rebuilt)


def storage_unready(now: Settled) -> Decision | None:
    """Before the first attempt, and after one that the bucket failed, it must answer: a GPU that waits costs money."""
    seen, last = now.seen, now.last
    failed = last is not None and last.reason in STORAGE_REASONS and last.ended is not None
    if last is not None and not failed:
        return None
    checked = seen.storage.checked
    if checked is None or (last is not None and checked.time < instant(last.ended or "")):
        return conclude(
            now, "Pending", "CheckingStorage", "asking the bucket", actions=[StartJob(Job.CHECK)], again=RETRY_STORAGE
        )
    if checked.ok:
        return None
    return _denied(now, Job.CHECK, checked, storage_ready=ConditionStatus.FALSE)


def backing_off(now: Settled) -> Decision | None:
    """What failed just now would fail again: wait a little."""
    if not now.status.attempts:
        return None
    verdict, last, limit = _verdict(now), now.status.attempts[-1], now.status.limit
    if isinstance(verdict, budgets.Over) and limit is not None:
        verdict = budgets.publishing_again(now.status.attempts, limit.attempt, run=now.seen.run.uid)
    if not isinstance(verdict, budgets.Again) or verdict.not_before <= now.seen.now:
        return None
    left = verdict.not_before - now.seen.now
    message = f"next attempt in {duration(left)}, after: {last.message}"
    return conclude(now, "Pending", "BackingOff", in_the_way(now, message), again=left)


def no_room(now: Settled) -> Decision | None:
    """Every pool that the run may use has as many attempts as it may have: wait for one to end."""
    choice = pools.choose(now.seen, now.status)
    if not isinstance(choice, pools.Waiting):
        return None
    return conclude(now, "Pending", choice.reason, in_the_way(now, choice.message), again=choice.again)


def refused(now: Settled) -> Decision | None:
    """The pod could not be made: say why, in the API server's own sentence where it is its, and try again."""
    refusal = now.seen.refusal
    if refusal is None or now.seen.now - refusal.time >= RETRY_CREATE:
        return None
    left = RETRY_CREATE - (now.seen.now - refusal.time)
    return conclude(now, "Pending", refusal.reason, in_the_way(now, refusal.message), again=left, warn=True)


def unstarted(now: Settled) -> Decision | None:
    """Write down that the run starts, before there is anything of it that would have to be collected."""
    if now.status.start_time is not None:
        return None
    # From then on, too, the API server refuses changes of which the pod would not know.
    status = now.status.model_copy(update={"start_time": stamp(now.seen.now)})
    return conclude(now, "Starting", "Starting", "the first attempt is being made", status=status, again=0.0)


def unmarked(now: Settled) -> Decision | None:
    """Put the owner mark before the first attempt: one that starts after the collection finds none, and ends."""
    marked = now.seen.storage.marked
    if now.status.attempt or (marked is not None and marked.done):
        return None
    if marked is None:
        message = "putting the owner mark into the bucket"
        return conclude(now, "Starting", "MarkingStorage", message, actions=[StartJob(Job.MARK)], again=RETRY_STORAGE)
    return _denied(now, Job.MARK, marked, storage_ready=ConditionStatus.FALSE)


def back_again(now: Settled) -> Decision | None:
    """A node that was given up answers again before there is a next attempt: let its pod end first."""
    pod = next((one for one in now.live_pods if comeback.is_back(now, one)), None)
    if pod is None:
        return None
    message = f"{pod.node} answers again, and attempt {pod.attempt} is still on it: waiting for its end"
    if pod.deleting_since is not None:
        message += f", until {stamp(pod.deleting_since + comeback.ENDS_WITHIN)} at most"
    return conclude(now, "Pending", "NodeBack", message, actions=end_live(now), again=SIGN)


def next_attempt(now: Settled) -> Decision | None:
    """Nothing stands in the way: make the next attempt, from the newest checkpoint."""
    status = now.status
    placed = pools.choose(now.seen, now.status)
    assert isinstance(placed, pools.Placed), "unplaceable and no_room speak first"
    number = (status.attempt or 0) + 1
    resume_from = status.checkpoint.uri if status.checkpoint is not None else None
    avoided = avoiding.nodes(status.attempts, now.seen.now)
    usual = cadence.told_lifetime(placed.known, placed.spec.capacity_type, now.seen.now)
    create = CreatePod(
        number,
        placed.name,
        placed.spec,
        resume_from,
        placed.on_demand_price,
        avoid_nodes=avoided,
        lifetime_seconds=budgets.lifetime(usual, status, now.seen.spec.limits.attempts),
        publish=status.limit is not None,
    )
    where = f"attempt {number} on pool {placed.name}{', on demand ' + placed.fallback.why if placed.on_demand else ''}"
    last = now.last
    if create.publish:
        message = f"{where}, to publish the LoRA of step {status.checkpoint.step if status.checkpoint else 0}"
    elif last is not None and last.cause in PREEMPTIONS:
        message = f"{where}: {last.message}; resuming at step {status.checkpoint.step if status.checkpoint else 0}"
    else:
        message = f"{where}, from step {status.checkpoint.step if status.checkpoint else 0}"
    if placed.passed_over:
        message += f"; {placed.passed_over}"
    said = Announcement("AttemptCreated", message)
    return conclude(now, "Starting", "AttemptCreated", message, actions=[create], announcements=[said], refresh=REFRESH)


CHAIN: Final[tuple[Rule, ...]] = (
    deleting,
    unheld,
    expired,
    finished,
    suspended,
    ending_unclear,
    at_limit,
    stopping,
    edited,
    moving,
    live,
    verifying,
    ended_by_limit,
    out_of_budget,
    unplaceable,
    head_lost,
    storage_unready,
    backing_off,
    no_room,
    refused,
    unstarted,
    unmarked,
    back_again,
    next_attempt,
)


def _verdict(now: Settled) -> budgets.Again | budgets.Over:
    return budgets.after(now.status, now.seen.spec.limits.attempts, run=now.seen.run.uid)


def _denied(
    now: Settled, job: Job, answer: StorageChecked | Tidied, *, storage_ready: ConditionStatus | None = None
) -> Decision:
    """The bucket said no to *job*: say what it said, and ask again after a while."""
    actions = [StartJob(job)] if now.seen.now - answer.time >= RETRY_STORAGE else []
    return conclude(
        now,
        "Pending",
        answer.reason,
        f"{answer.message}; asked again every {RETRY_STORAGE:.0f} s",
        storage_ready=storage_ready,
        actions=actions,
        again=RETRY_STORAGE,
        warn=True,
    )
