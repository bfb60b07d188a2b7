"""Edits of a run that trains: what its pod was made from and has changed since is taken up at a checkpoint.

Placement, limits, queue and what happens on deletion are no part of what a pod was told: they hold at once (the queue
from the next attempt on), and end no attempt.
"""

from __future__ import annotations

from typing import Any, Final

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import canonical
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.decision import Decision
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.stopping import stop
from lorafinetune.engine.times import instant, stamp

YOUNG: Final = 5.0
"""Seconds that an edit is left alone: people often make several."""
FRESH: Final = 10.0
"""Seconds for which a checkpoint counts as just committed."""
PATIENCE: Final = 300.0
"""Seconds that an edit waits for a checkpoint. Then SIGTERM makes one, which costs a save and no step."""
SHORT_LIFE: Final = 180.0
"""Seconds that an attempt trains at least before an edit ends it: so edits cost a start each three minutes at most."""
NEARLY_DONE: Final = 120.0
"""Seconds of training left for which no attempt is ended any more: starting another would take longer."""
NEARLY_DONE_STEPS: Final = 10
"""The same in steps, where their pace is not known."""

SPEC_EDITED: Final = "SpecEdited"
"""Reason of an attempt that was made from other settings than the run has now."""
AT_ONCE: Final = ("placement", "limits", "queueName", "ttlSecondsAfterFinished", "storage.onDelete")
"""Fields that a pod's making is written down with only to tell people that an edit of them has been heard."""

STEPS: Final = "training.steps"

_DIGITS: Final = 12


def settings(spec: LoRAFineTuneSpec) -> str:
    """Return what of *spec* may change while the run lives, as a pod was made with it: field=digest;field=digest ...

    Fields at their defaults do not count, so that a newer operator with more fields ends nobody's attempt.
    """
    parts: dict[str, Any] = {
        "training.steps": spec.training.steps,
        "checkpoint": _given(spec.checkpoint),
        "validation": _given(spec.validation),
        "metrics": _given(spec.metrics),
        "baseModel.cache": spec.base_model.cache,
        "baseModel.credentialsSecret": spec.base_model.credentials_secret,
        "dataset.keepClassImages": spec.dataset.keep_class_images,
        "storage.credentialsSecret": spec.storage.credentials_secret,
        "placement": _given(spec.placement),
        "limits": _given(spec.limits),
        "queueName": spec.queue_name,
        "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished,
        "storage.onDelete": spec.storage.on_delete.value,
    }
    return ";".join(f"{name}={canonical.digest(value)[:_DIGITS]}" for name, value in parts.items())


def changed(made_from: str, wanted: str) -> list[str]:
    """Return the fields in which two answers of :func:`settings` differ; those that one of them lacks do not count."""
    before = dict(part.split("=", 1) for part in made_from.split(";") if "=" in part)
    after = dict(part.split("=", 1) for part in wanted.split(";") if "=" in part)
    return [name for name in after if name in before and before[name] != after[name]]


def edited(now: Settled) -> Decision | None:
    """The user edited what the attempt was made from: end it at a checkpoint, and go on with the new settings."""
    seen, last = now.seen, now.last
    pod = seen.pod_of(last.number) if last is not None and last.cause is None else None
    if pod is None or pod.phase != "Running" or pod.deleting or not pod.settings or now.hold is not None:
        return None
    fields = _taken_up(changed(pod.settings, settings(seen.spec)))
    if not fields or pod.started is None or nearly_done(now):
        return None
    first, last_moment = _from_and_by(now, pod.started)
    if seen.now < first or (not _just_saved(now, pod.attempt) and seen.now < last_moment):
        return None
    return stop(now, Cause.MOVED, SPEC_EDITED, f"{_named(fields)} edited")


def awaited(now: Settled, pod: PodSeen) -> str:
    """Return in words which edits the attempt of *pod* does not know yet, and until when; else the empty string."""
    seen = now.seen
    fields = changed(pod.settings, settings(seen.spec)) if pod.settings else []
    later = _taken_up(fields)
    said = ""
    if later and nearly_done(now):
        others = [name for name in later if name != STEPS]
        said += f"; {_named(others)} edited: not taken up, for it is nearly done" if others else ""
        said += f"; {_named([STEPS])} edited: the next attempt trains the rest" if STEPS in later else ""
    elif later:
        said += f"; {_named(later)} edited: taken up at {_when(now, pod)}"
    # Nobody waits for these, so they are told for some minutes only, or beside what is waited for.
    if later or seen.now - seen.spec_since < PATIENCE:
        at_once = [name for name in fields if name in AT_ONCE and name != "queueName"]
        said += f"; {_named(at_once)} edited: holds already" if at_once else ""
        said += "; spec.queueName was edited: holds from the next attempt on" if "queueName" in fields else ""
    return said


def _when(now: Settled, pod: PodSeen) -> str:
    first, last_moment = _from_and_by(now, pod.started if pod.started is not None else now.seen.now)
    if now.seen.now >= first:
        return f"the next checkpoint, by {stamp(last_moment)} at the latest"
    if first == last_moment:
        return stamp(first)
    return f"the first checkpoint after {stamp(first)}, by {stamp(last_moment)} at the latest"


def _taken_up(fields: list[str]) -> list[str]:
    """Return those of the edited *fields* for which an attempt is ended."""
    return [name for name in fields if name not in AT_ONCE]


def _from_and_by(now: Settled, started: float) -> tuple[float, float]:
    """Return from when on a checkpoint ends the attempt that *started* then, and when it is ended without one."""
    since = now.seen.spec_since
    first = max(since + YOUNG, started + SHORT_LIFE)
    return first, max(first, since + PATIENCE)


def nearly_done(now: Settled) -> bool:
    """Whether so little is left to train that starting another attempt would take longer."""
    steps, progress = now.seen.steps, now.seen.progress
    if steps is None:
        return False
    if progress is None or now.last is None or progress.attempt != now.last.number:
        return steps - (now.status.step or 0) < NEARLY_DONE_STEPS
    left, pace = steps - progress.step, progress.seconds_per_step
    return left * pace < NEARLY_DONE if pace is not None else left < NEARLY_DONE_STEPS


def _just_saved(now: Settled, attempt: int) -> bool:
    newest = now.status.checkpoint
    if newest is None or newest.attempt != attempt or newest.time is None:
        return False
    return now.seen.now - instant(newest.time) <= FRESH


def _named(fields: list[str]) -> str:
    return f"spec.{', spec.'.join(fields)} {'was' if len(fields) == 1 else 'were'}"


def _given(model: Any) -> dict[str, Any] | None:
    """Return what *model* says other than by default."""
    if model is None:
        return None
    said: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return said
