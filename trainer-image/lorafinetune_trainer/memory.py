"""How much memory there is, how much a training needs by formula, and how much was used. Nothing is tried out."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak(device: torch.device) -> int:
    """Return the most bytes that were in use: of the GPU, or of this process where there is none."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
