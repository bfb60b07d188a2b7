"""What is told of each step: an event to the operator and the terminal, and a line to the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafinetune.contract.event import EventType, Phase
from lorafinetune_trainer.telling import metrics, throughput
from lorafinetune_trainer.telling.metrics import Metrics
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    from lorafinetune_trainer.training.loop import Progress


@dataclass(frozen=True, slots=True)
class Steps:
    """Tells of one attempt's steps."""

    wires: Wires
    metrics: Metrics
    operations: float | None
    """Floating-point operations of training on one image, where that is known."""
    peak: float | None
    """Peak rate of the GPU, where that is known."""

    def tell(self, progress: Progress, *, save_seconds: float | None, checkpoint_every_steps: int) -> None:
        """Tell of one step, what a checkpoint costs, and how often one is made; returns at once."""
        share = throughput.share(self.operations, progress.images_per_second, self.peak)
        self.metrics.add(
            metrics.line(
                progress.step,
                self.wires.checkpoints.attempt,
                loss=progress.loss,
                learningRate=progress.learning_rate,
                gradientNorm=progress.gradient_norm,
                secondsPerStep=progress.seconds_per_step,
                imagesPerSecond=progress.images_per_second,
                mfu=share,
                memoryBytes=progress.memory_bytes,
            )
        )
        self.wires.reporter.tell(
            EventType.PROGRESS,
            progress.step,
            phase=Phase.TRAINING,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            gradient_norm=progress.gradient_norm,
            seconds_per_step=progress.seconds_per_step,
            images_per_second=progress.images_per_second,
            mfu=share,
            memory_bytes=progress.memory_bytes,
            save_seconds=save_seconds,
            checkpoint_every_steps=checkpoint_every_steps,
        )


def begin(wires: Wires, unet: Mapping[str, Any], device: str, *, step: int, total: int) -> Steps:
    """Return what tells of the steps after *step*, of *total*; *unet* is its config, *device* the GPU's name."""
    training = wires.config.training
    wires.reporter.total_steps = total
    kept = Metrics(
        wires.bucket,
        wires.urgent,
        attempt=wires.checkpoints.attempt,
        step=step,
        tensor_board=wires.config.metrics.tensor_board,
        note=wires.reporter.note,
    )
    kept.fold()
    return Steps(
        wires,
        kept,
        throughput.operations(unet, training.resolution, checkpointing=training.gradient_checkpointing),
        throughput.peak(device, training.precision),
    )
