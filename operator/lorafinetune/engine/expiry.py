"""Runs that have ended and are to be deleted after a while (spec.ttlSecondsAfterFinished). Their artifact stays."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.conditions import ConditionType, clip, is_false, is_true
from lorafinetune.engine.decision import Announcement, Decision, DeleteRun
from lorafinetune.engine.outcome import conclude
from lorafinetune.engine.times import instant, stamp

_NOTE: Final = "; this resource is deleted at "
LONGEST_WAIT: Final = 3600.0
"""Seconds between two looks at a run that waits to be deleted: waits of months are not kept in a timer."""


def expired(now: Settled) -> Decision | None:
    """The run has ended, its storage holds what is to stay, and its time to live is over: delete the resource."""
    due = expires(now)
    if due is None or now.seen.now < due:
        return None
    message = f"deleted by spec.ttlSecondsAfterFinished: {now.seen.spec.ttl_seconds_after_finished} s after its end"
    said = Announcement("Expired", message)
    phase = "Succeeded" if is_true(now.status.conditions, ConditionType.SUCCEEDED) else "Failed"
    actions = [DeleteRun()]
    return conclude(now, phase, "", "", keep_conditions=True, actions=actions, announcements=[said], again=0.0)


def expires(now: Settled) -> float | None:
    """Return when the run is to be deleted, Unix seconds; None if it is not, or has not ended."""
    ttl, ended = now.seen.spec.ttl_seconds_after_finished, now.status.completion_time
    if ttl is None or ended is None:
        return None
    succeeded = is_true(now.status.conditions, ConditionType.SUCCEEDED) and now.status.pruned
    if not succeeded and not is_false(now.status.conditions, ConditionType.SUCCEEDED):
        return None
    return instant(ended) + ttl


def noted(now: Settled) -> LoRAFineTuneStatus:
    """Return the status of a run that has ended, whose message says when it will be deleted, if it will."""
    said = (now.status.message or "").split(_NOTE)[0]
    due = expires(now)
    if due is not None:
        note = f"{_NOTE}{stamp(due)} (spec.ttlSecondsAfterFinished)"
        said = f"{clip(said, 900)}{note}"
    return now.status if said == now.status.message else now.status.model_copy(update={"message": said})


def wait(now: Settled) -> float | None:
    """Return in how many seconds to look again at a run that has ended; None = when something changes."""
    due = expires(now)
    return None if due is None else min(LONGEST_WAIT, max(0.0, due - now.seen.now))
