"""Regional compilation: the UNet's transformer blocks, which are many of few kinds; nothing else of it."""

from __future__ import annotations

import shutil
from typing import Any, Final

from lorafinetune_trainer.failure import invalid

BLOCKS: Final = "BasicTransformerBlock"
"""Class of what is compiled: one for each width, so the number of compilations does not grow with the model."""
MAX_SHAPES: Final = 64
"""Compilations of one block's code: one for each bucket, micro-batch and length of captions that is met."""


def check() -> None:
    """Raise Failure where this machine cannot compile: inductor needs a compiler when it runs."""
    import torch

    if torch.cuda.is_available():
        names, which = ("gcc", "clang", "cc"), "C compiler (which Triton needs)"
    else:
        names, which = ("g++", "clang++", "c++"), "C++ compiler"
    if not any(shutil.which(one) for one in names):
        raise invalid(
            "CompileUnsupported",
            f"training.compile: there is no {which} in this image: use one that has {names[0]}, or leave "
            "training.compile out (in a new run: this one keeps to its plan)",
        )


def compile_blocks(unet: Any) -> None:
    """Compile each transformer block of *unet* when it is first called."""
    from torch import _dynamo as dynamo
    from torch import _inductor as inductor

    inductor.config.deterministic = True  # else kernels are chosen by how fast they happened to be
    dynamo.config.recompile_limit = MAX_SHAPES
    dynamo.config.accumulated_recompile_limit = 8 * MAX_SHAPES
    for module in unet.modules():
        if type(module).__name__ == BLOCKS:
            # Shapes as they are: code for any shape would depend on which was met first, so on where a resume began.
            module.compile(dynamic=False)
