"""The base model's parts as modules in memory: UNet, VAE, text encoders, and the schedule of its noise.

This is the one place that knows how weights are laid out in files. Whatever the libraries meet there that they cannot
load becomes a failure that names the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune_trainer.base.files import Files, Part
from lorafinetune_trainer.failure import Failure, explain, invalid

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One of SDXL's two text encoders, frozen, with the tokenizer that belongs to it."""

    tokenizer: Any
    """A CLIPTokenizer."""
    model: Any
    """A CLIPTextModel, or a CLIPTextModelWithProjection: the second one."""

    @property
    def window(self) -> int:
        """Tokens that go through the model at once, start and end included: 77."""
        return int(min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings))

    def tokens(self, caption: str) -> list[int]:
        """Return the tokens of *caption*, without start and end."""
        # The tokenizer would print a warning where they are more than a window.
        return list(self.tokenizer(caption, add_special_tokens=False, verbose=False).input_ids)


def load_unet(files: Files, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the UNet on the CPU, frozen, in training mode."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet, found = _load(
        "the UNet",
        lambda: UNet2DConditionModel.from_pretrained(
            files.folder / "unet",
            variant=files.variant("unet"),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        ),
    )
    if missing := sorted(found["missing_keys"]):
        raise invalid("WrongBaseModel", f"the UNet of the base model lacks {len(missing)} weights, first {missing[0]}")
    unet.requires_grad_(False).train()
    return unet


def load_vae(part: Part, dtype: torch.dtype) -> AutoencoderKL:
    """Return the VAE on the CPU, frozen, in evaluation mode."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = _load(
        "the VAE",
        lambda: AutoencoderKL.from_pretrained(part.folder, variant=part.variant, dtype=dtype, local_files_only=True),
    )
    return vae.requires_grad_(False).eval()


def load_text_encoders(files: Files, dtype: torch.dtype) -> tuple[TextEncoder, TextEncoder]:
    """Return both text encoders on the CPU, frozen, in evaluation mode."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def load(kind: Any, suffix: str) -> TextEncoder:
        part = f"text_encoder{suffix}"
        model = _load(
            part,
            lambda: kind.from_pretrained(
                files.folder / part, variant=files.variant(part), dtype=dtype, local_files_only=True
            ),
        )
        tokenizer = _load(
            f"tokenizer{suffix}",
            lambda: CLIPTokenizer.from_pretrained(files.folder / f"tokenizer{suffix}", local_files_only=True),
        )
        return TextEncoder(tokenizer, model.requires_grad_(False).eval())

    return load(CLIPTextModel, ""), load(CLIPTextModelWithProjection, "_2")


def scheduler_config(files: Files) -> dict[str, Any]:
    """Return the config of the noise schedule, with its ``prediction_type``."""
    return files.json("scheduler/scheduler_config.json")


def unloadable(part: str, error: Exception) -> Failure:
    """Return the failure of a part whose files are there and cannot be loaded; memory that ran out stays that."""
    failure = explain(error)
    if failure.code is ExitCode.OUT_OF_MEMORY:
        return failure
    return invalid("WrongBaseModel", f"{part} of the base model cannot be loaded: {failure.message}")


def _load(part: str, load: Callable[[], _Loaded]) -> _Loaded:
    try:
        return load()
    except Exception as error:  # the libraries raise whatever they meet in a file
        raise unloadable(part, error) from error
