"""What the UNet is told of the images: latents in all their cuts, and prompts in all their orders, ready to draw from.

Nothing here is chosen: which cut, flip and order a place of the training shows is said by ``training.order``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Latents:
    """One cut of one image, as the VAE sees it: scaled, float32, on the CPU."""

    mean: torch.Tensor
    """Of the posterior, (channels, height, width)."""
    std: torch.Tensor
    time_ids: torch.Tensor
    """Original height and width, crop top and left, target height and width, in pixels; float32, (6,)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One caption, as both text encoders see it."""

    embeddings: torch.Tensor
    """(tokens, width); a long caption has a multiple of 77 tokens."""
    pooled: torch.Tensor
    """(width,)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image."""

    name: str
    """Of its file, for messages."""
    cuts: tuple[Latents, ...]
    """One, or as many as there are places to cut at; all of one shape."""
    flipped: tuple[Latents, ...]
    """The same cuts mirrored; empty where nothing is mirrored."""
    captions: tuple[str, ...]
    """Its caption, in one order or several."""
    prompts: tuple[Prompt, ...]
    """One for each caption; empty where the text encoders are trained and every step encodes anew."""
    repeats: int = 1
    """How often an epoch shows it."""


@dataclass(frozen=True, slots=True)
class Samples:
    """All that a run draws from."""

    instances: tuple[Sample, ...]
    classes: tuple[Sample, ...] = ()
    """Images of the class, for prior preservation; they have an order of their own."""
    empty: Prompt | None = None
    """The prompt without words, where captions are dropped."""
    validation: tuple[Prompt, ...] = ()
    """The prompts of the validation pictures, the negative one last; none where the text encoders are trained."""
    validation_words: tuple[str, ...] = ()
    """What each of them says: the config may have changed since."""

    @property
    def host_bytes(self) -> int:
        """What all of it takes in memory."""
        every = [sample for group in (self.instances, self.classes) for sample in group]
        latents = {id(one): one for sample in every for one in (*sample.cuts, *sample.flipped)}
        prompts = {id(one): one for sample in every for one in sample.prompts}
        prompts |= {id(one): one for one in (*self.validation, *((self.empty,) if self.empty is not None else ()))}
        tensors = [tensor for one in latents.values() for tensor in (one.mean, one.std, one.time_ids)]
        tensors += [tensor for prompt in prompts.values() for tensor in (prompt.embeddings, prompt.pooled)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
