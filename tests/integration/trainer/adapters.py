"""Adapters in memory with random weights in every module, and LoRA files loaded back: run in the preloaded process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig

RANK = 4


@dataclass(frozen=True)
class Kind:
    """A kind of adapter."""

    targets: str = "Attention"
    alpha: float = 6.0
    rs_lora: bool = False
    dora: bool = False
    text_encoder: bool = False

    @property
    def lora(self) -> dict[str, Any]:
        """As the run config says it."""
        return {
            "rank": RANK,
            "alpha": self.alpha,
            "targets": self.targets,
            "rsLora": self.rs_lora,
            "dora": self.dora,
            "textEncoder": self.text_encoder,
        }


def product(kind: Kind, **changes: Any) -> Any:
    """What the exporter is told of such an adapter on the tiny model."""
    from lorafinetune_trainer.product.product import Product

    config = RunConfig.model_validate(
        {
            "run": {"name": "loaded", "uid": "loaded"},
            "baseModel": {"source": "/model"},
            "dataset": {"source": "/photos", "instancePrompt": "sks"},
            "training": {"lora": kind.lora},
            "storage": {"uri": "s3://loras/"},
        }
    )
    plan = Plan(
        config_digest="c" * 64,
        dataset_digest="d" * 64,
        base_model_digest="b" * 64,
        micro_batch=1,
        precision="fp32",
        gradient_checkpointing=False,
        device="cpu",
        threads=1,
    )
    return Product(config=config, plan=plan, images=3, steps=9, updates=9, **{"layers_per_block": 1, **changes})


def pipeline(model: str) -> Any:
    from diffusers import StableDiffusionXLPipeline

    made = StableDiffusionXLPipeline.from_pretrained(model, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def inject(pipe: Any, kind: Kind) -> dict[str, Any]:
    """Put the trainer's own adapter into *pipe*, every matrix random; return its tensors by our names."""
    import torch

    from lorafinetune_trainer.training import model

    training = product(kind).config.training
    weights = model.add_adapter(pipe.unet, training)
    for part in ("text_encoder", "text_encoder_2") if kind.text_encoder else ():
        weights |= model.add_encoder_adapter(getattr(pipe, part), part, training)
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in weights.items():
            noise = 0.1 * torch.randn(weight.shape, generator=chance)
            weight.copy_(weight * (1.0 + noise) if "magnitude" in name else noise)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def in_memory(weights: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """What each adapted module's weight is changed by, and its magnitudes: an adapter, module by module."""
    found = {}
    for name, tensor in weights.items():
        module, matrix = name.removesuffix(".weight").rsplit(".", 1)
        if matrix == "lora_B":
            found[module] = scale * tensor @ weights[f"{module}.lora_A.weight"]
        elif matrix == "lora_magnitude_vector":
            found[f"{module}.magnitude"] = tensor
    return found


def loaded_by_peft(pipe: Any) -> dict[str, Any]:
    """The same of an adapter that diffusers has loaded."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipe, part).named_modules():
            if not hasattr(module, "get_delta_weight") or not module.lora_A:
                continue
            (adapter,) = module.lora_A
            found[f"{part}.{name}"] = module.get_delta_weight(adapter).detach()
            if adapter in module.lora_magnitude_vector:
                found[f"{part}.{name}.magnitude"] = module.lora_magnitude_vector[adapter].weight.detach()
    return found


def paint(pipe: Any) -> Any:
    import torch

    return pipe(
        "a photo of sks timber dog",
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
        generator=torch.Generator("cpu").manual_seed(1),
    ).images[0]


def bare(body: bytes) -> bytes:
    """The file without its header's metadata."""
    from lorafinetune_trainer.saving import state

    return state.encode(state.decode(body).tensors)


def load(pipe: Any, body: bytes) -> None:
    """Load a LoRA file as people do."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "lora.safetensors").write_bytes(body)
        pipe.load_lora_weights(folder, weight_name="lora.safetensors", local_files_only=True)


def farthest(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference between two adapters, relative to the module's own; infinite where modules differ."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one)


def loaded_back(model: str, kinds: list[Kind]) -> list[dict[str, Any]]:
    """Each kind of adapter: in memory, and through both of its files, without their metadata."""
    import numpy as np
    import torch

    from lorafinetune_trainer.product import export, initial

    torch.set_num_threads(1)
    plain = paint(pipeline(model))
    results = []
    for kind in kinds:
        pipe = pipeline(model)
        weights = inject(pipe, kind)
        told = product(kind)
        truth, picture = in_memory(weights, told.scale), paint(pipe)
        files = {
            "diffusers": bare(export.diffusers_file(weights, told)),
            "kohya": bare(export.kohya_file(weights, told)),
        }
        result: dict[str, Any] = {"moved": float(np.abs(picture - plain).max()), "modules": len(truth)}
        for name, body in files.items():
            if kind.dora and name == "kohya":
                continue  # diffusers drops dora_scale of SDXL
            loaded = pipeline(model)
            load(loaded, body)
            result[name] = {
                "weights": farthest(truth, loaded_by_peft(loaded)),
                "picture": float(np.abs(paint(loaded) - picture).max()),
            }
        training = told.config.training
        shapes = {one: tuple(tensor.shape) for one, tensor in weights.items()}
        for name, body in files.items():
            read = initial.weights(initial.check(body, training, 1), training, shapes)
            result[name + " read"] = {
                "names": read.keys() == weights.keys(),
                "weights": max(float((read[one] - weights[one]).abs().max()) for one in weights),
            }
            assert all(tensor.dtype is torch.float32 for tensor in read.values())
        results.append(result)
    return results
