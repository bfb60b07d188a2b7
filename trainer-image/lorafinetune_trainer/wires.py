"""What all rooms of one attempt are connected to, once the head has been claimed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.saving.checkpoints import Checkpoints
from lorafinetune_trainer.telling.report import Reporter


@dataclass(frozen=True, slots=True)
class Wires:
    """The attempt's config, bucket, head, voice and end."""

    config: RunConfig
    ending: Ending
    bucket: Bucket
    """Stands on the run's own prefix."""
    urgent: Bucket
    """The same, giving up early: for what the notice, or the training, cannot wait for."""
    checkpoints: Checkpoints
    reporter: Reporter
    scratch: Path

    def enter(self, phase: Phase, message: str = "") -> None:
        """Begin another phase, and say so."""
        standing = self.ending.standing
        standing.phase = phase
        self.reporter.tell(EventType.PROGRESS, standing.step, phase=phase, message=message)

    def open(self, location: layout.Location) -> Bucket:
        """Return another place at the same endpoint."""
        return self.bucket.at(location)
