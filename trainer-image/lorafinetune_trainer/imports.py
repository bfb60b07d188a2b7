"""The seconds that importing takes: spent in a thread while data is on its way, and not on what is never used."""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lorafinetune.contract.training import Optimizer, Training
from lorafinetune_trainer import deferred

HEAVY: Final = (
    "accelerate",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddpm",
    "torch._inductor.config",  # comes with deterministic algorithms
    "lorafinetune_trainer.training.loop",
    "lorafinetune_trainer.training.model",
    "lorafinetune_trainer.saving.saver",
    "lorafinetune_trainer.telling.steps",
    "lorafinetune_trainer.publishing",
)
PUBLISHING: Final = ("lorafinetune_trainer.publishnewest",)
"""What an attempt needs that only publishes."""
UNUSED: Final = ("scipy", "sklearn", "pandas", "matplotlib", "peft", "torchvision")
"""Optional for the libraries, useless to us; absent in the image, but a developer's environment may have them."""
EIGHT_BIT: Final = "bitsandbytes"
NOISY: Final = (EIGHT_BIT, "torch.utils.flop_counter")
"""They miss a kernel for 4 bits, and triton where there is no GPU: nobody asks for either."""
FOR_COMPILING: Final = ("jinja2",)
FOR_GPUS: Final = ("triton", "cuda")
DEVICES: Final = ("nvidia*", "dxg", "kfd")
"""Under /dev, where there is a GPU."""
PACKAGES: Final = ("diffusers.models.unets", "diffusers.models.transformers")
"""They import every model of their kind; we use one module of each."""


LIBRARIES: Final = (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch_python.so", os.RTLD_LOCAL))
"""Of torch, with how it loads them itself; they bring all others."""


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
        # Threads that wait actively starve one another where processors are shared: 7 times slower, measured.
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)
    quiet()
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say: not installed


def quiet() -> None:
    """Have the libraries keep to themselves what they lack and do not need here."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def begin(training: Training, names: Iterable[str] = HEAVY) -> threading.Thread:
    """Start to import *names*, and what *training* needs for them; join the thread before using any of it."""
    for name in _useless(training):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    # What both threads would import at the same time comes first: half-imported modules are seen across threads.
    importlib.import_module("PIL.Image")
    importlib.import_module("huggingface_hub")
    thread = threading.Thread(target=_import_all, args=(training, names), name="imports", daemon=True)
    thread.start()
    return thread


def _useless(training: Training) -> list[str]:
    """Return the packages that this training does not use on this machine; the libraries do without them."""
    found = [] if training.optimizer is Optimizer.ADAMW_8BIT else [EIGHT_BIT]
    if not training.compile:
        found += FOR_COMPILING
        if not any(True for pattern in DEVICES for _ in Path("/dev").glob(pattern)):
            found += FOR_GPUS
    return found


def _import_all(training: Training, names: Iterable[str]) -> None:
    gc.disable()  # a million objects come, and none goes: each look through them holds up all threads
    try:
        _load_libraries()
        importlib.import_module("torch")
        defer(training)
        for name in names:
            importlib.import_module(name)
    except Exception:  # the main thread meets the same error where it can be told
        return
    finally:
        gc.freeze()  # they stay for good: no later look goes through them
        gc.enable()


def _load_libraries() -> None:
    """Load torch's libraries as its import would, but with other threads running meanwhile.

    An import holds the interpreter until a library is loaded: half a second for a gigabyte that is in memory, many
    where it comes from a disk, in which no signal is heard. What does not work here is left to the import.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None or not sys.platform.startswith("linux"):
        return
    load = ctypes.CDLL(None).dlopen  # a foreign call lets go of the interpreter; CDLL itself does not
    load.restype = ctypes.c_void_p
    for name, scope in LIBRARIES:
        load(str(Path(found.origin).parent / "lib" / name).encode(), ctypes.c_int(os.RTLD_NOW | scope))


def defer(training: Training) -> None:
    """Put off what most runs never use; torch must have been imported, the others not yet."""
    deferred.alone()
    if not training.compile:
        deferred.compiler()  # first: looking for a package imports those that it lies in
        deferred.package("torch._inductor")  # whose settings torch changes when it is told to be deterministic
        deferred.without("transformers.utils", "is_torch_flex_attn_available")  # an attention that is compiled
        deferred.without("transformers.utils.import_utils", "is_torch_flex_attn_available")
    for name in PACKAGES:
        deferred.package(name)
