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


def _newer(told: _T | None, known: _T | None) -> _T | None:
    return known if told is None else told
