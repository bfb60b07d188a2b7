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
_NO_LIMIT: Final = 2**62

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
COPIES: Final = 3
"""Of the state, on the host: one that is being put, one that waits, and one that is being taken in its place."""
AHEAD: Final = 5
"""Images that are read at once, or ready before the VAE wants them."""
_OPTIMIZER: Final = {Optimizer.ADAMW: 8.0, Optimizer.ADAMW_8BIT: 2.1, Optimizer.PRODIGY: 16.0}
"""Bytes of state for each trained number."""


VAE_PARAMETERS: Final = 83_653_863
ENCODERS_PARAMETERS: Final = 817_720_320
"""Of SDXL's. Both are loaded in 32 bits to make the conditioning, one after the other."""
VAE_PIXEL: Final = 2560
"""Bytes for each pixel that the VAE encodes, by counting the tensors of its first blocks."""
READ_PIXEL: Final = 8
"""Bytes for each pixel of an image that is being decoded and scaled: Pillow takes 4, before and after."""

Parts = Mapping[str, int]
"""What lies in the host's memory at one moment: bytes, by what it is in words."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a training takes, in bytes."""

    fixed: int
    """Where it computes, whatever the number of images."""
    image: int
    """More, for each image that goes through the model at once."""
    host: Parts
    """On the host at its worst moment; where that is where it computes, this is what is fixed."""
    unet: int = 0
    """Frozen numbers of the UNet."""

    def of(self, images: int) -> int:
        """Return what *images* at once need where the training computes."""
        return self.fixed + images * self.image


def need(
    config: RunConfig, unet: Mapping[str, Any], encoders: list[Mapping[str, Any]], *, gpu: bool, samples: int = 0
) -> Need:
    """Return what the training of *config* takes; *unet* and *encoders* are the configs of what is trained.

    *samples* are the bytes of all latents and embeddings, which lie in the host's memory throughout.
    """
    frozen, trained = count(unet, encoders, config.training)
    frozen_unet = count(unet, [], config.training)[0] if encoders else frozen
    return need_of(config, frozen_unet=frozen_unet, frozen=frozen, trained=trained, gpu=gpu, samples=samples)


def need_of(config: RunConfig, *, frozen_unet: int, frozen: int, trained: int, gpu: bool, samples: int) -> Need:
    """Return the same, of so many frozen numbers, those of the UNet apart, and trained ones."""
    training = config.training
    size = 4 if training.precision is Precision.FP32 else 2
    copy = snapshot(training, trained)
    state = copy + trained * (4 + (4 if size == 2 else 0))  # gradients, and the copy that the layers compute with
    kept = CHECKPOINTED if training.gradient_checkpointing else ACTIVATIONS
    more = 1.0 + TARGETS_SHARE[training.lora.targets] + (DORA_SHARE[training.lora.targets] if training.lora.dora else 0)
    image = kept * more * (training.resolution**2 / AREA) * (frozen_unet / SDXL_PARAMETERS)
    if training.lora.text_encoder:
        image += ENCODERS_IMAGE * (frozen_unet / SDXL_PARAMETERS)
    image *= size / 2
    weights, copies = frozen * size, COPIES * copy
    host = {"the latents and embeddings": samples}
    if config.validation is not None:
        host["the VAE of the pictures"] = int(4 * VAE_PARAMETERS * frozen_unet / SDXL_PARAMETERS)
    if not gpu:
        host |= {"the process": PROCESS, "the weights": weights, "the state": state, "copies of the state": copies}
        return Need(sum(host.values()), int(image), host, frozen_unet)
    host |= {"the process with CUDA": PROCESS_CUDA}
    # The weights have left it for the GPU before the first copy is made.
    host |= {"the weights while they are loaded": weights} if weights > copies else {"copies of the state": copies}
    return Need(weights + state + CONTEXT, int(image), host, frozen_unet)


def snapshot(training: Training, trained: int) -> int:
    """Return the bytes of one copy of the state: weights, optimizer, average."""
    return int(trained * (4 + _OPTIMIZER[training.optimizer] + (4 if training.ema_decay else 0)))


def conditioning(config: RunConfig, unet: int, largest: int, *, gpu: bool) -> Parts:
    """Return what the making of latents and embeddings takes on the host at its worst moment.

    *unet* are the numbers of the UNet: the other parts of smaller models are taken to be as much smaller. *largest* are
    the pixels of the largest image. What has been made is put into the bucket at once, and lies in memory no more.
    """
    share = unet / SDXL_PARAMETERS
    prompts = {"the text encoders": int(4 * ENCODERS_PARAMETERS * share)}
    pictures = {"the VAE": int(4 * VAE_PARAMETERS * share), "images that are read": AHEAD * READ_PIXEL * largest}
    if not gpu:
        pictures["what the VAE computes"] = int(VAE_PIXEL * config.training.resolution**2 * share)
    base = {"the process with CUDA": PROCESS_CUDA} if gpu else {"the process": PROCESS}
    return base | max(prompts, pictures, key=lambda one: sum(one.values()))


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
    """Return the limits that hold for the groups named in *mine*, the text of ``/proc/self/cgroup``.

    Those of cgroup v2, and of the controller of version 1, where a number that no machine has means none.
    """
    found = []
    for line in mine.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.strip("/")
        # In a container of version 1 the path is the host's, and only the mount's own folder is there.
        for folder in (group, *group.parents):
            try:
                text = (folder / file).read_text().strip()
            except OSError:
                text = ""
            if text.isdigit() and int(text) < _NO_LIMIT:
                found.append(int(text))
            if folder == top:
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
