"""A run with everything on that draws, remembers or interrupts: what must not show in the bytes of its LoRA files."""

from __future__ import annotations

import hashlib
from typing import Any

from lorafinetune.contract import layout
from lorafinetune.storage import inventory
from tests.integration.trainer.process import Run, Trainers

WHOLE: dict[str, Any] = {
    "dataset": {
        "instancePrompt": "sks timber dog, a photo, outside",
        "classPrompt": "a photo of a dog",
    },
    "training": {
        "randomFlip": True,
        "randomCrop": True,
        "aspectBuckets": True,
        "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.2},
        "warmupSteps": 3,
        "schedule": "cosine",
        "emaDecay": 0.9,
        "minSnrGamma": 5,
        "noiseOffset": 0.05,
    },
    "checkpoint": {"everySteps": 2, "keepIntermediate": {"steps": [3]}},
    "validation": {"prompts": ["a photo of sks dog"], "everySteps": 3, "inferenceSteps": 1},
}
"""Three images of three shapes, one with a caption of its own, and two a step: epochs end within steps, and a step
later in every second one. Each counts beside an image of the class."""


def begin(trainers: Trainers, name: str, **changes: Any) -> Run:
    """Make a run with all of that; *changes* replace parts of its config."""
    changes["dataset"] = {"classSource": str(trainers.photos), **changes.get("dataset", {})}
    merged = {place: {**WHOLE.get(place, {}), **changes.get(place, {})} for place in WHOLE} | {
        place: value for place, value in changes.items() if place not in WHOLE
    }
    return trainers.run(name, **merged)


def hashes(run: Run) -> dict[str, str]:
    """Return the SHA-256 of each LoRA file that the run has published, by name."""
    artifact = run.head.artifact
    assert artifact is not None
    manifest = inventory.read_manifest(run.bucket, artifact.folder, artifact.manifest_sha256)
    names = [one.name for one in manifest.files if one.name.endswith(".safetensors")]
    assert layout.LORA in names
    assert len(names) >= 2 * (1 + len(_kept(run))), names
    return {name: hashlib.sha256(run.file(name)).hexdigest() for name in names}


def _kept(run: Run) -> tuple[int, ...]:
    kept = run.config.checkpoint.keep_intermediate
    return tuple(kept.steps) if kept is not None else ()
