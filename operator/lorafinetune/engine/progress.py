"""The fold of an attempt's events: what the trainer told us, whatever order and however often it arrived."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from lorafinetune.contract.event import Event, EventType, Phase, Saved
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one attempt has come, as far as it has told."""

    attempt: int
    sequence: int = 0
    """The newest event that is folded in."""
    step: int = 0
    resumed_from: int | None = None
    phase: Phase | None = None
    phase_since: float = 0.0
    """When that phase was first heard of, by our clock."""
    done: int | None = None
    """Items of the phase that are done, of *total*."""
    total: int | None = None
    total_steps: int | None = None
    """Optimizer steps of the run, as the trainer knows them."""
    loss: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None
    memory_bytes: int | None = None
    seconds_per_step: float | None = None
    save_seconds: float | None = None
    """What one checkpoint costs the training."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints, as they are made now."""
    trained_from: int | None = None
    """The first step that we heard of as it was done."""
    trained_since: float = 0.0
    """When that was, by our clock."""
    trained_until: float = 0.0
    """When we heard of the newest step."""
    picture_rows: int = 0
    """Rows of validation pictures made since then."""
    picture_seconds: float = 0.0
    """How long those took together."""
    checkpoint: CheckpointEntry | None = None
    artifact: ArtifactEntry | None = None
    saved: Saved | None = None
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    """The code that the trainer said it would end with."""
    heard: float = 0.0
    """When the newest event arrived, by our clock."""

    @property
    def pace(self) -> float | None:
        """Seconds that a step took in the mean, with all that was done beside it; None before the second one."""
        steps = self.step - self.trained_from if self.trained_from is not None else 0
        return (self.trained_until - self.trained_since) / steps if steps > 0 else None


def is_news(progress: Progress, event: Event) -> bool:
    """Whether *event* belongs to this attempt and is newer than all that is folded in."""
    return event.attempt == progress.attempt and event.sequence > progress.sequence


def fold(progress: Progress, event: Event, now: float) -> Progress:
    """Return *progress* with *event* in it. Old, repeated and foreign events change nothing; steps never go down."""
    if not is_news(progress, event):
        return progress
    known = progress.checkpoint
    newer = event.checkpoint if known is None or (event.checkpoint and event.checkpoint.step >= known.step) else known
    began = event.phase is not None and event.phase is not progress.phase
    folded = replace(
        progress,
        sequence=event.sequence,
        step=max(progress.step, event.step),
        phase=event.phase or progress.phase,
        phase_since=now if began else progress.phase_since,
        done=event.done if began else _newer(event.done, progress.done),
        total=event.total if began else _newer(event.total, progress.total),
        total_steps=_newer(event.total_steps, progress.total_steps),
        loss=_newer(event.loss, progress.loss),
        images_per_second=_newer(event.images_per_second, progress.images_per_second),
        mfu=_newer(event.mfu, progress.mfu),
        memory_bytes=_newer(event.memory_bytes, progress.memory_bytes),
        seconds_per_step=_newer(event.seconds_per_step, progress.seconds_per_step),
        save_seconds=_newer(event.save_seconds, progress.save_seconds),
        checkpoint_every_steps=_newer(event.checkpoint_every_steps, progress.checkpoint_every_steps),
        checkpoint=newer,
        artifact=event.artifact or progress.artifact,
        saved=event.saved or progress.saved,
        heard=now,
    )
    folded = _trained(progress, folded, event, now)
    if event.type is EventType.STARTED:
        folded = replace(folded, resumed_from=event.step)
    if event.type is EventType.FAILED:
        folded = replace(folded, reason=event.reason or "", message=event.message, exit_code=event.exit_code)
    return folded


def _trained(before: Progress, after: Progress, event: Event, now: float) -> Progress:
    """Return *after* with the time in it that steps and pictures take, seen from outside."""
    if before.phase is Phase.VALIDATING and after.phase is not Phase.VALIDATING and before.trained_from is not None:
        seconds = before.picture_seconds + now - before.phase_since
        after = replace(after, picture_rows=before.picture_rows + 1, picture_seconds=seconds)
    if event.phase is not Phase.TRAINING or event.step <= before.step:
        return after
    if before.trained_from is None:
        after = replace(after, trained_from=event.step, trained_since=now)
    return replace(after, trained_until=now)


def _newer(told: _T | None, known: _T | None) -> _T | None:
    return known if told is None else told
