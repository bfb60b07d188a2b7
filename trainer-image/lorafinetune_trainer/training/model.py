"""The UNet with its adapter: loaded, frozen, and given LoRA weights whose start depends on seed and name only."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.training import Precision, Training
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import Files
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training import order

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of each attention that are adapted."""
UNET: Final = "unet"
"""What the names of the UNet's weights begin with."""
_ADAPTER: Final = ".default"


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained, and the schedule of the noise."""

    unet: Any
    weights: dict[str, torch.nn.Parameter]
    """The adapter's matrices by name, e.g. ``unet.down_blocks.1...attn1.to_q.lora_A.weight``: float32, on the device.

    The part of the model, the module in it, and peft's name of the matrix without that of the adapter: ``lora_A``,
    ``lora_B``, ``lora_magnitude_vector``. Checkpoints, initial values and the product go by these names.
    """
    noise: Any
    """The scheduler that adds noise."""
    prediction: str
    """``epsilon`` or ``v_prediction``."""
    dtype: torch.dtype
    """Of the frozen weights."""

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return what the UNet predicts of *noisy* latents, (images, 4, height, width), in float32.

        *timesteps* (images,), *embeddings* (images, tokens, width), *pooled* (images, width) and *time_ids*
        (images, 6, float32) lie on the device. With *weights*, by the same names as the trained ones, it is computed
        with those in place of them; the trained tensors are not touched, so this may be done beside a step.
        """
        import torch

        given = {
            "encoder_hidden_states": embeddings.to(self.dtype),
            # Sizes stay 32-bit up to their embedding: bf16 would make 1368 of 1365.
            "added_cond_kwargs": {"text_embeds": pooled.to(self.dtype), "time_ids": time_ids},
            "return_dict": False,
        }
        mixed = torch.autocast(noisy.device.type, self.dtype) if self.dtype is not torch.float32 else nullcontext()
        with mixed:
            if weights is None:
                predicted = self.unet(noisy.to(self.dtype), timesteps, **given)[0]
            else:
                own = {id(parameter): name for name, parameter in self.unet.named_parameters()}
                places = {
                    own[id(self.weights[name])]: tensor.to(noisy.device)
                    for name, tensor in weights.items()
                    if id(self.weights[name]) in own
                }
                predicted = torch.func.functional_call(self.unet, places, (noisy.to(self.dtype), timesteps), given)[0]
        result: torch.Tensor = predicted.float()
        return result


def be_deterministic(threads: int) -> None:
    """Make torch do the same sums in the same order each time. Call before the first computation."""
    import torch

    torch.set_num_threads(threads)
    # On a GPU a few operators have no deterministic form: they warn instead of ending the run.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def make_accelerator(precision: Precision) -> Accelerator:
    """Return the accelerator that knows the device and its autocast."""
    from accelerate import Accelerator

    names = {Precision.BF16: "bf16", Precision.FP16: "fp16", Precision.FP32: "no"}
    try:
        return Accelerator(mixed_precision=names[precision])
    except ValueError as error:
        raise invalid(
            "PrecisionUnsupported",
            f"training.precision {precision} does not work on this device ({error}): use another",
        ) from error


def release() -> None:
    """Give back the memory of models that are no longer needed."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load(files: Files, training: Training, device: torch.device) -> Model:
    """Load the UNet and add the adapter with its initial weights."""
    import torch
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}[
        training.precision
    ]
    unet = parts.load_unet(files, dtype)
    weights = add_adapter(unet, training)
    unet.to(device)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    noise = DDPMScheduler.from_config(parts.scheduler_config(files))
    prediction = str(noise.config.prediction_type)
    if prediction not in ("epsilon", "v_prediction"):
        raise invalid(
            "WrongBaseModel", f"the base model predicts {prediction}: only epsilon and v_prediction are known"
        )
    return Model(unet, weights, noise, prediction, dtype)


def add_adapter(unet: Any, training: Training, *, initialise: bool = True) -> dict[str, torch.nn.Parameter]:
    """Put LoRA matrices beside the attention layers of *unet*; return them by name, in the order of their names."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    rank = training.lora.rank
    config = LoraConfig(
        r=rank,
        lora_alpha=training.lora.alpha or float(rank),  # annotated as int; it is divided, so a float is exact
        lora_dropout=0.0,
        init_lora_weights=False,
        target_modules=list(TARGETS),
    )
    inject_adapter_in_model(config, unet)
    weights = {
        f"{UNET}.{name.replace(_ADAPTER, '')}": weight
        for name, weight in sorted(unet.named_parameters())
        if "lora_" in name
    }
    with torch.no_grad():
        for name, weight in weights.items():
            weight.requires_grad_(True)
            weight.data = weight.data.float()
            if not initialise:
                continue
            if ".lora_A." in name:
                values = order.initial_weight(training.seed, name, (weight.shape[0], weight.shape[1]))
                weight.copy_(torch.from_numpy(values))
            else:
                weight.zero_()
    return weights
