"""Names of the adapter's tensors: ours (diffusers' modules, peft's matrices) and kohya's, in both directions.

Ours: ``unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight``. Kohya's, which A1111, Forge and
ComfyUI know, count the UNet's blocks as the original code does: ``lora_unet_input_blocks_4_1_transformer_blocks_0...``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

UNET: Final = "unet"
ENCODERS: Final = ("text_encoder", "text_encoder_2")
DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
"""Peft's names of a module's matrices."""

_PREFIXES: Final = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_SIDES: Final = {"input_blocks": "down_blocks", "output_blocks": "up_blocks"}
_TEXT_MODEL: Final = "text_model."
_UNET_LEAVES: Final = (
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
_ENCODER_LEAVES: Final = (*(f"self_attn.{one}_proj" for one in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")

_OURS_SIDE: Final = re.compile(r"^(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.(.+)$")
_OURS_MIDDLE: Final = re.compile(r"^mid_block\.attentions\.(\d+)\.(.+)$")
_KOHYA_SIDE: Final = re.compile(r"^(input_blocks|output_blocks)_(\d+)_1_(.+)$")
_KOHYA_MIDDLE: Final = re.compile(r"^middle_block_(\d*[13579])_(.+)$")
_KOHYA_DIFFUSERS: Final = re.compile(r"^(?:(down_blocks|up_blocks)_(\d+)|(mid_block))_attentions_(\d+)_(.+)$")
_KOHYA_LAYER: Final = re.compile(r"^transformer_blocks_(\d+)_(.+)$")
_KOHYA_ENCODER: Final = re.compile(r"^text_model_encoder_layers_(\d+)_(.+)$")


_ATTENTION: Final = re.compile(r"\.(?:attn[12]|self_attn)\.")
_BLOCK: Final = re.compile(r"(?<=\.)(?:transformer_blocks\.\d+\..+|proj_in|proj_out|mlp\..+)$")


class Name(NamedTuple):
    """One of our names, taken apart."""

    part: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    module: str
    """Within the part, in full: a text encoder's modules begin with ``text_model.`` whether or not the library's do."""
    matrix: str
    """``lora_A``, ``lora_B`` or ``lora_magnitude_vector``."""

    @property
    def place(self) -> str:
        """Part and module."""
        return f"{self.part}.{self.module}"


def parse(name: str) -> Name:
    """Take one of our names apart; ValueError where it is none."""
    part, _, rest = name.removesuffix(".weight").partition(".")
    module, _, matrix = rest.rpartition(".")
    if part not in _PREFIXES or matrix not in (DOWN, UP, MAGNITUDE) or not module:
        raise ValueError(f"{name} is no name of a trained weight")
    return Name(part, in_full(part, module), matrix)


def in_full(part: str, module: str) -> str:
    """Return a module's name with the ``text_model.`` that newer libraries leave out for the first text encoder."""
    return module if part == UNET or module.startswith(_TEXT_MODEL) else _TEXT_MODEL + module


def is_attention(module: str) -> bool:
    """Whether *module* is one of an attention's four layers."""
    return _ATTENTION.search(module) is not None


def beside(place: str) -> str:
    """Return what the names of all layers of the same transformer (or encoder layer) begin with."""
    return _BLOCK.sub("", place)


def to_kohya(part: str, module: str, layers_per_block: int) -> str:
    """Return kohya's name of a module; ValueError where it has none."""
    if part != UNET:
        return _PREFIXES[part] + module.replace(".", "_")
    if found := _OURS_SIDE.match(module):
        side, block, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
        # A level has one module more than layers: its down- or upsampler. The input's first convolution is number 0.
        number = (layers_per_block + 1) * block + layer
        original = (
            f"input_blocks.{number + 1}.1.{rest}" if side == "down_blocks" else f"output_blocks.{number}.1.{rest}"
        )
    elif found := _OURS_MIDDLE.match(module):
        original = f"middle_block.{2 * int(found[1]) + 1}.{found[2]}"
    else:
        raise ValueError(f"{module} has no name in the original UNet")
    return _PREFIXES[UNET] + original.replace(".", "_")


def from_kohya(name: str, layers_per_block: int) -> tuple[str, str]:
    """Return part and module of kohya's *name*; ValueError where SDXL has no such module that can be adapted.

    Some tools write diffusers' modules with kohya's underscores (``lora_unet_down_blocks_1_attentions_0_...``): those
    are understood as well.
    """
    for part, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            module = _unet_module(rest, layers_per_block) if part == UNET else _encoder_module(rest)
            if module is not None:
                return part, module
    raise ValueError(f"{name} is no module of SDXL that can be adapted here")


def _unet_module(rest: str, layers_per_block: int) -> str | None:
    if found := _KOHYA_SIDE.match(rest):
        number = int(found[2]) - (found[1] == "input_blocks")
        block, layer = divmod(number, layers_per_block + 1)
        where, rest = f"{_SIDES[found[1]]}.{block}.attentions.{layer}", found[3]
    elif found := _KOHYA_MIDDLE.match(rest):
        where, rest = f"mid_block.attentions.{int(found[1]) // 2}", found[2]
    elif found := _KOHYA_DIFFUSERS.match(rest):
        side = f"{found[1]}.{found[2]}" if found[1] else found[3]
        where, rest = f"{side}.attentions.{found[4]}", found[5]
    else:
        return None
    if rest in ("proj_in", "proj_out"):
        return f"{where}.{rest}"
    if not (found := _KOHYA_LAYER.match(rest)):
        return None
    leaf = _dotted(found[2], _UNET_LEAVES)
    return f"{where}.transformer_blocks.{found[1]}.{leaf}" if leaf is not None else None


def _encoder_module(rest: str) -> str | None:
    found = _KOHYA_ENCODER.match(rest)
    leaf = _dotted(found[2], _ENCODER_LEAVES) if found else None
    return f"text_model.encoder.layers.{found[1]}.{leaf}" if found and leaf is not None else None


def _dotted(leaf: str, leaves: tuple[str, ...]) -> str | None:
    return next((one for one in leaves if one.replace(".", "_") == leaf), None)
