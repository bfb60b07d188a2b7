"""The real size on a GPU: SDXL's UNet from its shipped config with random weights, in exact and in fast mode.

``python -m tests.bench.trainer.gpu`` prints a JSON list of figures; an empty one where there is no GPU.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from lorafinetune.contract.training import Training
from lorafinetune_trainer import imports
from tests.bench.trainer.figures import median
from tests.bench.trainer.operations import TOKENS, config

EDGE = 1024
STEPS = 12
IMAGES = 8


def main() -> list[dict[str, Any]]:
    """Return the figures, as :class:`tests.bench.trainer.figures.Figure` takes them."""
    import torch

    if not torch.cuda.is_available():
        return []
    imports.settle(None)
    exact, compiled = _measure(exact=True), _measure(exact=True, compiled=True)
    fast, fast_compiled = _measure(exact=False), _measure(exact=False, compiled=True)
    name = torch.cuda.get_device_name()
    rows = [
        _row(f"{name}: seconds per step, fast mode", fast["step"], "s", exact["step"], "exact mode"),
        _row(f"{name}: seconds per step, compiled, exact", compiled["step"], "s", exact["step"], "plain, exact"),
        _row(f"{name}: seconds per step, compiled, fast", fast_compiled["step"], "s", fast["step"], "plain, fast"),
        _row(f"{name}: a snapshot's copy to the host", exact["copy"], "s"),
        _row(f"{name}: peak memory", exact["memory"], "GiB"),
    ]
    return rows + [
        _row(f"{name}: share of the peak rate, {mode}", one["share"])
        for mode, one in (("exact", exact), ("fast", fast), ("compiled, fast", fast_compiled))
        if one["share"] is not None
    ]


def _measure(*, exact: bool, compiled: bool = False) -> dict[str, Any]:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
    from lorafinetune_trainer.telling import throughput
    from lorafinetune_trainer.training import model as models
    from lorafinetune_trainer.training.loop import Loop

    training = Training.model_validate({"resolution": EDGE, "precision": "bf16", "compile": compiled, "steps": STEPS})
    device = torch.device("cuda")
    models.be_deterministic(4)
    if not exact:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    with device:
        unet = UNet2DConditionModel.from_config(config("unet")).to(torch.bfloat16).requires_grad_(False)
    noise = models.scheduler(config("scheduler", "scheduler_config.json"), training)
    model = models.adapted(unet, (), noise, training, device, compiled=compiled)
    size = EDGE // 8
    times = torch.tensor([EDGE, EDGE, 0, 0, EDGE, EDGE], dtype=torch.float32)
    cut = Latents(torch.randn(4, size, size), torch.rand(4, size, size), times)
    prompt = Prompt(torch.randn(TOKENS, 2048), torch.randn(1280))
    samples = Samples(tuple(Sample(f"{one}", (cut,), (cut,), ("",), (prompt,)) for one in range(IMAGES)))
    loop = Loop(
        model,
        samples,
        training,
        dataset_digest="",
        device=device,
        total=STEPS,
        micro_batch=training.micro_batch or training.images_per_step,
    )
    torch.cuda.reset_peak_memory_stats()
    ends = [time.monotonic()]
    loop.train(lambda _: ends.append(time.monotonic()))
    seconds = median([later - earlier for earlier, later in itertools.pairwise(ends[3:])])
    torch.cuda.synchronize()
    begin = time.monotonic()
    loop.snapshot()
    copy = time.monotonic() - begin
    per_image = throughput.operations(dict(unet.config), EDGE, checkpointing=training.gradient_checkpointing)
    rate = training.images_per_step / seconds if seconds else None
    found = {
        "step": seconds,
        "copy": copy,
        "memory": torch.cuda.max_memory_allocated() / 2**30,
        "share": throughput.share(per_image, rate, throughput.peak(torch.cuda.get_device_name(), training.precision)),
    }
    del loop, model, unet
    models.release()
    return found


def _row(measure: str, ours: Any, unit: str = "", beside: Any = None, what: str = "") -> dict[str, Any]:
    return {"measure": measure, "ours": ours, "unit": unit, "beside": beside, "what": what}


if __name__ == "__main__":
    print(json.dumps(main()))
