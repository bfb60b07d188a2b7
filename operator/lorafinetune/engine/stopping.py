"""Attempts that we end ourselves: first it is written down why, then the pod is deleted.

So no crash between the two can book our own doing as a preemption.
"""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.decision import Announcement, Decision, DeletePod
from lorafinetune.engine.entries import MAX_REASON
from lorafinetune.engine.outcome import conclude

SAVING: Final = 30.0
"""Seconds after which an attempt that is being ended is looked at again."""


def marked(now: Settled, cause: Cause, reason: str, message: str) -> LoRAFineTuneStatus:
    """Return the status with it written down that the newest attempt is to be ended, and for what *cause*."""
    last = now.last
    assert last is not None, "there is an attempt to be ended"
    entry = last.model_copy(
        update={"stopping": cause.value, "reason": clip(reason, MAX_REASON), "message": clip(message)}
    )
    return now.status.model_copy(update={"attempts": [*now.status.attempts[:-1], entry]})


def stop(now: Settled, cause: Cause, reason: str, message: str) -> Decision:
    """Write down that the newest attempt is to be ended, for *cause*; the rule below does it."""
    status = marked(now, cause, reason, message)
    said = Announcement(reason, message)
    phase = "Running" if status.attempts[-1].started is not None else "Starting"
    return conclude(now, phase, reason, message, status=status, announcements=[said], again=0.0)


def stopping(now: Settled) -> Decision | None:
    """We are ending the attempt: its pod is deleted, and its trainer saves."""
    last = now.last
    if last is None or last.cause is not None or last.stopping is None:
        return None
    pod = now.seen.pod_of(last.number)
    if pod is None or now.hold is not None:
        return None
    actions = [] if pod.deleting else [DeletePod(pod.name, pod.uid)]
    message = f"ending attempt {last.number} ({last.message})"
    phase = "Running" if last.started is not None else "Starting"
    return conclude(now, phase, "Moving", message, actions=actions, again=SAVING)
