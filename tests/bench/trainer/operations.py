"""What one image costs on the real SDXL, counted without computing: its UNet on the meta device, forward and backward.

``python -m tests.bench.trainer.operations [EDGE]`` prints JSON; in a process of its own, for it imports everything.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lorafinetune.contract.training import Training
from lorafinetune_trainer import imports

SHIPPED = Path(imports.__file__).parent / "base" / "sdxl"
TOKENS = 77


def main(edge: int) -> dict[str, Any]:
    """Return operations and FLOPs of one pass of one image and of four, and of the VAE, at *edge* pixels."""
    imports.settle(None)
    training = Training.model_validate({"resolution": edge, "precision": "bf16"})
    imports.begin(training).join()

    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from lorafinetune_trainer.training import model as models
    from lorafinetune_trainer.training import vectors

    meta = torch.device("meta")
    with meta:
        unet = UNet2DConditionModel.from_config(config("unet")).to(torch.bfloat16).requires_grad_(False)
        vae = AutoencoderKL.from_config(config("vae")).requires_grad_(False)
    noise = models.scheduler(config("scheduler", "scheduler_config.json"), training)
    model = models.adapted(unet, (), noise, training, meta)
    vectors.vectors(model.weights, model.dtype)  # as the loop does: the passes see them in the model's precision
    size, width = edge // 8, int(unet.config.cross_attention_dim)
    pooled = int(unet.config.projection_class_embeddings_input_dim) - 6 * int(unet.config.addition_time_embed_dim)

    def step(images: int) -> None:
        predicted = model.predict(
            torch.empty(images, 4, size, size, device=meta),
            torch.zeros(images, device=meta, dtype=torch.int64),
            torch.empty(images, TOKENS, width, device=meta),
            torch.empty(images, pooled, device=meta),
            torch.empty(images, 6, device=meta),
        )
        torch.nn.functional.mse_loss(predicted, torch.empty_like(predicted)).backward()

    def encode() -> None:
        with torch.no_grad():
            vae.encode(torch.empty(1, 3, edge, edge, device=meta))

    found = {"one": _count(lambda: step(1)), "four": _count(lambda: step(4)), "vae": _count(encode)}
    return {name: {"operations": operations, "flops": flops} for name, (operations, flops) in found.items()}


def _count(call: Any) -> tuple[int, int]:
    """Return how many operations *call* does, views not counted, and their FLOPs."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Counter(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not any(one.alias_info is not None for one in function._schema.returns) or function._schema.is_mutable:
                self.operations += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        call()
    with FlopCounterMode(display=False) as flops:
        call()
    return counter.operations, flops.get_total_flops()


def config(part: str, name: str = "config.json") -> dict[str, Any]:
    """Return a part's config of the real SDXL, as it is shipped with the trainer."""
    found: dict[str, Any] = json.loads((SHIPPED / part / name).read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)))
