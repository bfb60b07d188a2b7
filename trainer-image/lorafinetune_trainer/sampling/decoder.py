"""Latents to pixels: the VAE in float32, in tiles where the picture is large."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.training import Precision
from lorafinetune_trainer.base import fetching, parts, supply
from lorafinetune_trainer.base.files import Files, Part
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch

TILED_FROM: Final = 1024
"""Pixels of an edge from which on a picture is decoded in tiles: whole, its activations take gigabytes."""
TILE: Final = 512


def fetch(wires: Wires, files: Files, device: torch.device) -> Decoder:
    """Bring the VAE to this machine, where it is not among *files*, the base model's that are there; and load it."""
    import torch

    source, means = wires.config.base_model, Means(wires.open, wires.scratch)
    if source.vae is not None:
        part = fetching.fetch_vae(source, means)
    elif "vae" in files.parts:
        part = Part(files, "vae")
    else:
        plan = wires.checkpoints.head.plan
        found = supply.bring(
            source,
            frozenset({"vae"}),
            means,
            half=wires.config.training.precision is not Precision.FP32,
            bucket=wires.bucket,
            digest=plan.base_model_digest if plan is not None else None,
            note=wires.reporter.note,
        )
        part = Part(found, "vae")
    return Decoder(parts.load_vae(part, torch.float32), device)


class Decoder:
    """A VAE that lies in the host's memory and is on the device only while it decodes."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        """*vae* is an AutoencoderKL in float32."""
        self._vae = vae.requires_grad_(False).eval()
        self._device = device
        config = vae.config
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        """Pixels of an edge for one of the latents."""
        self.channels: int = config.latent_channels
        self._scale = float(config.scaling_factor)
        self._shift = float(config.shift_factor or 0.0)

    def shape(self, edge: int) -> tuple[int, int, int]:
        """Return the shape of the latents of a square picture."""
        return (self.channels, edge // self.factor, edge // self.factor)

    def png(self, latents: torch.Tensor) -> bytes:
        """Return the picture of scaled *latents*, (channels, height, width), as PNG.

        Raises Failure (NaNLatents) where latents or pixels are not finite.
        """
        import torch
        from PIL import Image

        if max(latents.shape[1:]) * self.factor >= TILED_FROM:
            self._vae.enable_tiling()
            self._vae.tile_sample_min_size, self._vae.tile_latent_min_size = TILE, TILE // self.factor
        try:
            vae = self._vae.to(self._device)
            with torch.no_grad():
                wanted = latents.unsqueeze(0).to(self._device, torch.float32) / self._scale + self._shift
                pixels = vae.decode(wanted, return_dict=False)[0][0].cpu()
        finally:
            self._vae.to("cpu")
        if not bool(pixels.isfinite().all()):
            raise invalid(
                "NaNLatents",
                "the base model makes a picture of NaN: use training.precision bf16, or name a fixed VAE in "
                "baseModel.vae, e.g. hf://madebyollin/sdxl-vae-fp16-fix",
            )
        levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        file = io.BytesIO()
        Image.fromarray(levels.numpy()).save(file, "PNG")
        return file.getvalue()
