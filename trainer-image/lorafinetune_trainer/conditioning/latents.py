"""Pictures to latents: the VAE, in float32, one cut at a time; before the first step and never again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Part
from lorafinetune_trainer.conditioning.samples import Latents
from lorafinetune_trainer.data.buckets import Frame
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.failure import invalid

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Cuts:
    """One image, scaled and cut at all its places."""

    name: str
    frame: Frame
    pixels: tuple[NDArray[np.uint8], ...]
    """One for each place, (height, width, 3)."""


def cuts(dataset: Dataset, image: Image, frame: Frame) -> Cuts:
    """Read *image*, scale it and cut it as *frame* says; needs no model, so it may run ahead of one."""
    from PIL import Image as pillow  # noqa: N813

    picture = dataset.decode(image, lambda one: one.resize(frame.scaled, pillow.Resampling.LANCZOS))
    scaled = np.asarray(picture, dtype=np.uint8)
    width, height = frame.target
    pixels = tuple(scaled[top : top + height, left : left + width] for left, top in frame.cuts)
    return Cuts(image.name, frame, pixels)


def encoder(part: Part, device: torch.device, *, flips: bool) -> Callable[[Cuts], dict[str, torch.Tensor]]:
    """Load the VAE, in float32, and return the function that computes an image's latents, with *flips* mirrored too.

    One cut at a time: a batch rounds differently from single images.
    """
    import torch

    vae = parts.load_vae(part, torch.float32).to(device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def posterior(name: str, pixels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.from_numpy(np.array(pixels)).to(device, torch.float32).permute(2, 0, 1)
        found = vae.encode((values / 127.5 - 1.0).unsqueeze(0)).latent_dist
        mean, std = ((found.mean - shift) * scale)[0].cpu(), (found.std * scale)[0].cpu()
        if not (bool(mean.isfinite().all()) and bool(std.isfinite().all())):
            raise invalid(
                "NaNLatents",
                f"the VAE makes NaN of {name}: its weights overflow; name a fixed one in baseModel.vae, "
                "e.g. hf://madebyollin/sdxl-vae-fp16-fix",
            )
        return mean.contiguous(), std.contiguous()

    def encode(given: Cuts) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for number, (place, pixels) in enumerate(zip(given.frame.cuts, given.pixels, strict=True)):
            for mirrored in (False, True) if flips else (False,):
                label = _label(number, mirrored)
                mean, std = posterior(given.name, pixels[:, ::-1] if mirrored else pixels)
                times = given.frame.time_ids(place, mirrored=mirrored)
                found |= {f"{label}.mean": mean, f"{label}.std": std}
                found[f"{label}.time_ids"] = torch.tensor(times, dtype=torch.float32)
        return found

    return encode


def kept(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Latents, ...], tuple[Latents, ...]]:
    """Return what an :func:`encoder` made of one image: its cuts, and its cuts mirrored (none without flips)."""

    def every(mirrored: bool) -> tuple[Latents, ...]:
        count = sum(f"{_label(number, mirrored)}.mean" in tensors for number in range(len(tensors)))
        labels = [_label(number, mirrored) for number in range(count)]
        return tuple(
            Latents(tensors[f"{one}.mean"], tensors[f"{one}.std"], tensors[f"{one}.time_ids"]) for one in labels
        )

    return every(False), every(True)


def _label(number: int, mirrored: bool) -> str:
    return f"mirrored.{number}" if mirrored else f"cut.{number}"
