"""Takes the finished LoRA out of the bucket and tries it in diffusers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.demo.children import Child
from examples.demo.error import DemoError
from examples.demo.scene import Scene
from examples.demo.stagehands import CAPTIONS, shown
from examples.stage import LORAS, REPOSITORY

PAINT = 180.0
"""Seconds that the pictures may take: torch and diffusers are loaded anew."""


def fetch(scene: Scene, artifact: Mapping[str, Any]) -> Path:
    """Download the LoRA and compare it with the status. Raises DemoError."""
    key = f"{artifact['uri']}{artifact['file']}".removeprefix(f"s3://{LORAS}/")
    path = scene.folder / str(artifact["file"])
    scene.cluster.s3.client().download_file(LORAS, key, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != artifact["sha256"]:
        raise DemoError(f"{shown(path)} has the SHA-256 {digest}, but the status says {artifact['sha256']}")
    scene.screen.say(f"Downloaded to {shown(path)} ({path.stat().st_size} bytes); its SHA-256 is that of the status.")
    return path


def paint(scene: Scene, model: Path, lora: Path) -> None:
    """Paint without and with the LoRA. Raises DemoError."""
    log = scene.folder / "logs" / "pictures.log"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "examples.demo.pictures",
        model,
        lora,
        scene.folder,
        CAPTIONS["chelsea"],
    ]
    answer: list[str] = []
    with Child(command, errors=log, folder=REPOSITORY, on_line=answer.append) as painter:
        code = painter.wait(PAINT, f"the pictures were not painted within {PAINT:.0f} s: see {shown(log)}")
    if code != 0 or not answer:
        raise DemoError(f"the LoRA could not be tried in diffusers: see {shown(log)}")
    difference = json.loads(answer[-1])["difference"]
    scene.screen.say(
        "Painted by StableDiffusionXLPipeline with the same prompt and seed, without and with the LoRA: "
        f"{shown(scene.folder / 'before-and-after.png')}. They differ by {difference:.0%} of the range on average."
    )
    scene.screen.note(
        "The tiny model has random weights, so both pictures are abstract: they show that the LoRA loads and changes "
        "what is painted, not that it paints a cat."
    )
