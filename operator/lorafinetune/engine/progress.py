"""The fold of an attempt's events: what the trainer told us, whatever order and however often it arrived."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorafinetune.contract.event import Event, EventType, Phase, Saved
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one attempt has come, as far as it has told."""

    attempt: int
    sequence: int = 0
    """The newest event that is folded in."""
    step: int = 0
    resumed_from: int | None = None
    phase: Phase | None = None
    loss: float | None = None
    seconds_per_step: float | None = None
    checkpoint: CheckpointEntry | None = None
    artifact: ArtifactEntry | None = None
    saved: Saved | None = None
    reason: str = ""
    message: str = ""
    heard: float = 0.0
    """When the newest event arrived, by our clock."""


def is_news(progress: Progress, event: Event) -> bool:
    """Whether *event* belongs to this attempt and is newer than all that is folded in."""
    return event.attempt == progress.attempt and event.sequence > progress.sequence


def fold(progress: Progress, event: Event, now: float) -> Progress:
    """Return *progress* with *event* in it. Old, repeated and foreign events change nothing; steps never go down."""
    if not is_news(progress, event):
        return progress
    known = progress.checkpoint
    newer = event.checkpoint if known is None or (event.checkpoint and event.checkpoint.step >= known.step) else known
    folded = replace(
        progress,
        sequence=event.sequence,
        step=max(progress.step, event.step),
        phase=event.phase or progress.phase,
        loss=progress.loss if event.loss is None else event.loss,
        seconds_per_step=progress.seconds_per_step if event.seconds_per_step is None else event.seconds_per_step,
        checkpoint=newer,
        artifact=event.artifact or progress.artifact,
        saved=event.saved or progress.saved,
        heard=now,
    )
    if event.type is EventType.STARTED:
        folded = replace(folded, resumed_from=event.step)
    if event.type is EventType.FAILED:
        folded = replace(folded, reason=event.reason or "", message=event.message)
    return folded
