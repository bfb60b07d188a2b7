"""The base model's parts as modules in memory: UNet, VAE, text encoders, and the schedule of its noise.

This is the one place that knows how weights are laid out in files. Whatever the libraries meet there that they cannot
load becomes a failure that names the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.training import Precision
from lorafinetune_trainer.base import tokenizer
from lorafinetune_trainer.base.files import SCHEDULER, Files, Part, Single
from lorafinetune_trainer.failure import Failure, explain, invalid

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

_Loaded = TypeVar("_Loaded")

_MEND: Final = "fetch or upload it again, or name another in baseModel"


@dataclass(frozen=True, slots=True)
class Words:
    """What one of SDXL's two text encoders is told of a caption: its tokenizer, without its weights."""

    tokenizer: Any
    """A CLIPTokenizer."""
    positions: int
    """Tokens that the encoder has places for."""

    @property
    def window(self) -> int:
        """Tokens that go through the model at once, start and end included: 77."""
        return int(min(self.tokenizer.model_max_length, self.positions))

    def tokens(self, caption: str) -> list[int]:
        """Return the tokens of *caption*, without start and end."""
        # The tokenizer would print a warning where they are more than a window.
        return list(self.tokenizer(caption, add_special_tokens=False, verbose=False).input_ids)


@dataclass(frozen=True, slots=True)
class TextEncoder(Words):
    """One of SDXL's two text encoders, frozen, with the tokenizer that belongs to it."""

    model: Any
    """A CLIPTextModel, or a CLIPTextModelWithProjection: the second one."""


def dtype(precision: Precision) -> torch.dtype:
    """Return the type of the frozen weights for *precision*."""
    import torch

    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}[precision]


def load_unet(files: Files, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the UNet on the CPU, frozen, in training mode; raises Failure (INVALID) where it cannot be loaded."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = _load("the UNet", lambda: _load_diffusers(UNet2DConditionModel, Part(files, "unet"), dtype))
    return unet.requires_grad_(False).train()


def load_vae(part: Part, dtype: torch.dtype) -> AutoencoderKL:
    """Return the VAE on the CPU, frozen, in evaluation mode; raises Failure (INVALID) where it cannot be loaded."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = _load("the VAE", lambda: _load_diffusers(AutoencoderKL, part, dtype))
    return vae.requires_grad_(False).eval()


def load_text_encoders(files: Files, dtype: torch.dtype) -> tuple[TextEncoder, TextEncoder]:
    """Return both text encoders on the CPU, frozen, in evaluation mode; raises Failure (INVALID) as the others do."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    def load(kind: Any, suffix: str) -> TextEncoder:
        model = _load(f"text_encoder{suffix}", lambda: _load_text_encoder(kind, files, f"text_encoder{suffix}", dtype))
        words = load_words(files, suffix)
        return TextEncoder(words.tokenizer, words.positions, model.requires_grad_(False).eval())

    return load(CLIPTextModel, ""), load(CLIPTextModelWithProjection, "_2")


def load_words(files: Files, suffix: str) -> Words:
    """Return the tokenizer of the text encoder whose folder ends in *suffix*; raises Failure (INVALID) likewise."""
    config = files.json(f"text_encoder{suffix}/config.json")
    words = _load(f"tokenizer{suffix}", lambda: _load_tokenizer(files, f"tokenizer{suffix}"))
    return Words(words, int(config.get("max_position_embeddings", 77)))


def scheduler_config(files: Files) -> dict[str, Any]:
    """Return the config of the noise schedule, with its ``prediction_type``."""
    return files.json(SCHEDULER)


def _load_diffusers(kind: Any, part: Part, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Return the model and the names of the weights that its files lack."""
    files = part.files
    if isinstance(files, Single):
        return _load_original(kind, files, part.name, dtype)
    model, found = kind.from_pretrained(
        part.folder, variant=part.variant, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    return model, sorted(found["missing_keys"])


def _load_original(kind: Any, files: Single, name: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Do what ``from_single_file`` does, which stumbles over missing weights without saying which."""
    from accelerate import init_empty_weights
    from diffusers.loaders import single_file_utils

    convert = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint,
        "vae": single_file_utils.convert_ldm_vae_checkpoint,
    }[name]
    config, tensors = files.json(f"{name}/config.json"), _tensors(files, name)
    with init_empty_weights():
        model = kind.from_config(config)
    known = dict(model.state_dict())
    if not any(".down_blocks." in one for one in tensors):  # those are diffusers' own names: VAEs are shared so, too
        tensors = convert(tensors, {**config, **model.config})
    if missing := sorted(known.keys() - tensors.keys()):
        return model, missing
    model.load_state_dict({one: tensors[one].to(dtype) for one in known}, assign=True)
    return model.eval(), []


def _load_text_encoder(kind: Any, files: Files, name: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    if isinstance(files, Single):
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        model = create_diffusers_clip_model_from_ldm(
            kind,
            _tensors(files, name),
            subfolder=name,
            config=str(files.config_folder(name)),
            torch_dtype=dtype,
            local_files_only=True,
        )
        return model, _unfilled(model)
    model, found = kind.from_pretrained(
        files.folder / name, variant=files.variant(name), dtype=dtype, local_files_only=True, output_loading_info=True
    )
    return model, sorted(found["missing_keys"])


def _load_tokenizer(files: Files, name: str) -> tuple[Any, list[str]]:
    if isinstance(files, Single):
        folder = files.config_folder(name)
        if files.is_shipped(name):
            return tokenizer.shipped(folder, name), []
    else:
        folder = files.folder
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / name, local_files_only=True), []


def _tensors(files: Single, part: str) -> dict[str, torch.Tensor]:
    """Return the tensors of *part* under the names of the file, as views of it: nothing is read yet."""
    from safetensors import safe_open

    with safe_open(files.folder / files.name, framework="pt") as file:
        return {name: file.get_tensor(name) for name in files.tensors(part)}


def _unfilled(model: Any) -> list[str]:
    """Return the names of the weights that were given no value."""
    return sorted(name for name, weight in model.named_parameters() if weight.is_meta)


def _load(part: str, load: Callable[[], tuple[_Loaded, list[str]]]) -> _Loaded:
    try:
        loaded, missing = load()
    except Exception as error:  # the libraries raise whatever they meet in a file
        raise _unloadable(part, error) from error
    if missing:
        raise invalid(
            "WrongBaseModel",
            f"{part} of the base model lacks {len(missing)} weights, first {missing[0]}: {_MEND}",
        )
    return loaded


def _unloadable(part: str, error: Exception) -> Failure:
    """Return the failure of a part whose files are there and cannot be loaded; memory that ran out stays that."""
    failure = explain(error)
    if failure.code is ExitCode.OUT_OF_MEMORY:
        return failure
    return invalid("WrongBaseModel", f"{part} of the base model cannot be loaded: {failure.message}: {_MEND}")
