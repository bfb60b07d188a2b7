"""Is it an SDXL base model? Told from configs, or from the names and shapes in one file's header: no weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from lorafinetune_trainer.base.files import PREFIXES
from lorafinetune_trainer.base.header import WEIGHTS, Tensor

UNET_TENSORS: Final = 1680
"""Tensors of SDXL's UNet in one file."""
_UNET: Final = PREFIXES["unet"]
_FIRST: Final = f"{_UNET}input_blocks.0.0.weight"
_SIZES: Final = f"{_UNET}label_emb.0.0.weight"
_WIDTH: Final = ".attn2.to_k.weight"
_CHANNELS: Final = 4
_WORDS: Final = {"unet": "UNet", "vae": "VAE", "text_encoder": "first text encoder", "text_encoder_2": "second one"}

_OTHERS: Final = (
    ("lora_unet_", "it is a LoRA, not a base model: name it in training.lora.initFrom"),
    ("lora_te", "it is a LoRA, not a base model: name it in training.lora.initFrom"),
    ("unet.down_blocks.", "it is a LoRA, not a base model: name it in training.lora.initFrom"),
    ("control_model.", "it is a ControlNet"),
    ("down_blocks.", "it is one part of a diffusers folder: name the folder"),
    ("joint_blocks.", "it is a Stable Diffusion 3 model"),
    (f"{_UNET}joint_blocks.", "it is a Stable Diffusion 3 model"),
    ("double_blocks.", "it is a Flux model"),
    (f"{_UNET}double_blocks.", "it is a Flux model"),
    ("conditioner.embedders.0.model.", "it is an SDXL refiner, not a base model"),
    ("cond_stage_model.transformer.", "it is a Stable Diffusion 1 model"),
    ("cond_stage_model.model.", "it is a Stable Diffusion 2 model"),
    ("edm_mean", "it is a Playground model, which is trained in another way (EDM)"),
    ("edm_vpred", "it is trained in another way (EDM)"),
)
"""How names begin in files that are something else."""


def of_index(index: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the index of a diffusers folder, or None."""
    kind = str(index.get("_class_name", "nothing"))
    return None if "XL" in kind else f"it is a {kind}, not a StableDiffusionXLPipeline"


def of_configs(
    unet: Mapping[str, Any], text_encoder: Mapping[str, Any], text_encoder_2: Mapping[str, Any]
) -> str | None:
    """Return what is wrong with the configs of a diffusers folder, or None."""
    if unet.get("addition_embed_type") != "text_time":
        return "its UNet takes no text and size conditioning (addition_embed_type is not text_time)"
    if unet.get("in_channels", 4) != 4:
        return _channels(unet["in_channels"])
    widths = [int(one.get("hidden_size", 0)) for one in (text_encoder, text_encoder_2)]
    if unet.get("cross_attention_dim") != sum(widths):
        return (
            f"its UNet expects text embeddings {unet.get('cross_attention_dim')} wide, its two encoders make "
            f"{' + '.join(map(str, widths))}"
        )
    return None


def of_vae(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the config of a separate VAE, or None."""
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        return f"it is a {kind}, not an AutoencoderKL"
    channels = config.get("latent_channels", _CHANNELS)
    return None if channels == _CHANNELS else f"it makes latents of {channels} channels, and SDXL takes {_CHANNELS}"


def of_single(tensors: Mapping[str, Tensor], parts: Collection[str], *, shipped: bool) -> str | None:
    """Return what is wrong with a file of these *tensors* of which *parts* are wanted, or None.

    *shipped*: there is no config beside it, so it must have the shape of SDXL itself.
    """
    for beginning, words in _OTHERS:
        if any(name.startswith(beginning) for name in tensors):
            return words
    if _FIRST not in tensors:
        return "it holds no UNet in the layout of the original code (model.diffusion_model...)"
    if (channels := tensors[_FIRST].shape[1:2]) != (4,):
        return _channels(*channels)
    if _SIZES not in tensors:
        return "its UNet takes no text and size conditioning"
    for part, prefix in PREFIXES.items():
        if part in parts and not any(name.startswith(prefix) for name in tensors):
            vae = ": name one in baseModel.vae" if part == "vae" else ""
            return f"it holds no {_WORDS[part]} ({prefix}...){vae}"
    if shipped:
        count = sum(name.startswith(_UNET) for name in tensors)
        width = next((one.shape[-1] for name, one in sorted(tensors.items()) if name.endswith(_WIDTH)), 0)
        if count != UNET_TENSORS or width != 2048:
            return (
                f"its UNet has {count} tensors and takes text embeddings {width} wide, SDXL's has {UNET_TENSORS} and "
                "takes 2048: where it is a relative of SDXL, put its configs into the folder <file>.config beside it"
            )
    return of_types(tensors)


def of_types(tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with the types of the weights among *tensors*, or None."""
    for name, one in sorted(tensors.items()):
        if one.dtype not in WEIGHTS and name.endswith((".weight", ".bias")):
            return f"{name} is of type {one.dtype}: only weights of 16 and 32 bits (or 64) can be trained on"
    return None


def _channels(count: int) -> str:
    return f"its UNet takes {count} channels, not 4: inpainting models cannot be trained"
