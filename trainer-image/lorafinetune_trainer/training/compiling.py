"""Regional compilation: the UNet's transformer blocks, which are many of few kinds; nothing else of it."""

from __future__ import annotations

import shutil
from typing import Any, Final

from lorafinetune_trainer.failure import invalid

BLOCKS: Final = "BasicTransformerBlock"
"""Class of what is compiled: one for each width, so the number of compilations does not grow with the model."""
MAX_SHAPES: Final = 64
"""Compilations of one block's code: one for each bucket, micro-batch and length of captions that is met."""


def compile_blocks(unet: Any) -> None:
    """Compile each transformer block of *unet* when it is first called; Failure where this machine cannot."""
    import torch
    from torch import _dynamo as dynamo
    from torch import _inductor as inductor

    if not torch.cuda.is_available() and not any(shutil.which(one) for one in ("g++", "clang++", "c++")):
        raise invalid(
            "CompileUnsupported",
            "training.compile: there is no C++ compiler on this machine: use an image that has g++, or leave "
            "training.compile out",
        )
    if torch.cuda.is_available() and not any(shutil.which(one) for one in ("gcc", "clang", "cc")):
        raise invalid(
            "CompileUnsupported",
            "training.compile: there is no C compiler in this image, which Triton needs: use one that has gcc, or "
            "leave training.compile out",
        )
    inductor.config.deterministic = True  # else kernels are chosen by how fast they happened to be
    dynamo.config.recompile_limit = MAX_SHAPES
    dynamo.config.accumulated_recompile_limit = 8 * MAX_SHAPES
    for module in unet.modules():
        if type(module).__name__ == BLOCKS:
            # Shapes as they are: code for any shape would depend on which was met first, so on where a resume began.
            module.compile(dynamic=False)
