"""What all measures share: the tiny SDXL, pictures, a real S3 server, and run configs that are alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from lorafinetune.contract.runconfig import RunConfig
from tests.integration.trainer.s3 import Access, serve

MODEL_SHA256 = "b35cf12b1aa33f923c174ef8d02fba1c460354853a8879247347ec7104e2d845"
"""Of the tiny SDXL's weights: a figure is of this model and of no other."""
PROMPT = "a photo of sks timber dog"
PICTURES = ("astronaut", "chelsea", "coffee", "rocket")
"""As many as a step takes: a script whose steps end with the epoch then takes as many in each."""
TRAINING: dict[str, Any] = {
    "resolution": 64,
    "precision": "fp32",
    "learningRate": 1e-4,
    "gradientAccumulation": 4,
    "batchSize": 1,
    "randomFlip": True,
    "seed": 7,
    "lora": {"rank": 4},
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything lies."""

    folder: Path
    model: Path
    photos: Path
    s3: Access

    def config(self, name: str, *, steps: int, every: int, endpoint: str | None = None) -> RunConfig:
        """Return the config of a new run; images and base model come from the bucket, through *endpoint*."""
        return RunConfig.model_validate(
            {
                "run": {"name": name, "uid": f"{name}-0000-uid"},
                "baseModel": {"source": "s3://loras/model/"},
                "dataset": {"source": "s3://loras/photos/", "instancePrompt": PROMPT},
                "training": {**TRAINING, "steps": steps},
                "checkpoint": {"everySteps": every},
                "storage": {
                    "uri": "s3://loras/runs/",
                    "endpoint": endpoint or self.s3.endpoint,
                    "credentials": str(self.s3.credentials),
                },
                "noticeSeconds": 20,
            }
        )


@contextmanager
def stage(folder: Path, *, nice: int = 0) -> Iterator[Stage]:
    """Build all of it below *folder*; the server, which yields so much to others, ends with the block."""
    from examples import tiny_sdxl

    model, photos, server = folder / "model", folder / "photos", folder / "s3"
    tiny_sdxl.build(model)
    photos.mkdir()
    for name in PICTURES:
        Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB").resize((96, 96)).save(photos / f"{name}.png")
    server.mkdir()
    with serve(server, nice=nice) as s3:
        for kind, below in (("model", model), ("photos", photos)):
            place = s3.bucket(f"s3://loras/{kind}/")
            for path in sorted(below.rglob("*")):
                if path.is_file():
                    place.put(path.relative_to(below).as_posix(), path.read_bytes())
        yield Stage(folder, model, photos, s3)


def digest(model: Path) -> str:
    """Return the SHA-256 over the weights of a model's folder."""
    found = hashlib.sha256()
    for path in sorted(model.rglob("*.safetensors")):
        found.update(path.relative_to(model).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()
