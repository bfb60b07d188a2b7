"""What is known of a finished LoRA besides its weights: all that headers, scales and the model card are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Prediction

LAYERS_PER_BLOCK: Final = 2
"""Of the real SDXL's UNet."""
MAX_CONCEPTS: Final = 5
"""Different captions of a data set that may be its concepts' names, and are no descriptions of each image."""


class Shown(NamedTuple):
    """One image, as it was shown."""

    caption: str
    repeats: int = 1
    """How often an epoch showed it."""
    folder: str = ""
    """The name of its concept's folder (``3_sks dog``), without those around it; empty where it is in none."""

    @property
    def concept(self) -> str:
        """The words of its folder, which are the captions of those that have none of their own."""
        return self.folder.partition("_")[2].strip()


@dataclass(frozen=True, slots=True)
class Product:
    """A LoRA after *steps* steps of a run."""

    config: RunConfig
    plan: Plan
    images: int
    """Instance images."""
    steps: int
    updates: int
    """Steps that changed the weights."""
    layers_per_block: int = LAYERS_PER_BLOCK
    """Of the UNet: kohya's names count its blocks another way."""
    captions: tuple[Shown, ...] = ()
    """Of each instance image."""
    class_images: int = 0
    prediction: str = Prediction.EPSILON
    """What the UNet predicts."""
    base_zero_snr: bool = False
    """Whether the base model's own noise schedule ends in pure noise."""
    planned: int | None = None
    """Steps that the run was to have, where it was stopped at a limit before. No header tells of it: the LoRA is the
    same as that of a run of so few steps."""

    @property
    def extent(self) -> str:
        """Of how many steps it is, in words; nothing where it is of all."""
        if self.planned is None:
            return ""
        return f"of step {self.steps} of {self.planned}, where the run was stopped at a limit, "

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether it was trained with a noise schedule that ends in pure noise, by its own choice or the base's."""
        return self.config.training.zero_terminal_snr or self.base_zero_snr

    @property
    def triggers(self) -> tuple[str, ...]:
        """What calls it up, as far as that is known: the prompt for all, else what captions or concepts share.

        Where folders named as kohya's give captions, it is their words (at most MAX_CONCEPTS), and the prompt for all
        besides if it is shown, too.
        """
        words = tuple(sorted({one.concept for one in self.captions if one.concept == one.caption} - {""}))
        if prompt := (self.config.dataset.instance_prompt or "").strip():
            rest = tuple(one for one in words if one != prompt)
            return rest[:MAX_CONCEPTS] if self._named_by_folders else (prompt, *rest)[:MAX_CONCEPTS]
        if words:
            return words[:MAX_CONCEPTS]
        captions = dict.fromkeys(sorted(one.caption for one in self.captions if one.caption))
        if len(captions) == 1 or (len(captions) <= MAX_CONCEPTS and 2 * len(captions) <= len(self.captions)):
            return tuple(captions)
        beginnings = {caption.split(",")[0].strip() for caption in captions if "," in caption}
        return tuple(beginnings) if len(beginnings) == 1 and all("," in one for one in captions) else ()

    @property
    def _named_by_folders(self) -> bool:
        """Whether every image is shown with the words of its folder, so that no other prompt was ever seen."""
        prompt = (self.config.dataset.instance_prompt or "").strip()
        return bool(self.captions) and all(one.caption == one.concept != prompt for one in self.captions)

    @property
    def images_per_step(self) -> int:
        """Images that one step sees: with class images as many of these besides."""
        return self.config.training.images_per_step * (2 if self.class_images else 1)

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return self.config.training.lora.rank

    @property
    def alpha(self) -> float:
        """Alpha of the adapter, as the user set it."""
        return self.config.training.lora.full_alpha

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.config.training.lora.scale

    @property
    def written_alpha(self) -> float:
        """The alpha for loaders that know alpha / rank only: with rsLoRA another than the user's."""
        return self.alpha * math.sqrt(self.rank) if self.config.training.lora.rs_lora else self.alpha
