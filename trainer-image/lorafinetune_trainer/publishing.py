"""The last act of a run: everything that people take away, gathered and made durable as the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.storage import errors
from lorafinetune_trainer import planning
from lorafinetune_trainer.conditioning import pinned
from lorafinetune_trainer.product import card, curve, export
from lorafinetune_trainer.product.intermediate import Intermediate
from lorafinetune_trainer.product.product import Product
from lorafinetune_trainer.sampling import validation
from lorafinetune_trainer.sampling.validation import Validation
from lorafinetune_trainer.telling import metrics as figures
from lorafinetune_trainer.telling.metrics import Metrics
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch

EXPORT_GRACE: Final = 5.0
"""Seconds for which SIGTERM waits while the artifact is being published."""


def publish(
    wires: Wires,
    product: Product,
    weights: Callable[[], Mapping[str, torch.Tensor]],
    *,
    intermediate: Intermediate,
    metrics: Metrics,
    pictures: Validation | None,
    provenance: Mapping[str, str] | None = None,
) -> ExitCode:
    """Make the artifact durable: LoRA, card, pictures, figures, LoRAs of chosen steps. The last step is durable.

    *weights* returns those of the product's last step. *provenance* says on what they were computed, where that was not
    this attempt.
    """
    wires.enter(Phase.EXPORTING)
    lines, extra = metrics.published(product.steps)
    if (drawn := curve.draw(figures.losses(lines))) is not None:
        extra[export.CURVE] = drawn
    if pictures is not None:
        extra |= pictures.files()
    run, checkpoints = wires.config.run, wires.checkpoints
    intermediate.beside(product.steps)  # a notice may have been too short for it, and no checkpoint followed
    seconds = math.fsum(float(one.get("secondsPerStep", 0.0)) for one in lines)

    def described() -> Iterator[tuple[str, bytes]]:  # last: only then is it known which LoRAs of chosen steps are whole
        written = card.write(
            product,
            card.History(f"{run.namespace}/{run.name}", run.uid, checkpoints.attempt, seconds),
            samples=sorted(one for one in extra if one.startswith(f"{layout.SAMPLES}{product.steps:08}-")),
            grid=validation.GRID if validation.GRID in extra else None,
            curve=export.CURVE in extra,
            intermediate=intermediate.names,
        )
        yield export.CARD, written.encode()

    wires.ending.grace = EXPORT_GRACE
    files = export.files(weights(), product, extra=extra)
    kept = intermediate.published(wires.bucket, checkpoints.head.artifact, wires.reporter.note)
    if provenance is None:
        provenance = computed_on(planning.device(), planning.libraries(wires.config.training))
    entry = checkpoints.publish(
        product.steps, product.updates, files, provenance, chain(kept, _class_images(wires), described())
    )
    where = f"the LoRA {product.extent}is at {wires.bucket.uri(entry.folder)}"
    wires.reporter.tell(EventType.FINISHED, product.steps, phase=Phase.EXPORTING, artifact=entry, message=where)
    try:
        checkpoints.tidy()  # a superseded artifact
        intermediate.discard(wires.bucket)
    except (errors.StorageError, Fenced, HeadLost) as error:  # the product is safe; the operator sweeps what is left
        wires.reporter.note(f"left-overs could not be deleted: {error}")
    return ExitCode.FINISHED


def computed_on(device: str, libraries: Mapping[str, str]) -> dict[str, str]:
    """Return what the artifact's manifest says of it."""
    return {"device": device, **{f"library.{name}": version for name, version in libraries.items()}}


def _class_images(wires: Wires) -> Iterator[tuple[str, bytes]]:
    entry = wires.checkpoints.head.conditioning
    if wires.config.dataset.keep_class_images and entry is not None:
        for name, body in pinned.made(wires.bucket, entry, wires.reporter.note):
            yield layout.CLASS + name, body
