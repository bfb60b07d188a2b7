"""A real attempt, with a clock on it: ``python -m tests.bench.trainer.clocked``, as the trainer is started.

It writes to the file ``BENCH_MARKS`` what happened when, as JSON lines of {"what", "at", ...}; "at" is this machine's
monotonic clock. With ``BENCH_COUNT`` it also counts the calls of VAE and text encoders, which costs time of its own.
With ``BENCH_BALLAST`` each snapshot holds so many bytes more, copied as the state is.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

_LOCK = threading.Lock()
ENCODERS = {"Encoder": "vae", "CLIPTextModel": "text encoders", "CLIPTextModelWithProjection": "text encoders"}


def mark(what: str, **more: Any) -> None:
    """Write one line."""
    line = json.dumps({"what": what, "at": time.monotonic(), **more}) + "\n"
    with _LOCK, open(os.environ["BENCH_MARKS"], "a", encoding="utf-8") as file:
        file.write(line)


def instrument() -> None:
    """Put the clock on what the attempt goes through."""
    from lorafinetune_trainer import imports, wires
    from lorafinetune_trainer.saving import checkpoints

    import_all, enter, put = imports._import_all, wires.Wires.enter, checkpoints.Checkpoints.claim

    def importing(*given: Any) -> None:
        before = time.thread_time()
        mark("import begins")
        import_all(*given)
        mark("imported", cpu=time.thread_time() - before, modules=len(sys.modules))
        _watch_loop()
        if os.environ.get("BENCH_COUNT"):
            _count_encoders()

    def entering(self: wires.Wires, phase: Any, *given: Any, **named: Any) -> None:
        mark(f"phase {phase}")
        enter(self, phase, *given, **named)

    def claiming(self: checkpoints.Checkpoints, *given: Any, **named: Any) -> Any:
        mark("claims")
        return put(self, *given, **named)

    imports._import_all = importing
    wires.Wires.enter = entering  # type: ignore[method-assign]
    checkpoints.Checkpoints.claim = claiming  # type: ignore[method-assign]


_calls: dict[str, int] = {}


def _watch_loop() -> None:
    from lorafinetune_trainer.saving.saver import Saver
    from lorafinetune_trainer.saving.uploads import size_of
    from lorafinetune_trainer.training.loop import Loop

    train, snapshot, save = Loop.train, Loop.snapshot, Saver._save
    more = _ballast(int(os.environ.get("BENCH_BALLAST", "0")))

    def training(self: Loop, on_step: Any) -> None:
        def counted(progress: Any) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            cpu = time.process_time()
            mark("step", step=progress.step, modules=len(sys.modules), peak=peak, cpu=cpu, calls=dict(_calls))
            on_step(progress)

        mark("loop begins", step=self.step)
        train(self, counted)
        mark("loop ends", step=self.step)

    def taking(self: Loop) -> Any:
        begin = time.monotonic()
        found = snapshot(self)
        found = replace(found, tensors={**found.tensors, **more()})
        mark("snapshot", seconds=time.monotonic() - begin)
        return found

    def saving(self: Saver, given: Any, *rest: Any) -> Any:
        failure = save(self, given, *rest)
        mark("saved", step=given.step, size=size_of(given.tensors))
        return failure

    Loop.train = training  # type: ignore[method-assign]
    Loop.snapshot = taking  # type: ignore[method-assign]
    Saver._save = saving  # type: ignore[method-assign]


def _ballast(size: int) -> Callable[[], dict[str, Any]]:
    """Return what copies a state of *size* bytes more: three vectors, copied whole, and views of their parts."""
    import torch

    from lorafinetune_trainer.saving.snapshots import HostCopies
    from tests.bench.trainer.sizes import TENSORS

    state = {name: torch.randn(size // 12) for name in ("lora", "exp_avg", "exp_avg_sq")}
    copies = HostCopies(torch.device("cpu"))

    def take() -> dict[str, Any]:
        taken = copies.take(state) if size else {}
        return {
            f"ballast.{name}.{number:04}": part
            for name, vector in taken.items()
            for number, part in enumerate(vector.chunk(TENSORS))
        }

    return take


def _count_encoders() -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook

    def seen(module: Any, _: Any) -> None:
        kind = ENCODERS.get(type(module).__name__)
        if kind is not None:
            _calls[kind] = _calls.get(kind, 0) + 1

    register_module_forward_pre_hook(seen)


if __name__ == "__main__":
    mark("begins")
    instrument()
    sys.argv[0] = "lorafinetune_trainer"
    runpy.run_module("lorafinetune_trainer", run_name="__main__")
