"""Seconds per step with the caches on and off: one loop fed from the cache, and the same loop fed by samples that call
VAE and text encoders anew for each slot. ``python -m tests.bench.trainer.steps MODEL PHOTOS STEPS``, in a process of
its own; the two take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Training
from lorafinetune_trainer import imports, instructions
from tests.bench.trainer.stage import PROMPT, TRAINING

TURN = 5
"""Steps that one loop takes before it is the other's turn."""


@dataclass(slots=True)
class Calls:
    """How often the encoders were asked since the bench began to count."""

    vae: int = 0
    text_encoders: int = 0


class Anew:
    """A sample that keeps nothing: what it is asked for is encoded at that moment."""

    repeats = 1

    def __init__(self, name: str, latents: Callable[[], tuple[Any, Any]], prompts: Callable[[], Any]) -> None:
        self.name = name
        self.captions = (PROMPT,)
        self._latents = latents
        self.prompts = _Later(prompts)

    @property
    def cuts(self) -> Any:
        return self._latents()[0]

    @property
    def flipped(self) -> Any:
        return self._latents()[1]


class _Later:
    """A tuple of prompts, each made when it is taken."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, number: int) -> Any:
        return self._make()[number]


def main(model_folder: Path, photos: Path, count: int) -> dict[str, Any]:
    """Return the seconds of each step, with caches on and off, and the calls of the encoders per step."""
    instructions.hold(None)
    imports.settle(None)
    training = Training.model_validate({**TRAINING, "steps": count})
    imports.begin(training).join()

    import torch

    from lorafinetune_trainer.base.files import Folder, Part
    from lorafinetune_trainer.conditioning import latents, prompts
    from lorafinetune_trainer.conditioning.samples import Sample, Samples
    from lorafinetune_trainer.data import buckets
    from lorafinetune_trainer.data import dataset as datasets
    from lorafinetune_trainer.training import model as models
    from lorafinetune_trainer.training.loop import Loop

    models.be_deterministic(1)
    device = torch.device("cpu")
    files = Folder(model_folder, tuple(sorted(_names(model_folder))))
    config = RunConfig.model_validate(
        {
            "run": {"name": "-", "uid": "-"},
            "baseModel": {"source": str(model_folder)},
            "dataset": {"source": str(photos), "instancePrompt": PROMPT},
            "storage": {"uri": "-"},
        }
    )
    dataset = datasets.scan(datasets.instances(config.dataset), _no_bucket)
    calls = Calls()
    encode_cuts = latents.encoder(Part(files, "vae"), device, flips=training.random_flip)
    encode_prompt = prompts.encoder(prompts.load(files, device))

    def latents_of(cut: latents.Cuts) -> tuple[Any, Any]:
        calls.vae += len(cut.pixels) * (2 if training.random_flip else 1)
        return latents.kept(encode_cuts(cut))

    def prompts_of(caption: str) -> Any:
        calls.text_encoders += 2
        return prompts.kept(encode_prompt((caption,)))

    cuts = {
        image.name: latents.cuts(dataset, image, buckets.frame(image.size, training.resolution, square=True))
        for image in dataset.images
    }
    kept = [Sample(name, *latents_of(one), (PROMPT,), prompts_of(PROMPT)) for name, one in cuts.items()]
    anew = [Anew(name, lambda one=one: latents_of(one), lambda: prompts_of(PROMPT)) for name, one in cuts.items()]

    def loop(instances: list[Any]) -> Loop:
        return Loop(
            models.load(files, training, device),
            Samples(tuple(instances)),
            training,
            dataset_digest=dataset.digest,
            device=device,
            total=0,
            micro_batch=training.micro_batch or training.images_per_step,
        )

    contenders = {"on": loop(kept), "off": loop(anew)}
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    asked: dict[str, Calls] = {"on": Calls(), "off": Calls()}
    for turn in range(0, count, TURN):
        for name, one in contenders.items():
            calls.vae = calls.text_encoders = 0
            _take_turn(one, turn + TURN, seconds[name])
            asked[name].vae += calls.vae
            asked[name].text_encoders += calls.text_encoders
    return {
        "seconds": {name: values[1:] for name, values in seconds.items()},  # the first warms up
        "vae": {name: one.vae / len(seconds[name]) for name, one in asked.items()},
        "text encoders": {name: one.text_encoders / len(seconds[name]) for name, one in asked.items()},
        "images": training.images_per_step,
    }


def _take_turn(loop: Any, until: int, seconds: list[float]) -> None:
    last = time.monotonic()

    def on_step(_: object) -> None:
        nonlocal last
        now = time.monotonic()
        seconds.append(now - last)
        last = now

    loop.total = until
    loop.train(on_step)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _no_bucket(_: object) -> Any:
    raise ValueError("the bench's pictures lie in a folder")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
