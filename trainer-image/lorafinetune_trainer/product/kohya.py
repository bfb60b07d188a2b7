"""The LoRA as kohya's scripts, A1111, Forge and ComfyUI take it: with an alpha for each module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lorafinetune_trainer.product import names
from lorafinetune_trainer.product.product import Product

if TYPE_CHECKING:
    import torch

_MATRICES: Final = {names.DOWN: "lora_down.weight", names.UP: "lora_up.weight", names.MAGNITUDE: "dora_scale"}


def tensors(weights: Mapping[str, torch.Tensor], product: Product) -> dict[str, torch.Tensor]:
    """Return *weights* (by our names, float32) under kohya's names; the loader multiplies by alpha / rank.

    A DoRA's magnitudes, (outputs,), become a column (outputs, 1): its shape says which axis was decomposed.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        part, module, matrix = names.parse(name)
        base = names.to_kohya(part, module, product.layers_per_block)
        found[f"{base}.{_MATRICES[matrix]}"] = tensor.reshape(-1, 1) if matrix == names.MAGNITUDE else tensor
        found[f"{base}.alpha"] = torch.tensor(product.written_alpha, dtype=torch.float32)
    return found
