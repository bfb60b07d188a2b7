"""Runs a training script of diffusers' kind with a clock on its steps: ``python -m tests.bench.trainer.beside SCRIPT``.

Nothing of the script is known but that it trains with accelerate: a step is done when accelerate's optimizer has
stepped where gradients are synchronised. Lines go to the file ``BENCH_MARKS``, as :mod:`tests.bench.trainer.clocked`
writes them. What the script needs beyond the trainer's environment (torchvision) is the caller's to bring.
"""

from __future__ import annotations

import resource
import runpy
import sys
from typing import Any

from tests.bench.trainer.clocked import mark


def main(arguments: list[str]) -> None:
    """Run the script with the arguments that follow it, as its own main program."""
    mark("begins")
    from accelerate.optimizer import AcceleratedOptimizer

    step, done = AcceleratedOptimizer.step, [0]

    def stepping(self: Any, *given: Any, **named: Any) -> None:
        step(self, *given, **named)
        if self.gradient_state.sync_gradients:
            done[0] += 1
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            mark("step", step=done[0], peak=peak, modules=len(sys.modules))

    AcceleratedOptimizer.step = stepping
    sys.argv[:] = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
