"""The model card: what the LoRA is, how it was trained, what it looks like, and how to load it.

It is for people and no part of the promise of equal bytes: attempts, seconds and places may stand in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from lorafinetune_trainer.product.export import CURVE, DIFFUSERS, KOHYA
from lorafinetune_trainer.product.product import Product

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]|<>~&$])")
_GAPS: Final = re.compile(r"\n{3,}")
"""Where a part of the template is empty."""
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
import torch
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.{load}
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
    seconds: float = 0.0
    """Of training, over all attempts, without steps that were done again."""


def write(
    product: Product,
    history: History,
    *,
    samples: Sequence[str] = (),
    grid: str | None = None,
    curve: bool = False,
    intermediate: Sequence[str] = (),
) -> str:
    """Return the card. *samples* and *grid* name pictures in the artifact's folder; *curve*: the loss too.

    The samples are those of the last step, in the order of the prompts, by their names' last number.
    """
    base = _repository(product)
    shown = [(one, _prompt_of(one, product)) for one in samples]
    pictures = [f"![the pictures over the steps]({quote(grid)})\n"] if grid else []
    pictures += [f"![{plain(words)}]({quote(one)})\n*{plain(words)}*\n" for one, words in shown]
    triggers = " or ".join(f"`{_code(one)}`" for one in product.triggers)
    text = _TEMPLATE.format(
        front=_front(product, shown),
        title=plain(product.config.run.name),
        trigger=f"\nTrigger: {triggers}\n" if triggers else "",
        pictures="\n".join(pictures),
        table="\n".join(f"| {name} | {plain(value)} |" for name, value in _settings(product).items()),
        curve=f"\n![loss over the steps]({CURVE})\n" if curve else "",
        load=_load(product, base),
        prompt=next(iter(product.triggers), "a prompt"),
        diffusers=DIFFUSERS,
        kohya=KOHYA,
        stem=KOHYA.removesuffix(".safetensors"),
        encoders=" between model, CLIP and sampler" if product.config.training.lora.text_encoder else "",
        remarks="".join(f"\n{one}\n" for one in _remarks(product)),
        history=_history(product, history, intermediate),
    )
    return _GAPS.sub("\n\n", text)


def plain(value: object) -> str:
    """Return *value* as text that Markdown shows as it is, on one line, in a table too."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def _repository(product: Product) -> str | None:
    """Return owner and name of the base model on the hub; None where it came from elsewhere."""
    source = product.config.base_model.source
    return "/".join(source.removeprefix(_HUB).split("/")[:2]) if source.startswith(_HUB) else None


def _load(product: Product, base: str | None) -> str:
    """Return how the base model is loaded in Python."""
    source = product.config.base_model.source
    if not source.endswith(".safetensors"):
        return f"from_pretrained({base or 'path/to/the/base/model'!r}, torch_dtype=torch.float16)"
    return f"from_single_file({'path/to/' + source.rpartition('/')[2]!r}, torch_dtype=torch.float16)"


def _prompt_of(sample: str, product: Product) -> str:
    """Return the prompt of a sample, whose name ends with the prompt's number."""
    asked, number = product.config.validation, re.search(r"-(\d+)\.\w+$", sample)
    if asked is None or number is None or int(number[1]) >= len(asked.prompts):
        return "a sample"
    return asked.prompts[int(number[1])]


def _front(product: Product, samples: Sequence[tuple[str, str]]) -> str:
    """Return what the hub reads: JSON values, which are YAML. Remarks stand where only the publisher knows."""
    lora, base = product.config.training.lora, _repository(product)
    tags = ["text-to-image", "diffusers", "lora", "template:sd-lora", "stable-diffusion-xl"]
    found: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [*tags, *(["dora"] if lora.dora else [])],
    }
    if base is not None:
        found |= {"base_model": base, "base_model_relation": "adapter"}
    if product.triggers:
        found["instance_prompt"] = ", ".join(product.triggers)
    if samples:
        found["widget"] = [{"text": words, "output": {"url": quote(one)}} for one, words in samples]
    lines = [f"{name}: {json.dumps(value)}" for name, value in found.items()]
    if base is None:
        lines.append("# base_model: owner/name of the base model on the hub, if it is there")
    return "\n".join([*lines, "# license: yours to choose; the base model's license may limit the choice"])


def _settings(product: Product) -> dict[str, object]:
    config, training, plan = product.config, product.config.training, product.plan
    lora = training.lora
    kinds = [
        *(["a DoRA"] if lora.dora else []),
        *(["rank-stabilised"] if lora.rs_lora else []),
        *(["text encoders too"] if lora.text_encoder else []),
    ]
    found = {
        "base model": f"{_named(config.base_model.source)} (digest {plan.base_model_digest[:12]})",
        "VAE": _named(config.base_model.vae) if config.base_model.vae else None,
        "training images": f"{product.images} (digest {plan.dataset_digest[:12]})",
        "class images": product.class_images or None,
        "instance prompt": config.dataset.instance_prompt or "none: captions of the images, or words of their folders",
        "steps": f"{product.steps}"
        + (f" of {product.planned}: the run was stopped at a limit" if product.planned is not None else "")
        + (f", of which {product.updates} changed the weights" if product.updates != product.steps else ""),
        "images per step": f"{product.images_per_step}"
        + (f": {training.images_per_step} training images, as many class images" if product.class_images else ""),
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


def _named(source: str) -> str:
    """Return what a stranger may know of where it lies: a repository of the hub, else the last part of the path."""
    return source if source.startswith(_HUB) else source.rstrip("/").rpartition("/")[2]


def _code(text: str) -> str:
    """Return *text* as it can stand between backquotes."""
    return " ".join(text.split()).replace("`", "'")


def _history(product: Product, history: History, intermediate: Sequence[str]) -> str:
    again = f", finished by attempt {history.attempt}" + (", after interruptions" if history.attempt > 1 else "")
    lines = [f"Run {plain(history.run)} ({plain(history.uid)}){again}."]
    if history.seconds:
        each = f"{history.seconds / product.steps:.2g} s a step"
        lines += [f"{product.steps} steps took {history.seconds:.0f} s on {plain(product.plan.device)}: {each}."]
    if intermediate:
        beside = "LoRAs of chosen steps are beside it (and, without `_kohya`, for diffusers):"
        lines += ["", beside, "", *(f"- `{name}`" for name in intermediate)]
    return "\n".join(["## How the run went", "", *lines, ""])
