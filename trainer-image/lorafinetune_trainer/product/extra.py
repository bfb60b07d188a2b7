"""What is published with a LoRA for people to look at: pictures, their grid, figures of the steps, the loss drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lorafinetune.contract import layout
from lorafinetune_trainer.product import curve
from lorafinetune_trainer.product.curve import Losses
from lorafinetune_trainer.product.export import CURVE

GRID: Final = "grid.png"
"""All validation pictures on one sheet."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Files of the artifact beside the LoRA, and what the model card shows of them."""

    files: dict[str, bytes]
    """By name."""

    @property
    def samples(self) -> list[str]:
        """Names of the pictures of the last step that has some."""
        named = sorted(name for name in self.files if name.startswith(layout.SAMPLES))
        return [name for name in named if name.rpartition("-")[0] == named[-1].rpartition("-")[0]]

    @property
    def grid(self) -> str | None:
        """Name of the grid."""
        return GRID if GRID in self.files else None

    @property
    def curve(self) -> bool:
        """Whether the loss is drawn."""
        return CURVE in self.files


def gather(figures: Mapping[str, bytes], pictures: Mapping[str, bytes], losses: Losses) -> Extra:
    """Return *figures* and *pictures*, both by name, and the curve of *losses*."""
    drawn = curve.draw(losses)
    return Extra({**figures, **pictures, **({CURVE: drawn} if drawn is not None else {})})
