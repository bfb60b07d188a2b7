"""How much memory there is, how much a training needs by formula, and how much was used. Nothing is tried out."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Optimizer, Precision, Targets, Training

if TYPE_CHECKING:
    import torch

GIB: Final = 2**30
CGROUPS: Final = Path("/sys/fs/cgroup")

SDXL_PARAMETERS: Final = 2_567_463_684
"""Of the real UNet: other sizes are taken to need activations in proportion."""
AREA: Final = 1024 * 1024
ACTIVATIONS: Final = 7.5 * GIB
"""What the backward pass keeps of one image of 1024 x 1024 pixels in 16 bits, with what lies beside it for a moment:
published 13.0 GiB at one image, less weights and context; the kept tensors alone are 5.2 GiB by counting."""
CHECKPOINTED: Final = 1.7 * GIB
"""The same with gradient checkpointing: published 6.5 GiB; the kept tensors alone are 0.45 GiB."""
TARGETS_SHARE: Final = {Targets.ATTENTION: 0.0, Targets.ALL: 0.2}
DORA_SHARE: Final = {Targets.ATTENTION: 0.25, Targets.ALL: 0.5}
"""What is kept besides, by counting the tensors that the tiny model keeps: inputs of more adapted layers, and their
outputs before they are given their lengths."""
ENCODERS_IMAGE: Final = 0.5 * GIB
"""Of one caption, where the text encoders are trained, in 16 bits."""
CONTEXT: Final = int(1.0 * GIB)
"""CUDA's own, and workspaces."""
PROCESS: Final = int(0.75 * GIB)
"""Python with its libraries."""
PROCESS_CUDA: Final = int(3.0 * GIB)
"""The same with CUDA's."""
_OPTIMIZER: Final = {Optimizer.ADAMW: 8.0, Optimizer.ADAMW_8BIT: 2.1, Optimizer.PRODIGY: 16.0}
"""Bytes of state for each trained number."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a training takes, in bytes."""

    fixed: int
    """Where it computes, whatever the number of images."""
    image: int
    """More, for each image that goes through the model at once."""
    host: int
    """On the host, besides, where that is another place: loading, and the state's copies."""

    def of(self, images: int) -> int:
        """Return what *images* at once need where the training computes."""
        return self.fixed + images * self.image


def need(config: RunConfig, unet: Mapping[str, Any], encoders: list[Mapping[str, Any]], *, gpu: bool) -> Need:
    """Return what the training of *config* takes; *unet* and *encoders* are the configs of what is trained."""
    training = config.training
    size = 4 if training.precision is Precision.FP32 else 2
    frozen, trained = count(unet, encoders, training)
    frozen_unet, _ = count(unet, [], training)
    state = int(
        trained * (8 + (4 if size == 2 else 0) + _OPTIMIZER[training.optimizer] + (4 if training.ema_decay else 0))
    )
    kept = CHECKPOINTED if training.gradient_checkpointing else ACTIVATIONS
    more = 1.0 + TARGETS_SHARE[training.lora.targets] + (DORA_SHARE[training.lora.targets] if training.lora.dora else 0)
    image = kept * more * (training.resolution**2 / AREA) * (frozen_unet / SDXL_PARAMETERS)
    if training.lora.text_encoder:
        image += ENCODERS_IMAGE * (frozen_unet / SDXL_PARAMETERS)
    image *= size / 2
    weights = frozen * size
    copies = 2 * state  # the snapshot that is being put, and the one that waits
    if gpu:
        return Need(weights + state + CONTEXT, int(image), PROCESS_CUDA + weights + copies)
    return Need(PROCESS + weights + state + copies, int(image), 0)


def count(unet: Mapping[str, Any], encoders: list[Mapping[str, Any]], training: Training) -> tuple[int, int]:
    """Return how many numbers are frozen and how many are trained, by building the models without their values."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from lorafinetune_trainer.training import model as models

    frozen = trained = 0
    with torch.device("meta"):
        parts = [(UNet2DConditionModel.from_config(dict(unet)), "")]
        if encoders:
            from transformers import CLIPTextConfig, CLIPTextModel

            parts += [
                (CLIPTextModel(CLIPTextConfig.from_dict(dict(one))), name)
                for one, name in zip(encoders, models.TEXT_ENCODERS, strict=True)
            ]
        for part, name in parts:
            weights = (
                models.add_encoder_adapter(part, name, training, initialise=False)
                if name
                else models.add_adapter(part, training, initialise=False)
            )
            mine = sum(weight.numel() for weight in weights.values())
            trained += mine
            frozen += sum(weight.numel() for weight in part.parameters()) - mine
    return frozen, trained


def host() -> int:
    """Return the bytes that this process may come to use on the host: the cgroup's limit, or what is free."""
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    limits = cgroup_limits(CGROUPS, Path("/proc/self/cgroup").read_text())
    return min([free + mine, *limits])


def cgroup_limits(root: Path, mine: str) -> list[int]:
    """Return the limits (cgroup v2) that hold for the group named in *mine*, the text of ``/proc/self/cgroup``."""
    path = next((line[3:].strip("/") for line in mine.splitlines() if line.startswith("0::")), None)
    if path is None:
        return []
    group = root / path
    found = []
    for folder in (group, *group.parents):
        try:
            text = (folder / "memory.max").read_text().strip()
        except OSError:
            text = ""
        if text.isdigit():
            found.append(int(text))
        if folder == root:
            break
    return found


def gpu() -> int | None:
    """Return the free bytes of the GPU, with those that this process has of it; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())


def peak(device: torch.device) -> int:
    """Return the most bytes that were in use: of the GPU, or of this process where there is none."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
