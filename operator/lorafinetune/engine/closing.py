"""A run that may take no more: its attempt is ended with its work saved, what there is is published if asked, it fails.

First it is written down which limit was reached, and with which attempt: every later one publishes, and trains nothing.
From then on raising the limit changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lorafinetune.api.limits import AtLimit
from lorafinetune.api.status import ArtifactStatus, ConditionStatus, LimitStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine import limits
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.decision import Announcement, Decision, Job, StartJob
from lorafinetune.engine.ending import PREEMPTIONS, Cause
from lorafinetune.engine.entries import MAX_REASON
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.stopping import stop
from lorafinetune.engine.times import duration, instant, stamp

TRIES: Final = 5
"""Attempts that may end while they publish."""
PUBLISHING: Final = 3600.0
"""Seconds that publishing may take in all, waiting for a node included."""
LAST_STEPS: Final = 600.0
"""Seconds for which an attempt that has done all steps, and publishes, is left alone at a limit."""
RETRY_READ: Final = 15.0
SPENT: Final = PREEMPTIONS | {Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.INFRASTRUCTURE, Cause.LIMIT_REACHED}
"""Endings that count as a try to publish."""


def at_limit(now: Settled) -> Decision | None:
    """The run may take no more: write down which limit it reached, and end its attempt, with its work saved."""
    last = now.last
    if last is not None and last.cause == Cause.FINISHED and not is_outgrown(now):
        return None  # what is published is verified first: then the run is done
    if now.status.limit is not None:
        late = _publishing_left(now, now.status.limit) <= 0
        if late and last is not None and last.cause is None and last.stopping is None:
            message = f"not published within {duration(PUBLISHING)}"
            return stop(now, Cause.LIMIT_REACHED, now.status.limit.reason, message)
        return None
    limit = limits.reached(now)
    if limit is None or _last_steps_left(now) > 0:
        return None
    return close(now, limit.reason, limit.message)


def close(now: Settled, reason: str, message: str) -> Decision:
    """Write down that no more is trained, and why; end the attempt that is alive."""
    limit = LimitStatus(
        reason=reason[:MAX_REASON], message=clip(message), time=stamp(now.seen.now), attempt=now.status.attempt or 0
    )
    now = replace(now, status=now.status.model_copy(update={"limit": limit, "eta": None}))
    last = now.last
    pod = now.seen.pod_of(last.number) if last is not None else None
    leaving = pod is not None and pod.deleting
    if last is not None and last.cause is None and last.stopping is None and not leaving:
        return stop(now, Cause.LIMIT_REACHED, reason, message)
    return conclude(now, "Pending", reason, message, announcements=[Announcement(reason, message)], again=0.0)


def ended_by_limit(now: Settled) -> Decision | None:
    """No more is trained: let the newest checkpoint be published where that is asked for and can be, else fail."""
    limit, checkpoint, last = now.status.limit, now.status.checkpoint, now.last
    if limit is None:
        return None
    if checkpoint is None and (unread := head_unread(now, limit.reason)) is not None:
        return unread
    if checkpoint is None:
        return failed(now, limit.reason, f"{limit.message}; no checkpoint had been made")
    kept = f"the checkpoint of step {checkpoint.step} stays in the bucket until the run is deleted"
    if now.seen.spec.limits.at_limit is AtLimit.FAIL:
        return failed(now, limit.reason, f"{limit.message}; {kept}")
    tries = [one for one in now.status.attempts if one.number > limit.attempt]
    spent = sum(one.cause in SPENT for one in tries)
    hopeless = last is not None and last.number > limit.attempt and last.cause == Cause.INVALID
    if hopeless or spent >= TRIES or _publishing_left(now, limit) <= 0:
        why = f": {last.message}" if tries and last is not None else ": no attempt could be made"
        return failed(now, limit.reason, f"{limit.message}; what there is could not be published{why}; {kept}")
    return None


def published(now: Settled, artifact: ArtifactStatus, step: int) -> Decision:
    """Return the end of a run whose newest checkpoint has been published, and verified, at a limit."""
    limit = now.status.limit
    assert limit is not None, "only a limit makes an attempt that publishes alone"
    status = now.status.model_copy(update={"artifact": artifact})
    message = f"{limit.message}; the LoRA of step {step} is published at {artifact.uri}{artifact.file}"
    return failed(replace(now, status=status), limit.reason, message)


def failed(now: Settled, reason: str, message: str) -> Decision:
    """Return the end of a run that has not succeeded."""
    status = now.status.model_copy(update={"completion_time": stamp(now.seen.now), "eta": None})
    said = Announcement("Failed", f"{reason}: {message}", warning=True)
    return conclude(
        now,
        "Failed",
        reason,
        message,
        status=status,
        succeeded=ConditionStatus.FALSE,
        announcements=[said],
        again=0.0,  # its time to live begins
    )


def publishes(now: Settled) -> bool:
    """Whether the newest attempt was made to publish what there is."""
    limit, last = now.status.limit, now.last
    return limit is not None and last is not None and last.number > limit.attempt


def is_outgrown(now: Settled) -> bool:
    """Whether the newest attempt has published all steps that it was made for, and more are wanted by now."""
    found, last = now.seen.storage.artifact, now.last
    if found is None or last is None or last.cause != Cause.FINISHED or publishes(now):
        return False
    return found.is_outgrown(last.number, last.from_step or 0)


def in_the_way(now: Settled, message: str) -> str:
    """Return *message*, of what keeps an attempt from being made; at a limit, what that attempt is for comes first."""
    limit = now.status.limit
    return message if limit is None else f"{limit.message}; what there is cannot be published yet: {message}"


def head_unread(now: Settled, reason: str) -> Decision | None:
    """Before a run is given up: the head knows checkpoints of which no event told, so it is read once more."""
    last, read = now.last, now.seen.storage.read
    if last is None or last.ended is None or (read is not None and read >= instant(last.ended)):
        return None
    message = "looking for a checkpoint in the bucket before the run is ended"
    return conclude(now, "Pending", "ReadingHead", message, actions=[StartJob(Job.READ)], again=RETRY_READ)


def watched(now: Settled, decision: Decision) -> Decision:
    """Return *decision* with a look at the run at the moment in which it will have reached a limit."""
    if decision.status.completion_time is not None or now.seen.spec.suspend or now.seen.run.deleting_since is not None:
        return decision
    limit = decision.status.limit
    if limit is not None:
        due = _publishing_left(now, limit)
    elif limits.reached(now) is not None:
        due = _last_steps_left(now)
    else:
        due = limits.seconds_left(now) or 0.0
    if due <= 0:
        return decision
    return replace(decision, look_again=due if decision.look_again is None else min(due, decision.look_again))


def _publishing_left(now: Settled, limit: LimitStatus) -> float:
    return instant(limit.time) + PUBLISHING - now.seen.now


def _last_steps_left(now: Settled) -> float:
    """Return for how long an attempt that has done all steps is left alone, to publish them; 0 for any other."""
    last, progress = now.last, now.seen.progress
    if last is None or last.cause is not None or progress is None or progress.attempt != last.number:
        return 0.0
    if progress.phase not in (Phase.SAVING, Phase.EXPORTING):
        return 0.0
    return max(0.0, progress.phase_since + LAST_STEPS - now.seen.now)
