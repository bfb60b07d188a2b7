"""Tries the LoRA as anybody would: a diffusers StableDiffusionXLPipeline, the same prompt and seed, without and with.

    python -m examples.demo.pictures MODEL_FOLDER LORA_FILE OUTPUT_FOLDER PROMPT

A process of its own: torch and diffusers take seconds to load, and Ctrl-C ends it at any point.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

SEED = 7
EDGE = 64
"""Pixels that are painted: the resolution at which the demo trains."""
SHOWN = 384
"""Pixels that are shown of each."""
MARGIN, CAPTION = 16, 28


def paint(model: Path, lora: Path, prompt: str) -> tuple[Image, Image]:
    """Return the picture before and after the LoRA is loaded."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.set_num_threads(1)  # so small a model gains nothing from more
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)

    def one() -> Image:
        generator = torch.Generator("cpu").manual_seed(SEED)
        picture: Image = pipeline(
            prompt, height=EDGE, width=EDGE, num_inference_steps=20, guidance_scale=5.0, generator=generator
        ).images[0]
        return picture

    before = one()
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    return before, one()


def side_by_side(before: Image, after: Image, prompt: str) -> Image:
    """Return both pictures in one, with a caption each."""
    from PIL import Image, ImageDraw

    width, height = 3 * MARGIN + 2 * SHOWN, 2 * MARGIN + SHOWN + CAPTION
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(((before, "without the LoRA"), (after, "with the LoRA"))):
        left = MARGIN + number * (SHOWN + MARGIN)
        sheet.paste(picture.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC), (left, MARGIN))
        draw.text((left, MARGIN + SHOWN + 8), f'{text}: "{prompt}", seed {SEED}', fill="black")
    return sheet


def difference(before: Image, after: Image) -> float:
    """Return how far the two are apart: the mean over pixels and colours, as a part of the whole range (0 to 1)."""
    import numpy as np

    one, other = (np.asarray(picture, dtype=np.float64) for picture in (before, after))
    return float(np.abs(one - other).mean() / 255)


def main() -> None:
    """Paint, save, and print what came of it as one JSON object."""
    model, lora, folder = (Path(argument) for argument in sys.argv[1:4])
    prompt = sys.argv[4]
    before, after = paint(model, lora, prompt)
    before.save(folder / "before.png")
    after.save(folder / "after.png")
    side_by_side(before, after, prompt).save(folder / "before-and-after.png")
    print(json.dumps({"difference": difference(before, after)}))


if __name__ == "__main__":
    main()
