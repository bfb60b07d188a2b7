"""A diffusers folder of SDXL written as one .safetensors file in the original code's layout, as people share models.

    python -m examples.single_file FOLDER FILE.safetensors

A model of another shape than SDXL's gets its configs beside it, in ``FILE.safetensors.config/``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = {
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}
CONFIGS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")


def write(folder: Path, file: Path, *, marks: tuple[str, ...] = ()) -> Path:
    """Write the model in *folder* to *file*, its configs beside it, and return *file*.

    *marks* are further names that the file shall hold, such as ``v_pred``.
    """
    import torch
    from safetensors.torch import load_file, save_file

    found: dict[str, torch.Tensor] = {name: torch.zeros(0) for name in marks}
    for part, convert in {"unet": unet, "vae": vae, "text_encoder": text_encoder, "text_encoder_2": open_clip}.items():
        config = json.loads((folder / part / "config.json").read_text())
        (weights,) = (folder / part).glob("*.safetensors")
        found |= {name: tensor.contiguous() for name, tensor in convert(load_file(weights), config).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, file)
    for part in CONFIGS:
        target = file.with_name(f"{file.name}.config") / part
        target.mkdir(parents=True, exist_ok=True)
        for one in (folder / part).iterdir():
            if one.suffix != ".safetensors":
                shutil.copyfile(one, target / one.name)
    return file


def unet(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the UNet's tensors under their original names."""
    layers = int(config["layers_per_block"])

    def name_of(name: str) -> str:
        if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", name):
            block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
            number = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
            within = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
            rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
            return f"input_blocks.{number}.{within}.{_resnet(rest) if kind == 'resnets' else rest}"
        if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)", name):
            block, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
            number = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
            attends = any(one.startswith(f"up_blocks.{block}.attentions.") for one in tensors)
            within = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attends else "1"}[kind]
            return f"output_blocks.{number}.{within}.{_resnet(rest) if kind == 'resnets' else rest}"
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
            kind, layer, rest = found[1], int(found[2]), found[3]
            return f"middle_block.{2 * layer}.{_resnet(rest)}" if kind == "resnets" else f"middle_block.1.{rest}"
        return _replaced(name, _UNET)

    return {f"model.diffusion_model.{name_of(name)}": tensor for name, tensor in tensors.items()}


def vae(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the VAE's tensors under their original names, its attention as convolutions."""
    last = len(config["block_out_channels"]) - 1
    found = {}
    for name, tensor in tensors.items():
        new = _replaced(name, _VAE)
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda one: f"up.{last - int(one[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda one: f"up.{last - int(one[1])}.upsample", new)
        is_projection = "mid.attn_1" in new and new.endswith("weight") and "norm" not in new
        found[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_projection else tensor
    return found


def text_encoder(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of the first text encoder under their original names."""
    prefix = "conditioner.embedders.0.transformer.text_model."
    return {prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def open_clip(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of the second text encoder as OpenCLIP has them: queries, keys and values in one."""
    import torch

    found, prefix = {}, "conditioner.embedders.1.model."
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif ".k_proj." not in name and ".v_proj." not in name:
            new = prefix + _replaced(name.removeprefix("text_model."), _OPEN_CLIP).replace(".q_proj.", ".in_proj_")
            joined = [
                tensors[name.replace(".q_proj.", f".{one}_proj.")] for one in ("qkv" if ".q_proj." in name else "q")
            ]
            found[new] = torch.cat(joined) if len(joined) > 1 else tensor
    return found


def _resnet(rest: str) -> str:
    return _replaced(rest, _RESNET)


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.single_file", description="Write a model as one file.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("file", type=Path, metavar="FILE.safetensors")
    given = parser.parse_args()
    made = write(given.folder, given.file)
    print(f"{given.folder} is in {made} now ({made.stat().st_size / 1e6:.0f} MB): name it in baseModel.source")
