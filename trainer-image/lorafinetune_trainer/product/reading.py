"""Other people's LoRAs, and our own, read back: from diffusers' and from kohya's files to our names.

Every key of a file must be understood: what is skipped in silence is a LoRA that does something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.product import names
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

FIELD: Final = "training.lora.initFrom"
_ADAPTER_METADATA: Final = "lora_adapter_metadata"
"""Where diffusers' and peft's own files keep rank and alpha."""
_KOHYA: Final = {"lora_down.weight": names.DOWN, "lora_up.weight": names.UP, "dora_scale": names.MAGNITUDE}
_ALPHA: Final = "alpha"
_PEFT: Final = re.compile(r"^(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?$")
_OLD: Final = re.compile(r"^(.+?)(?:\.lora_linear_layer|\.lora|_lora)\.(down|up)\.weight$")
_OLD_MATRICES: Final = {"down": names.DOWN, "up": names.UP}
_OLD_ENCODER: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_UNET_BLOCKS: Final = ("down_blocks.", "mid_block.", "up_blocks.")
_OTHER_KINDS: Final = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
    "lora_mid": "a LoRA with convolutions (LoCon)",
    "diff": "a file with full weight differences",
}


@dataclass(slots=True)
class Module:
    """What a LoRA adds to one module: up @ down x alpha / rank."""

    down: torch.Tensor | None = None
    """(rank, inputs), float32."""
    up: torch.Tensor | None = None
    """(outputs, rank), float32."""
    magnitude: torch.Tensor | None = None
    """Of each output, (outputs,), where the file is a DoRA."""
    alpha: float | None = None
    """None: as large as the rank."""

    @property
    def rank(self) -> int:
        """Its rank."""
        assert self.down is not None
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """What its output is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that was read, by part and module: ``unet.down_blocks...to_q``, ``text_encoder.text_model...``."""

    modules: Mapping[str, Module]

    @property
    def ranks(self) -> set[int]:
        """The ranks of its modules: usually one."""
        return {module.rank for module in self.modules.values()}

    @property
    def is_dora(self) -> bool:
        """Whether it has magnitudes."""
        return any(module.magnitude is not None for module in self.modules.values())


def refuse(why: str, fix: str) -> NoReturn:
    """End the attempt: the LoRA cannot be started from."""
    raise invalid("InvalidLora", f"{FIELD}: {why}; {fix}")


def read(body: bytes, layers_per_block: int) -> Lora:
    """Return the LoRA in *body*; raises Failure (InvalidLora) naming what is wrong with the file.

    *layers_per_block* is the UNet's: kohya's names depend on it.
    """
    try:
        tensors, metadata = state.decode(body)
    except ValueError as error:
        refuse(f"not a whole .safetensors file ({error})", "is it truncated, or a .pt or .ckpt file? Name another")
    modules: dict[str, Module] = {}
    kohya = any(key.startswith(("lora_unet_", "lora_te")) for key in tensors)
    for key, tensor in tensors.items():
        place, matrix = _kohya_key(key, layers_per_block) if kohya else _diffusers_key(key)
        _put(modules.setdefault(place, Module()), matrix, tensor, key)
    if not modules:
        refuse("the file holds no tensors", "name another")
    for place, module in modules.items():
        _check(place, module)
    _take_alphas(modules, metadata)
    return Lora(modules)


def _kohya_key(key: str, layers_per_block: int) -> tuple[str, str]:
    base, _, matrix = key.partition(".")
    if matrix not in _KOHYA and matrix != _ALPHA:
        _not_understood(key)
    try:
        part, module = names.from_kohya(base, layers_per_block)
    except ValueError:
        _not_understood(key)
    return f"{part}.{module}", _KOHYA.get(matrix, _ALPHA)


def _diffusers_key(key: str) -> tuple[str, str]:
    name = key.replace(".processor.", ".")
    if name.startswith(_UNET_BLOCKS):
        name = f"{names.UNET}.{name}"
    if name.endswith(f".{_ALPHA}"):
        module, matrix = name.removesuffix(f".{_ALPHA}"), _ALPHA
    elif found := _PEFT.match(name):
        module, matrix = found[1], found[2]
    elif found := _OLD.match(name):
        module, matrix = found[1], _OLD_MATRICES[found[2]]
    else:
        _not_understood(key)
    part, _, module = module.partition(".")
    if part not in (names.UNET, *names.ENCODERS):
        _not_understood(key)
    before, _, leaf = module.rpartition(".")
    if part != names.UNET and leaf in _OLD_ENCODER:
        module = f"{before}.{_OLD_ENCODER[leaf]}"
    elif leaf == "to_out":
        module = f"{module}.0"
    return f"{part}.{names.in_full(part, module)}", matrix


def _not_understood(key: str) -> NoReturn:
    for mark, kind in _OTHER_KINDS.items():
        if f".{mark}" in key:
            refuse(f"the file is {kind} ({key})", "only plain LoRAs and DoRAs can be started from")
    refuse(f"{key} is no LoRA of SDXL that is known here", "is it for another family of models? Name one for SDXL")


def _put(module: Module, matrix: str, tensor: torch.Tensor, key: str) -> None:
    values = tensor.float()
    if not bool(values.isfinite().all()):
        refuse(f"{key} holds values that are not finite", "name another file")
    if matrix == _ALPHA:
        if values.numel() != 1 or not values.item() > 0:
            refuse(f"{key} is no positive number", "name another file")
        module.alpha = float(values.item())
    elif matrix == names.MAGNITUDE:
        if values.ndim > 1 and values.shape[0] == 1 != values.shape[1]:
            refuse(f"{key} has a magnitude for each input", "only DoRAs with one for each output are supported")
        module.magnitude = values.flatten()
    else:
        if values.ndim < 2 or values.shape[2:].numel() != 1:
            refuse(f"{key} has the shape {tuple(values.shape)}: a convolution", "only linear layers are supported")
        values = values.reshape(values.shape[:2])
        if matrix == names.DOWN:
            module.down = values
        else:
            module.up = values


def _check(place: str, module: Module) -> None:
    if module.down is None or module.up is None:
        refuse(f"{place} lacks its {'down' if module.down is None else 'up'} matrix", "name a whole file")
    if module.down.shape[0] != module.up.shape[1]:
        refuse(f"{place} has matrices of two ranks", "name another file")
    if module.magnitude is not None and module.magnitude.shape[0] != module.up.shape[0]:
        refuse(f"{place} has as many magnitudes as {tuple(module.magnitude.shape)}", "name another file")


def _take_alphas(modules: Mapping[str, Module], metadata: Mapping[str, str]) -> None:
    """Give modules without an alpha in a tensor the one of the file's metadata, where there is one."""
    try:
        told = json.loads(metadata.get(_ADAPTER_METADATA, "{}"))
    except ValueError:
        refuse(f"{_ADAPTER_METADATA} in the file's header is no JSON", "name another file")
    if not isinstance(told, dict):
        return
    for place, module in modules.items():
        if module.alpha is not None:
            continue
        part, _, name = place.partition(".")
        alpha = next(_alphas(told, part, name), None)
        if isinstance(alpha, int | float) and alpha > 0:
            root = module.rank**0.5 if told.get(f"{part}.use_rslora") else 1.0
            module.alpha = float(alpha) * root


def _alphas(told: Mapping[str, Any], part: str, module: str) -> Iterator[Any]:
    pattern = told.get(f"{part}.alpha_pattern")
    for key, alpha in (pattern if isinstance(pattern, dict) else {}).items():
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            yield alpha
    yield told.get(f"{part}.lora_alpha")
