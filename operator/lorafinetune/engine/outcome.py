"""How a rule's answer becomes the status: one phase, five conditions, one line for people."""

from __future__ import annotations

from collections.abc import Sequence

from lorafinetune.api.status import Condition, ConditionStatus, LoRAFineTuneStatus
from lorafinetune.contract import layout
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry
from lorafinetune.engine.activities import activity, clocked
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.conditions import ConditionType, clip, find, is_false, is_true, put
from lorafinetune.engine.decision import Action, Announcement, Decision


def conclude(
    now: Settled,
    phase: str,
    reason: str,
    message: str,
    *,
    status: LoRAFineTuneStatus | None = None,
    actions: Sequence[Action] = (),
    announcements: Sequence[Announcement] = (),
    again: float | None = None,
    refresh: float | None = None,
    accepted: ConditionStatus = ConditionStatus.TRUE,
    storage_ready: ConditionStatus | None = None,
    running: ConditionStatus = ConditionStatus.FALSE,
    succeeded: ConditionStatus | None = None,
    keep_conditions: bool = False,
    warn: bool = False,
) -> Decision:
    """Return the decision of a rule: *reason* and *message* go unchanged to conditions, event, status and log.

    *keep_conditions* leaves conditions and message as they stand, for runs whose last word has been said.
    *again* is when time alone may change what is to be done, *refresh* when what was told grows old: seconds from now.
    *storage_ready* and *succeeded* absent leave those conditions as they are. *warn* tells the message as a warning
    event when it is new.
    """
    seen = now.seen
    status = now.status if status is None else status
    told = list(announcements)
    if keep_conditions:
        message, reason = status.message or "", phase
    else:
        if warn and seen.status.message != clip(message):
            told.append(Announcement(reason, message, warning=True))
        status = status.model_copy(
            update={
                "conditions": _conditions(
                    now,
                    status,
                    reason,
                    message,
                    accepted=accepted,
                    storage_ready=storage_ready,
                    running=running,
                    succeeded=succeeded,
                ),
                "message": clip(message),
            }
        )
    newest = status.attempts[-1] if status.attempts else None
    holds = newest is not None and newest.cause is None and newest.scheduled is not None
    busy_with = activity(phase, reason, holds_a_node=holds)
    status = status.model_copy(
        update={
            **clocked(status, busy_with, created=seen.run.created, now=seen.now),
            "phase": phase,
            "observed_generation": seen.run.generation,
            "prefix": str(layout.run_prefix(seen.spec.storage.uri, seen.run.namespace, seen.run.name, seen.run.uid)),
        }
    )
    for wait in (now.hold, now.revisit):
        if wait is not None:
            again = wait if again is None else min(again, wait)
    return Decision(
        reason=reason,
        message=message,
        status=status,
        actions=(*actions, *(chore for chore in now.housekeeping if chore not in actions)),
        announcements=(*now.announcements, *told),
        look_again=again,
        refresh=refresh,
        ended=now.ended,
        corrected=now.corrected,
    )


def _conditions(
    now: Settled,
    status: LoRAFineTuneStatus,
    reason: str,
    message: str,
    *,
    accepted: ConditionStatus,
    storage_ready: ConditionStatus | None,
    running: ConditionStatus,
    succeeded: ConditionStatus | None,
) -> list[Condition]:
    seen = now.seen
    conditions = list(status.conditions)

    def say(kind: ConditionType, value: ConditionStatus, reason: str, message: str) -> None:
        nonlocal conditions
        conditions = put(conditions, kind, value, reason, message, now=seen.now, generation=seen.run.generation)

    if accepted is ConditionStatus.FALSE:
        say(ConditionType.ACCEPTED, accepted, reason, message)
    else:
        say(ConditionType.ACCEPTED, accepted, "Accepted", "the spec can be carried out")
    checked = seen.storage.checked
    if storage_ready is not None:
        say(ConditionType.STORAGE_READY, storage_ready, reason, message)
    elif seen.storage.rebuilt is not None and seen.storage.rebuilt.done:
        say(
            ConditionType.STORAGE_READY, ConditionStatus.TRUE, seen.storage.rebuilt.reason, seen.storage.rebuilt.message
        )
    elif checked is not None and checked.ok:
        say(ConditionType.STORAGE_READY, ConditionStatus.TRUE, checked.reason, checked.message)
    elif find(conditions, ConditionType.STORAGE_READY) is None:
        say(ConditionType.STORAGE_READY, ConditionStatus.UNKNOWN, "NotChecked", "not asked yet")
    say(ConditionType.RUNNING, running, reason, message)
    if succeeded is not None:
        say(ConditionType.SUCCEEDED, succeeded, reason, message)
    elif not is_true(conditions, ConditionType.SUCCEEDED) and not is_false(conditions, ConditionType.SUCCEEDED):
        say(ConditionType.SUCCEEDED, ConditionStatus.UNKNOWN, reason, message)
    newest = _newest(now)
    if newest is not None and newest.deviation is not None:
        words = f"the LoRA's bytes may differ from those of an undisturbed run: {newest.deviation}"
        say(ConditionType.EXACT, ConditionStatus.FALSE, "Deviated", words)
    elif newest is not None:
        words = "all steps that count were computed on the device and with the libraries of the plan"
        say(ConditionType.EXACT, ConditionStatus.TRUE, "AsPlanned", words)
    elif find(conditions, ConditionType.EXACT) is None:
        say(ConditionType.EXACT, ConditionStatus.UNKNOWN, "NothingSaved", "no step is durable yet")
    return conditions


def _newest(now: Settled) -> CheckpointEntry | ArtifactEntry | None:
    """Return what counts of the run, as far as this operator has heard or read: artifact, else newest checkpoint."""
    progress, read = now.seen.progress, now.seen.storage.newest
    if progress is not None and progress.artifact is not None:
        return progress.artifact
    told = progress.checkpoint if progress is not None else None
    return max((one for one in (told, read) if one is not None), key=lambda one: (one.attempt, one.step), default=None)
