"""The product's files: the LoRA in the formats that people load, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import layout
from lorafinetune_trainer.product import diffusers, header, kohya
from lorafinetune_trainer.product.product import Product
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

DIFFUSERS: Final = layout.LORA
KOHYA: Final = "lora_kohya.safetensors"
CARD: Final = "README.md"
CURVE: Final = "loss.svg"


def diffusers_file(weights: Mapping[str, torch.Tensor], product: Product) -> bytes:
    """Return the file that diffusers loads. *weights* are by our names, float32, on the CPU; Failure if not finite."""
    return _encode(diffusers.tensors(weights, product), header.ours(product), product.steps)


def kohya_file(weights: Mapping[str, torch.Tensor], product: Product) -> bytes:
    """Return the file that kohya's scripts, A1111, Forge and ComfyUI load."""
    return _encode(kohya.tensors(weights, product), header.kohya(product), product.steps)


def files(
    weights: Mapping[str, torch.Tensor],
    product: Product,
    *,
    extra: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Return the artifact's files by name, but for the card; *extra* are pictures, curves and metrics.

    ValueError where *extra* would replace one of the LoRA's own files.
    """
    found = {
        DIFFUSERS: diffusers_file(weights, product),
        KOHYA: kohya_file(weights, product),
    }
    if taken := sorted(found.keys() & (extra or {}).keys()):
        raise ValueError(f"{taken[0]} is the name of a file of the LoRA itself")
    return found | dict(extra or {})


def _encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], steps: int) -> bytes:
    state.check_finite(tensors, steps)
    return state.encode(tensors, metadata)
