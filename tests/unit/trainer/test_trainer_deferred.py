"""What is put off works when it is asked for after all; each case is a process of its own, for modules stay loaded."""

from __future__ import annotations

import subprocess
import sys

PACKAGES = """
import sys
from lorafinetune_trainer import deferred
for name in ("email", "email.mime", "concurrent.futures"):
    for loaded in [one for one in sys.modules if one == name or one.startswith(name + ".")]:
        del sys.modules[loaded]
deferred.package("concurrent.futures")
deferred.package("no_such_package")
import concurrent.futures.thread
assert "concurrent.futures.process" not in sys.modules
assert not hasattr(concurrent.futures, "__wrapped__")
whole = concurrent.futures
from concurrent.futures import ThreadPoolExecutor, Executor
assert concurrent.futures is whole and sys.modules["concurrent.futures"] is whole
assert ThreadPoolExecutor is sys.modules["concurrent.futures.thread"].ThreadPoolExecutor
assert issubclass(ThreadPoolExecutor, Executor)
try:
    concurrent.futures.nothing
except AttributeError:
    print("well")
"""

COMPILER = """
import sys
import torch
from lorafinetune.contract.training import Training
from lorafinetune_trainer import imports
imports.defer(Training())
from torch._dynamo import allow_in_graph, disable
assert disable(len) is len and disable()(len) is len and allow_in_graph(len) is len
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight])
weight.sum().backward()
optimizer.step()
torch.use_deterministic_algorithms(True)
assert "torch._dynamo.eval_frame" not in sys.modules
from torch._dynamo.eval_frame import OptimizedModule
assert sys.modules["torch._dynamo"].disable is not disable
assert sys.modules["torch._dynamo"].eval_frame.OptimizedModule is OptimizedModule
twice = torch.compile(lambda x: x * 2, backend="eager")
assert twice(torch.ones(2)).tolist() == [2.0, 2.0]
optimizer.step()
from diffusers.models.unets import UNet1DModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as same
assert UNet2DConditionModel is same
print("well")
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.endswith("well\n"), done.stderr[-2000:]


def test_a_package_is_whole_once_a_name_is_asked_of_it() -> None:
    run(PACKAGES)


def test_the_compiler_comes_when_it_is_needed_and_not_before() -> None:
    run(COMPILER)
