"""The UNet with its adapter: loaded, frozen, and given LoRA weights whose start depends on seed and name only."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.training import Precision, Training
from lorafinetune_trainer.base.files import Files, unloadable
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training import order

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of each attention that are adapted."""
_ADAPTER: Final = ".default"


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained, and the schedule of the noise."""

    unet: Any
    weights: dict[str, torch.nn.Parameter]
    """The adapter's matrices by name, e.g. ``down_blocks.1...attn1.to_q.lora_A.weight``: float32, on the device."""
    noise: Any
    """The scheduler that adds noise."""
    prediction: str
    """``epsilon`` or ``v_prediction``."""
    dtype: torch.dtype
    """Of the frozen weights."""


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
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}[
        training.precision
    ]
    try:
        unet, found = UNet2DConditionModel.from_pretrained(
            files.folder / "unet",
            variant=files.variant("unet"),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries raise whatever they meet in a file
        raise unloadable("the UNet", error) from error
    if missing := sorted(found["missing_keys"]):
        raise invalid("WrongBaseModel", f"the UNet of the base model lacks {len(missing)} weights, first {missing[0]}")
    unet.requires_grad_(False).train()
    weights = add_adapter(unet, training)
    unet.to(device)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    noise = DDPMScheduler.from_config(files.json("scheduler/scheduler_config.json"))
    prediction = str(noise.config.prediction_type)
    if prediction not in ("epsilon", "v_prediction"):
        raise invalid(
            "WrongBaseModel", f"the base model predicts {prediction}: only epsilon and v_prediction are known"
        )
    return Model(unet, weights, noise, prediction, dtype)


def add_adapter(unet: Any, training: Training, *, initialise: bool = True) -> dict[str, torch.nn.Parameter]:
    """Put LoRA matrices beside the attention layers of *unet*; return them by name, in the order of their names."""
    import torch
    from peft.mapping import inject_adapter_in_model  # not from peft itself: it would import forty other methods
    from peft.tuners.lora import LoraConfig

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
        name.replace(_ADAPTER, ""): weight for name, weight in sorted(unet.named_parameters()) if "lora_" in name
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
