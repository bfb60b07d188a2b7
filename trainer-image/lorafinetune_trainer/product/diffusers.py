"""The LoRA as diffusers' ``load_lora_weights`` takes it, exact without metadata: the scale is in the up matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorafinetune_trainer.product import names
from lorafinetune_trainer.product.product import Product

if TYPE_CHECKING:
    import torch


def tensors(weights: Mapping[str, torch.Tensor], product: Product) -> dict[str, torch.Tensor]:
    """Return *weights* (by our names, float32) under diffusers' names, with the adapter's scale folded in."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        place, matrix = (taken := names.parse(name)).place, taken.matrix
        if matrix == names.MAGNITUDE:
            found[f"{place}.{matrix}"] = tensor  # peft's own files leave .weight out here
        elif matrix == names.UP and product.scale != 1.0:
            found[f"{place}.{matrix}.weight"] = tensor * product.scale
        else:
            found[f"{place}.{matrix}.weight"] = tensor
    return found
