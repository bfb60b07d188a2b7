"""A tiny SDXL of real parts, made from configs: VAE, UNet, two text encoders, tokenizers, scheduler; 7 MB, in seconds.

It stands in for the real weights in the demo and the tests, where no hub can be reached; the trainer's loading code is
the real one. Its weights are a pure function of their names, so every build has the same bytes.

    python -m examples.tiny_sdxl FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorafinetune_trainer import imports

if TYPE_CHECKING:
    import torch

WORDS = ("photo", "picture", "style", "cat", "dog", "timber", "cup", "of", "in", "on", "the", "a", "with", "sks")
"""Words that become one token each; all others are spelled byte by byte."""
POSITIONS = 77
WIDTH = 32
"""Width of each text encoder; the UNet's cross-attention sees both, side by side."""


def build(folder: Path, *, broken: bool = False) -> Path:
    """Write the model to *folder* as a diffusers SDXL folder and return it.

    With *broken*, the UNet's last layer holds a NaN, so that its loss is NaN from the first step on.
    """
    imports.quiet()
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per text encoder, for 7 MB
    words = tokenizer()
    vocabulary = words.get_vocab()
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.13025,
    )
    parts = {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "text_encoder_2": CLIPTextModelWithProjection(text),
    }
    for name, part in parts.items():
        _fill(name, part)
        if broken and name == "unet":
            unet.conv_out.weight.data[0, 0, 0, 0] = math.nan
        part.save_pretrained(folder / name)
    EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        timestep_spacing="leading",
    ).save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        words.save_pretrained(folder / name)
    _write_index(folder)
    return folder


def tokenizer() -> Any:
    """Return the tokenizer of both text encoders: real, with few words of its own."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def _fill(part: str, model: torch.nn.Module) -> None:
    """Give every weight a value that depends on its name only: the same on every processor and library version."""
    import torch

    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            values = np.zeros(weight.shape)
        elif weight.ndim == 1:
            values = np.ones(weight.shape)
        else:
            seed = int.from_bytes(hashlib.sha256(f"{part}.{name}".encode()).digest()[:8])
            fan_in = weight[0].numel()
            values = np.random.Generator(np.random.Philox(seed)).standard_normal(weight.shape) / math.sqrt(fan_in)
        weight.data.copy_(torch.from_numpy(values.astype(np.float32)))


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a byte-level tokenizer that knows WORDS."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters = [chr(one) for one in printable]
    letters += [chr(256 + count) for count in range(256 - len(letters))]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _write_index(folder: Path) -> None:
    import json

    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.tiny_sdxl", description="Make a tiny SDXL to try with.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    made = build(parser.parse_args().folder)
    size = sum(one.stat().st_size for one in made.rglob("*") if one.is_file())
    print(f"a tiny SDXL of {size / 1e6:.0f} MB, as a diffusers folder, is in {made}: name it in baseModel.source")
