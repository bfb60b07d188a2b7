"""One attempt in virtual time: its pod as the operator sees it, and its trainer as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from lorafinetune.contract.event import Phase, Saved, Termination
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine.observation import PodSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.simulate.agenda import Date
from lorafinetune.simulate.places import Place, Zone
from lorafinetune.simulate.training import Rhythm, Spent, Training

TELLS_EVERY: Final = 10.0
"""Seconds between two events of a trainer at work."""
DIGEST: Final = "0" * 64
KILLED: Final = 128 + 9


@dataclass(slots=True)
class Attempt:
    """A pod from its creation to its end."""

    pod: PodSeen
    place: Place
    rhythm: Rhythm
    publishing: bool = False
    """It was made to publish what there is, and trains nothing."""
    zone: Zone | None = None
    """Where its node is, or is being made."""
    arrival: Date | None = None
    """When a node that is being made is there."""
    told_dry: Date | None = None
    """When it is told that there is no capacity."""
    training: Training | None = None
    """Its trainer, once its container has started."""
    next_word: Date | None = None
    """The trainer's next event that something may hang on."""
    saving: Date | None = None
    """When it is done with saving, once it was asked to stop."""
    notice: Date | None = None
    """When its node ends, once the platform has said so."""
    stopped: float | None = None
    """When it trained its last step."""
    ended: float | None = None
    """When its process ended, whether or not anybody knows of that."""
    kept: int = 0
    """Steps of the run that were durable when it ended."""
    newest: CheckpointEntry | None = None
    """The last line that was made for the head."""
    words: Progress | None = None
    """What its trainer said last, once it is dead."""

    @property
    def is_alive(self) -> bool:
        """Whether its trainer runs, as it is and not as it is known."""
        return self.training is not None and self.ended is None

    @property
    def seconds(self) -> float:
        """For how long it has held its node, once its process has ended."""
        return self.ended - self.training.started if self.ended is not None and self.training is not None else 0.0

    def change(self, **changes: Any) -> None:
        """Change what is seen of its pod."""
        self.pod = replace(self.pod, **changes)

    def told(self, now: float) -> Progress | None:
        """Return what its trainer has told the operator until *now*, every few seconds; None before its first step."""
        if self.words is not None or self.training is None or now < self.training.began:
            return self.words
        training = self.training
        until = min(now, self.stopped if self.stopped is not None else now)
        heard = training.began + (until - training.began) // TELLS_EVERY * TELLS_EVERY
        step, durable = training.step(until), training.durable(until)
        return Progress(
            attempt=self.pod.attempt,
            sequence=1 + int(until - training.began),
            step=step,
            resumed_from=training.from_step,
            phase=Phase.EXPORTING if until >= training.trained else Phase.TRAINING,
            phase_since=training.began,
            total_steps=training.steps,
            seconds_per_step=training.effort.step if step > training.from_step else None,
            save_seconds=training.effort.save if durable > training.from_step else None,
            checkpoint_every_steps=training.rhythm.every,
            checkpoint=self.entry(durable) if durable > training.from_step else None,
            trained_from=training.from_step if step > training.from_step else None,
            trained_since=training.began,
            trained_until=training.reached(step),
            heard=heard,
        )

    def entry(self, step: int) -> CheckpointEntry:
        """Return the head's line for its checkpoint of *step*."""
        if self.newest is None or self.newest.step != step:
            self.newest = CheckpointEntry(attempt=self.pod.attempt, step=step, manifest_sha256=DIGEST)
        return self.newest

    def end(self, now: float, kept: int, saved: Saved | None, code: int | None) -> None:
        """Its process ends; *code* None means that nobody is left to tell of it."""
        assert self.training is not None, "there is a process"
        self.words = self.told(now)
        if self.words is not None and saved is not None:
            entry = self.entry(kept) if kept > self.training.from_step else self.words.checkpoint
            self.words = replace(self.words, checkpoint=entry, saved=saved)
        self.ended, self.kept = now, kept
        if self.stopped is None:
            self.stopped = now
        for date in (self.next_word, self.saving):
            if date is not None:
                date.call_off()
        if code is None:
            return
        last = Termination(
            exit_code=code, step=self.training.step(self.stopped), durable_step=kept, saved=saved, phase=Phase.TRAINING
        )
        self.change(
            phase="Succeeded" if code == ExitCode.FINISHED else "Failed",
            ended=now,
            exit_code=code,
            container_reason="Completed" if code == ExitCode.FINISHED else "Error",
            termination=None if code == KILLED else last,
        )

    def spent(self) -> Spent:
        """Return what its seconds went into, once it has ended."""
        if self.training is None or self.ended is None or self.stopped is None:
            return Spent()
        return self.training.spent(self.stopped, self.ended, self.kept)
