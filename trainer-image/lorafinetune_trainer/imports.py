"""The seconds that importing takes: spent in a thread while data is on its way, and not on what is never used."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Final

HEAVY: Final = (
    "torch",
    "accelerate",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddpm",
    "peft",
    "lorafinetune_trainer.training.loop",
    "lorafinetune_trainer.training.model",
)
UNUSED: Final = ("scipy", "sklearn", "pandas", "matplotlib")
"""Optional for the libraries, useless to us; absent in the image, but a developer's environment may have them."""


def settle(scratch: str | None) -> None:
    """Set what the libraries read when they are imported: no progress bars, no telemetry, no optional packages.

    With *scratch*, all that they write goes below it: a pod's root is read-only, and may have no home.
    """
    written = {"HF_HOME": f"{scratch}/hub", "TMPDIR": scratch} if scratch is not None else {}
    for name, value in {
        **written,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # Threads that wait actively starve one another where processors are shared: 7 times slower, measured.
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say: not installed


def begin() -> threading.Thread:
    """Start to import what training needs; join the thread before using any of it."""
    # What both threads would import at the same time comes first: half-imported modules are seen across threads.
    importlib.import_module("PIL.Image")
    importlib.import_module("huggingface_hub")
    thread = threading.Thread(target=_import_all, name="imports", daemon=True)
    thread.start()
    return thread


def _import_all() -> None:
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except Exception:  # the main thread meets the same error where it can be told
            return
