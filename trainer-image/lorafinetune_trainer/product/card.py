"""The model card: what the LoRA is, how it was trained, what it looks like, and how to load it.

It is for people and no part of the promise of equal bytes: attempts, seconds and places may stand in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from lorafinetune_trainer.product.export import CURVE, DIFFUSERS, KOHYA
from lorafinetune_trainer.product.product import Product

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]|<>~&$])")
_HUB: Final = "hf://"
_TEMPLATE: Final = """---
{front}
---
# {title}

A LoRA for Stable Diffusion XL, made by lorafinetune.
{trigger}
{pictures}
## How it was trained

| | |
|---|---|
{table}
{curve}
## How to load it

diffusers:

```python
from diffusers import StableDiffusionXLPipeline
pipeline = StableDiffusionXLPipeline.from_pretrained({base!r})
pipeline.load_lora_weights("path/to/this/folder", weight_name="{diffusers}")
image = pipeline({prompt!r}).images[0]
```

ComfyUI: put `{kohya}` into `models/loras` and add a *Load LoRA* node{encoders}.

A1111, Forge: put `{kohya}` into `models/Lora` and write `<lora:{stem}:1>` into the prompt.
{remarks}
{history}"""


@dataclass(frozen=True, slots=True)
class History:
    """How the run went: what two equal runs may differ in."""

    run: str
    """Namespace and name."""
    uid: str
    attempt: int
    """The one that finished."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each phase, over all attempts that are known."""


def write(
    product: Product,
    history: History,
    *,
    samples: Sequence[str] = (),
    grid: str | None = None,
    curve: bool = False,
    intermediate: Sequence[str] = (),
) -> str:
    """Return the card. *samples* and *grid* name pictures in the artifact's folder; *curve*: the loss too."""
    prompt = product.config.dataset.instance_prompt
    base = product.config.base_model.source.removeprefix(_HUB)
    pictures = [f"![the pictures over the steps]({quote(grid)})"] if grid else []
    pictures += [f"![a sample]({quote(one)})" for one in samples]
    return _TEMPLATE.format(
        front=_front(product),
        title=plain(product.config.run.name),
        trigger=f"\nTrigger: {plain(prompt)}\n" if prompt else "",
        pictures="\n".join([*pictures, ""]) if pictures else "",
        table="\n".join(f"| {name} | {plain(value)} |" for name, value in _settings(product).items()),
        curve=f"\n![loss over the steps]({CURVE})\n" if curve else "",
        base=base if product.config.base_model.source.startswith(_HUB) else "path/to/the/base/model",
        prompt=prompt or "a prompt",
        diffusers=DIFFUSERS,
        kohya=KOHYA,
        stem=KOHYA.removesuffix(".safetensors"),
        encoders=" between model, CLIP and sampler" if product.config.training.lora.text_encoder else "",
        remarks="".join(f"\n{one}\n" for one in _remarks(product)),
        history=_history(history, intermediate),
    )


def plain(value: object) -> str:
    """Return *value* as text that Markdown shows as it is, on one line, in a table too."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def _front(product: Product) -> str:
    source, lora = product.config.base_model.source, product.config.training.lora
    found: dict[str, object] = {
        "library_name": "diffusers",
        "tags": ["text-to-image", "lora", "stable-diffusion-xl", *(["dora"] if lora.dora else [])],
    }
    if source.startswith(_HUB):
        found["base_model"] = source.removeprefix(_HUB)
    if product.config.dataset.instance_prompt:
        found["instance_prompt"] = product.config.dataset.instance_prompt
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items())  # JSON is YAML


def _settings(product: Product) -> dict[str, object]:
    config, training, plan = product.config, product.config.training, product.plan
    lora = training.lora
    kinds = [
        *(["a DoRA"] if lora.dora else []),
        *(["rank-stabilised"] if lora.rs_lora else []),
        *(["text encoders too"] if lora.text_encoder else []),
    ]
    found = {
        "base model": config.base_model.source,
        "training images": f"{product.images} (digest {plan.dataset_digest[:12]})",
        "class images": product.class_images or None,
        "instance prompt": config.dataset.instance_prompt or "none: captions of the images, or words of their folders",
        "steps": f"{product.steps}, of which {product.updates} changed the weights",
        "images per step": training.images_per_step,
        "resolution": f"{training.resolution}{', in aspect buckets' if training.aspect_buckets else ''}",
        "optimizer": training.optimizer,
        "learning rate": f"{training.peak_rate:g}, {training.schedule}, {training.warmup_steps} steps of warm-up",
        "rank, alpha": f"{product.rank}, {product.alpha:g}",
        "targets": ", ".join([str(lora.targets), *kinds]),
        "started from": f"a LoRA with digest {plan.initial_lora_digest[:12]}" if plan.initial_lora_digest else None,
        "prediction": product.prediction + (", zero terminal SNR" if product.zero_terminal_snr else ""),
        "min-SNR gamma": training.min_snr_gamma,
        "noise offset": training.noise_offset or None,
        "EMA decay": training.ema_decay,
        "precision": training.precision,
        "seed": training.seed,
        "device": plan.device,
        "config digest": plan.config_digest[:12],
    }
    return {name: value for name, value in found.items() if value is not None}


def _remarks(product: Product) -> list[str]:
    found = []
    if product.config.training.lora.dora:
        found.append(
            f"It is a DoRA: `{DIFFUSERS}` is exact in diffusers. `{KOHYA}` has `dora_scale` for each output: ComfyUI "
            "and Forge take it (nearly exact: they divide by the base weight's norm alone), A1111 divides by inputs "
            "and spoils it, and diffusers drops the magnitudes of kohya files."
        )
    if product.prediction == "v_prediction":
        found.append("It was trained with v-prediction: use it with a base model that predicts v.")
    return found


def _history(history: History, intermediate: Sequence[str]) -> str:
    lines = [f"Run {plain(history.run)} ({plain(history.uid)}), finished by attempt {history.attempt}."]
    if history.seconds:
        lines += ["", "| phase | seconds, without steps that were done again |", "|---|---|"]
        lines += [f"| {plain(phase)} | {seconds:.0f} |" for phase, seconds in history.seconds.items()]
    if intermediate:
        beside = "LoRAs of chosen steps are beside it (and, without `_kohya`, for diffusers):"
        lines += ["", beside, "", *(f"- `{name}`" for name in intermediate)]
    return "\n".join(["## How the run went", "", *lines, ""])
