"""The product: the LoRA in the formats that people load. Headers depend on config, data and base model only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import layout
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

DIFFUSERS: Final = layout.LORA
KOHYA: Final = "lora_kohya.safetensors"
CARD: Final = "README.md"

_ATTENTION: Final = re.compile(r"^(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.(.+)$")
_MIDDLE: Final = re.compile(r"^mid_block\.attentions\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class Product:
    """What is known of a finished LoRA."""

    config: RunConfig
    plan: Plan
    images: int
    steps: int
    updates: int
    layers_per_block: int
    """Of the UNet: kohya's names count its blocks another way."""

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return self.config.training.lora.rank

    @property
    def alpha(self) -> float:
        """Alpha of the adapter."""
        return self.config.training.lora.alpha or float(self.rank)


def files(weights: Mapping[str, torch.Tensor], product: Product, *, story: str = "") -> dict[str, bytes]:
    """Return the artifact's files by name, from the adapter's weights; *story* ends the model card."""
    plain = {name: tensor.detach().cpu().float() for name, tensor in weights.items()}
    return {
        DIFFUSERS: state.encode(diffusers_weights(plain, product), _metadata(product)),
        KOHYA: state.encode(kohya_weights(plain, product), _kohya_metadata(product)),
        CARD: card(product, story).encode(),
    }


def diffusers_weights(weights: Mapping[str, torch.Tensor], product: Product) -> dict[str, torch.Tensor]:
    """Return the tensors as diffusers loads them, with alpha / rank folded into the up matrices."""
    scale = product.alpha / product.rank
    return {name: tensor * scale if ".lora_B." in name and scale != 1.0 else tensor for name, tensor in weights.items()}


def kohya_weights(weights: Mapping[str, torch.Tensor], product: Product) -> dict[str, torch.Tensor]:
    """Return the tensors as kohya's scripts, A1111, Forge and ComfyUI load them, with an alpha for each module."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        module, _, matrix = name.removesuffix(".weight").rpartition(".")
        module = kohya_module(module.removeprefix("unet."), product.layers_per_block)
        base = f"lora_unet_{module.replace('.', '_')}"
        found[f"{base}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{base}.alpha"] = torch.tensor(product.alpha, dtype=torch.float32)
    return found


def kohya_module(module: str, layers_per_block: int) -> str:
    """Return the name that the original SDXL UNet gives to a module of diffusers' UNet."""
    if found := _ATTENTION.match(module):
        side, block, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
        # A level has one module more than layers: its down- or upsampler. The input's first convolution is number 0.
        number = (layers_per_block + 1) * block + layer
        return f"input_blocks.{number + 1}.1.{rest}" if side == "down_blocks" else f"output_blocks.{number}.1.{rest}"
    if found := _MIDDLE.match(module):
        return f"middle_block.{2 * int(found[1]) + 1}.{found[2]}"
    raise ValueError(f"{module} has no name in the original UNet")


def _metadata(product: Product) -> dict[str, str]:
    training, plan = product.config.training, product.plan
    return {
        "format": "pt",
        "lorafinetune.baseModelDigest": plan.base_model_digest,
        "lorafinetune.configDigest": plan.config_digest,
        "lorafinetune.datasetDigest": plan.dataset_digest,
        "lorafinetune.images": str(product.images),
        "lorafinetune.instancePrompt": product.config.dataset.instance_prompt or "",
        "lorafinetune.rank": str(product.rank),
        "lorafinetune.alpha": f"{product.alpha:g}",
        "lorafinetune.resolution": str(training.resolution),
        "lorafinetune.steps": str(product.steps),
        "lorafinetune.seed": str(training.seed),
    }


def _kohya_metadata(product: Product) -> dict[str, str]:
    training = product.config.training
    return _metadata(product) | {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{training.resolution}x{training.resolution}",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": product.config.dataset.instance_prompt or "SDXL LoRA",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_learning_rate": repr(training.peak_rate),
        "ss_max_train_steps": str(product.steps),
        "ss_mixed_precision": str(training.precision),
        "ss_network_alpha": f"{product.alpha:g}",
        "ss_network_dim": str(product.rank),
        "ss_network_module": "networks.lora",
        "ss_num_train_images": str(product.images),
        "ss_resolution": f"({training.resolution}, {training.resolution})",
        "ss_seed": str(training.seed),
        "ss_steps": str(product.steps),
    }


def card(product: Product, story: str) -> str:
    """Return the model card."""
    config, training, plan = product.config, product.config.training, product.plan
    prompt = config.dataset.instance_prompt
    rows = {
        "base model": config.base_model.source,
        "training images": f"{product.images} (digest {plan.dataset_digest[:12]})",
        "instance prompt": prompt or "none: each image had its own caption",
        "steps": f"{product.steps}, of which {product.updates} changed the weights",
        "images per step": training.batch_size * training.gradient_accumulation,
        "resolution": training.resolution,
        "learning rate": f"{training.peak_rate:g}, {training.schedule}",
        "rank, alpha": f"{product.rank}, {product.alpha:g}",
        "precision": training.precision,
        "seed": training.seed,
        "device": plan.device,
        "config digest": plan.config_digest[:12],
    }
    table = "\n".join(f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items())
    return f"""---
library_name: diffusers
tags: [text-to-image, lora, stable-diffusion-xl]
---
# {config.run.name}

A LoRA for Stable Diffusion XL, made by lorafinetune.

| | |
|---|---|
{table}

```python
from diffusers import StableDiffusionXLPipeline
pipeline = StableDiffusionXLPipeline.from_pretrained("path/to/the/base/model")
pipeline.load_lora_weights("path/to/this/folder", weight_name="{DIFFUSERS}")
image = pipeline({(prompt or "a prompt")!r}).images[0]
```

`{KOHYA}` is the same LoRA under the names that A1111, Forge and ComfyUI know.
{story}"""
