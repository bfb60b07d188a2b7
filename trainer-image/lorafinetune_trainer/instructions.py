"""What the mathematics is held to, whatever the environment says: a resume on another machine rounds the same.

Torch, its matrix library (MKL) and its convolutions (oneDNN) choose at run time the widest instructions that the CPU
has, and a sum in lanes of 16 rounds otherwise than one in lanes of 8. They are told by variables of the environment,
read when they first compute: so the level is held before torch is imported. NumPy draws random words and does sums
element by element, which round the same everywhere: it is told nothing.

On a GPU none of this takes part. There the environment could overrule what torch is told of TF32, and choose a work
space with which cuBLAS sums in changing orders.

MKL also looks at who made the CPU, and even its square root rounds otherwise on another maker's: the maker is part of
the plan's device.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import MappingProxyType
from typing import Final

AVX2: Final = "avx2"
DEFAULT: Final = "default"
"""What every CPU of its kind has."""
INTEL: Final = "GenuineIntel"

_VARIABLES: Final = MappingProxyType(
    {
        AVX2: {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        DEFAULT: {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    }
)
_OVERRULING: Final = ("MKL_ENABLE_INSTRUCTIONS",)
"""What a node's or an image's environment may hold, and what these libraries heed before all of that."""
_GPU: Final = MappingProxyType({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
_OVERRULING_GPU: Final = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_OTHER_MAKERS: Final = MappingProxyType({"MKL_CBWR": "COMPATIBLE"})
"""The only level that MKL keeps to on them."""
_X86: Final = ("x86_64", "amd64")
_NEEDED: Final = frozenset({"avx2", "fma"})


def best() -> str:
    """Return the level for a new run on this machine: one that nearly all of its kind have."""
    return AVX2 if _has_avx2() else DEFAULT


def hold(wanted: str | None) -> str:
    """Hold this process to *wanted*, the level of a plan, or else to the best; return the level that it is held to.

    It is another than wanted where this CPU cannot do that: the plan's check says so. Call before torch is imported.
    """
    level = best()
    if wanted in (DEFAULT, level):
        level = wanted
    for name in (*_OVERRULING_GPU, *(_OVERRULING if _is_x86() else ())):
        os.environ.pop(name, None)
    os.environ.update(_GPU)
    if _is_x86():
        os.environ.update({**_VARIABLES[level], **({} if maker() == INTEL else _OTHER_MAKERS)})
    return level


def maker() -> str:
    """Return who made the CPU, as it says itself (``GenuineIntel``, ``AuthenticAMD``); its kind where it does not."""
    return _said("vendor_id") or platform.machine()


def _is_x86() -> bool:
    return platform.machine().lower() in _X86


def _has_avx2() -> bool:
    return _is_x86() and frozenset(_said("flags").split()) >= _NEEDED


def _said(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
