"""What the conditioning is computed from, and under which name each result is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorafinetune.contract import canonical
from lorafinetune.contract.training import Training
from lorafinetune_trainer.data import buckets, captions
from lorafinetune_trainer.data.buckets import Frame
from lorafinetune_trainer.data.dataset import Image

_VERSION: Final = "2"
"""Enters every key: raise it when the computation changes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What latents and embeddings depend on, besides images and captions."""

    training: Training
    vae_digest: str
    encoders_digest: str

    def frame(self, image: Image) -> Frame:
        """Return how *image* is scaled and cut."""
        return buckets.frame(
            image.size,
            self.training.resolution,
            square=not self.training.aspect_buckets,
            crop_key=image.sha256 if self.training.random_crop else None,
            seed=self.training.seed,
        )

    def orders(self, caption: str) -> tuple[str, ...]:
        """Return *caption* in all orders that it is shown in: as it is, where captions are not shuffled."""
        asked = self.training.captions
        return captions.orders(self.training.seed, caption, asked.keep_tokens) if asked.shuffle else (caption,)

    def latents_key(self, image: Image) -> str:
        """Name of the object that holds the latents of *image*, in all cuts."""
        frame = self.frame(image)
        shape = [frame.original, frame.scaled, frame.target, frame.cuts, self.training.random_flip]
        return canonical.digest(["latents", _VERSION, image.sha256, *shape, self.vae_digest])

    def prompts_key(self, orders: tuple[str, ...]) -> str:
        """Name of the object that holds the embeddings of one caption, in all *orders*."""
        return canonical.digest(["prompts", _VERSION, orders, self.encoders_digest])
