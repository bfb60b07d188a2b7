"""The tiny SDXL in this process, and data made up for it: what the tests of the mathematics train."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from examples import tiny_sdxl
from lorafinetune.contract.training import Precision, Training
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Folder
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
from lorafinetune_trainer.saving import state
from lorafinetune_trainer.saving.checkpoints import Snapshot
from lorafinetune_trainer.training import model as models
from lorafinetune_trainer.training.loop import Loop, Progress
from lorafinetune_trainer.training.model import Model

torch.set_num_threads(1)  # many small sums: threads would only wait for one another
CPU = torch.device("cpu")
TYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}


@functools.cache
def frozen() -> tuple[Any, Any, dict[str, Any]]:
    """UNet, text encoders and the schedule's config: take copies."""
    with tempfile.TemporaryDirectory() as folder:
        root = tiny_sdxl.build(Path(folder))
        names = tuple(str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file())
        files = Folder(root, names)
        return (
            parts.load_unet(files, torch.float32),
            parts.load_text_encoders(files, torch.float32),
            parts.scheduler_config(files),
        )


def training(**changes: Any) -> Training:
    base = {"steps": 3, "precision": "fp32", "learningRate": 0.01, "gradientAccumulation": 2, "lora": {"rank": 4}}
    merged = {**base, **changes}
    merged["lora"] = {**base["lora"], **changes.get("lora", {})}  # type: ignore[dict-item]
    return Training.model_validate(merged)


def model(settings: Training, *, compiled: bool = False) -> Model:
    unet, encoders, config = frozen()
    dtype = TYPES[settings.precision]
    kept = tuple(dataclasses.replace(one, model=copy.deepcopy(one.model).to(dtype)) for one in encoders)
    return models.adapted(
        copy.deepcopy(unet).to(dtype),
        kept if settings.lora.text_encoder else (),
        models.scheduler(config, settings),
        settings,
        CPU,
        compiled=compiled,
    )


def sample(number: int, *, shape: tuple[int, int] = (8, 8), **members: Any) -> Sample:
    """An image of noise with two cuts, both also mirrored, and a caption in two orders."""
    random = torch.Generator().manual_seed(number)

    def latents() -> Latents:
        ids = torch.tensor([64.0, 64, 0, 0, *(8 * edge for edge in shape)])
        mean = torch.randn(4, *shape, generator=random)
        return Latents(mean, torch.rand(4, *shape, generator=random) * 0.1, ids)

    captions = (f"photo of sks dog, {number}", f"{number}, photo of sks dog")
    return Sample(
        name=f"{number}.png",
        cuts=(latents(), latents()),
        flipped=(latents(), latents()),
        captions=captions,
        prompts=tuple(_prompt(one) for one in captions),
        **members,
    )


@functools.cache
def _prompt(caption: str) -> Prompt:
    with torch.no_grad():
        embeddings, pooled = prompts.embed(frozen()[1], [caption])
    return Prompt(embeddings[0], pooled[0])


def samples(**members: Any) -> Samples:
    return Samples(tuple(sample(number) for number in range(3)), empty=_prompt(""), **members)


def loop(settings: Training, given: Samples | None = None, *, micro_batch: int = 1, compiled: bool = False) -> Loop:
    return Loop(
        model(settings, compiled=compiled),
        given or samples(),
        settings,
        dataset_digest="d",
        device=CPU,
        total=settings.steps or 0,
        micro_batch=micro_batch,
    )


class Enough(Exception):
    """The test has seen what it wanted."""


def train(one: Loop, until: int) -> list[Progress]:
    """Train up to step *until*, and stop there as abruptly as a kill."""
    seen: list[Progress] = []

    def on_step(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == until:
            raise Enough

    try:
        one.train(on_step)
    except Enough:
        return seen
    raise AssertionError(f"the loop ended before step {until}")


def through_bytes(snapshot: Snapshot) -> Snapshot:
    """What a checkpoint makes of a snapshot."""
    import json

    tensors = state.join(part.body for part in state.split(snapshot.tensors, 256 * 1024))
    return Snapshot(snapshot.step, snapshot.updates, tensors, json.loads(json.dumps(snapshot.scalars)))


def differing(ours: Snapshot, theirs: Snapshot) -> list[str]:
    """Names of what is not equal in two snapshots, bit by bit."""
    names = ours.tensors.keys() | theirs.tensors.keys()
    found = [name for name in sorted(names) if not _equal(ours.tensors.get(name), theirs.tensors.get(name))]
    found += [name for name in ours.scalars if ours.scalars[name] != theirs.scalars.get(name)]
    return found + (["counters"] if (ours.step, ours.updates) != (theirs.step, theirs.updates) else [])


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)
