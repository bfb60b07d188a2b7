"""Adapters in memory with random weights in every module, and LoRA files loaded back: run in the preloaded process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Targets

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


def scaled(pipe: Any, body: bytes) -> dict[str, Any]:
    """Load a kohya file of a DoRA, whose magnitudes diffusers drops, and do with them what the paper says.

    Which module a magnitude belongs to is seen by the matrix beside it in the file, not by our names.
    """
    import torch
    from safetensors import torch as files

    tensors = files.load(body)
    downs = {name.removesuffix(".lora_down.weight"): one for name, one in tensors.items() if "lora_down" in name}
    magnitudes = {name.removesuffix(".dora_scale"): one for name, one in tensors.items() if "dora_scale" in name}
    load(pipe, files.save({name: one for name, one in tensors.items() if "dora_scale" not in name}))
    found = loaded_by_peft(pipe)
    with torch.no_grad():
        for place, delta in found.items():
            module = pipe
            for part in place.split("."):
                module = getattr(module, part)
            (down,) = (one.weight for one in module.lora_A.values())
            (name,) = (name for name, one in downs.items() if one.shape == down.shape and torch.equal(one, down))
            if (magnitude := magnitudes.pop(name, None)) is not None:
                whole = module.base_layer.weight + delta
                module.base_layer.weight += magnitude * whole / whole.norm(dim=1, keepdim=True) - whole
    assert not magnitudes, "magnitudes of modules that diffusers does not know"
    return found


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
            loaded = pipeline(model)
            if kind.dora and name == "kohya":
                truth = {one: delta for one, delta in truth.items() if not one.endswith(".magnitude")}
                found = scaled(loaded, body)
            else:
                load(loaded, body)
                found = loaded_by_peft(loaded)
            result[name] = {
                "weights": farthest(truth, found),
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


def begun_with(model: str, theirs: list[Kind]) -> list[dict[str, float]]:
    """How far a run is, before its first step, from the LoRA that diffusers and peft saved and it starts from."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionXLPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    from lorafinetune_trainer.product import initial
    from lorafinetune_trainer.training import adapter
    from lorafinetune_trainer.training import model as models

    torch.set_num_threads(1)
    plain = paint(pipeline(model))
    results = []
    for kind in theirs:
        pipe, chance = pipeline(model), torch.Generator().manual_seed(8)
        parts = {"unet": pipe.unet}
        if kind.text_encoder:
            parts |= {"text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
        for name, part in parts.items():
            targets = (adapter.UNET if name == "unet" else adapter.TEXT_ENCODER)[Targets(kind.targets)]
            part.add_adapter(
                LoraConfig(
                    r=RANK,
                    lora_alpha=kind.alpha,
                    use_rslora=kind.rs_lora,
                    use_dora=kind.dora and name == "unet",
                    target_modules=list(targets),
                )
            )
            with torch.no_grad():
                for place, weight in part.named_parameters():
                    if "lora_" in place:
                        noise = 0.1 * torch.randn(weight.shape, generator=chance)
                        weight.copy_(weight * (1.0 + noise) if "magnitude" in place else noise)
        with tempfile.TemporaryDirectory() as folder:
            layers = {
                f"{name}_lora_layers": get_peft_model_state_dict(part, adapter_name="default")
                for name, part in parts.items()
            }
            StableDiffusionXLPipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
            body = Path(folder, "pytorch_lora_weights.safetensors").read_bytes()
        picture, ours = paint(pipe), pipeline(model)
        training = product(replace(kind, alpha=2.0, rs_lora=False)).config.training
        weights = models.add_adapter(ours.unet, training)
        for name in parts.keys() - {"unet"}:
            weights |= models.add_encoder_adapter(getattr(ours, name), name, training)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        found = initial.weights(initial.check(body, training, 1), training, shapes)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(found[name])
        results.append(
            {
                "moved": float(np.abs(picture - plain).max()),
                "picture": float(np.abs(paint(ours) - picture).max()),
            }
        )
    return results
