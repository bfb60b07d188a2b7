"""How well the GPU is used: the real SDXL's operations per image by formula, over the peak rate of the GPU by name.

Both are counted or published figures, so neither costs a measurement; where one is not known, neither is the share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lorafinetune.contract.training import Precision

TERA: Final = 1e12
_LINEAR: Final = 6.205
_SQUARED: Final = 0.539
"""TFLOP of the UNet's forward pass by area, 1 = 1024 x 1024 pixels: linear layers and convolutions grow with it, the
attention between all places with its square. Fitted to what torch's counter gives for the real configuration (1.59,
3.64 and 6.76 at 512, 768 and 1024 pixels)."""
TRAINING: Final = 2.08
"""Forward and backward pass over the forward pass alone: frozen weights need no gradients of their own."""
RECOMPUTED: Final = 2.84
"""The same with gradient checkpointing, which runs the forward pass a second time."""

PEAKS: Final = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 6000 Ada", 364.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 4080", 97.5),
    ("RTX 3090", 71.0),
    ("A10G", 70.0),
    ("L4", 121.0),
    ("T4", 65.0),
)
"""Part of the name that the driver gives a GPU, and its peak rate in TFLOP/s: dense, 16-bit, sums in 32 bits, from the
vendor's data sheets and architecture papers. The first that fits counts."""

_SDXL: Final[dict[str, Any]] = {
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "layers_per_block": 2,
}


def operations(config: Mapping[str, Any], edge: int, *, checkpointing: bool) -> float | None:
    """Return the floating-point operations of training on one image of *edge* x *edge* pixels.

    None where *config*, the UNet's, is not the real SDXL's. What checkpointing computes twice counts twice.
    """
    for name, value in _SDXL.items():
        given = config.get(name)
        if (list(given) if isinstance(given, list | tuple) else given) != value:
            return None
    return forward(edge) * (RECOMPUTED if checkpointing else TRAINING)


def forward(edge: int) -> float:
    """Return the operations of the real UNet's forward pass over one image."""
    area = (edge / 1024) ** 2
    return (_LINEAR * area + _SQUARED * area**2) * TERA


def peak(device: str, precision: Precision) -> float | None:
    """Return the peak rate of *device* in operations per second; None where it is not known, and for 32-bit passes."""
    if precision is Precision.FP32:
        return None
    words = device.replace("-", " ").split()
    for name, rate in PEAKS:
        parts = name.split()
        if any(words[place : place + len(parts)] == parts for place in range(len(words))):
            return rate * TERA
    return None


def share(operations_per_image: float | None, images_per_second: float | None, peak_rate: float | None) -> float | None:
    """Return the share of the peak rate that is reached, 0 ... 1; None where anything is not known."""
    if operations_per_image is None or images_per_second is None or not peak_rate:
        return None
    return operations_per_image * images_per_second / peak_rate
