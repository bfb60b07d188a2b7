"""Pictures to latents: the VAE, in float32, one image at a time; before the first step and never again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Part
from lorafinetune_trainer.conditioning.pinned import Recipe
from lorafinetune_trainer.data.dataset import Dataset, Image
from lorafinetune_trainer.failure import invalid

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture


def crop(picture: Picture, resolution: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Scale the shorter edge of *picture* to *resolution* pixels and cut the square out of the middle.

    Returns the pixels, (resolution, resolution, 3) in 0 ... 255, and (top, left) of the cut as it is and mirrored.
    """
    from PIL import Image as pillow  # noqa: N813

    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(edge * scale)) for edge in picture.size)
    scaled = picture.resize((width, height), pillow.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    cut = scaled.crop((left, top, left + resolution, top + resolution))
    return np.asarray(cut, dtype=np.uint8), (top, left), (top, width - resolution - left)


def encoder(
    dataset: Dataset, part: Part, recipe: Recipe, device: torch.device
) -> Callable[[Image], dict[str, torch.Tensor]]:
    """Load the VAE, in float32, and return the function that computes the latents of an image.

    One image at a time: a batch rounds differently from single images.
    """
    import torch

    vae = parts.load_vae(part, torch.float32).to(device)
    scale, shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def posterior(name: str, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
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

    def encode(image: Image) -> dict[str, torch.Tensor]:
        picture = dataset.picture(image)
        pixels, place, mirrored = crop(picture, recipe.resolution)
        size = (picture.height, picture.width)
        target = (recipe.resolution, recipe.resolution)
        mean, std = posterior(image.name, pixels)
        found = {"mean": mean, "std": std, "time_ids": torch.tensor([*size, *place, *target], dtype=torch.float32)}
        if recipe.flips:
            found["flipped_mean"], found["flipped_std"] = posterior(image.name, pixels[:, ::-1])
            found["flipped_time_ids"] = torch.tensor([*size, *mirrored, *target], dtype=torch.float32)
        return found

    return encode
