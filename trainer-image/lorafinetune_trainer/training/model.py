"""What is trained: UNet and, where wanted, text encoders, loaded, frozen, and given adapters; and how to ask them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract.training import Precision, Training
from lorafinetune_trainer.base import parts
from lorafinetune_trainer.base.files import SCHEDULER, Files
from lorafinetune_trainer.base.parts import TextEncoder
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training import adapter, compiling
from lorafinetune_trainer.training.noising import EPSILON, V_PREDICTION

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

UNET: Final = "unet"
"""What the names of the UNet's weights begin with."""
TEXT_ENCODERS: Final = ("text_encoder", "text_encoder_2")
"""The same of theirs."""


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
    encoders: tuple[TextEncoder, ...] = ()
    """Both text encoders with their adapters, where they are trained."""

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
        unet = _Other(self.unet, self._places(UNET, weights))
        return asking(unet, self.dtype)(noisy, timesteps, embeddings, pooled, time_ids)

    def embed(
        self, captions: Sequence[str], *, weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of *captions* by the trained text encoders, and the pooled ones, as ``predict`` wants.

        Only where the text encoders are trained. With *weights* as in :meth:`predict`.
        """
        encoders = self.encoders
        if weights is not None:
            encoders = tuple(
                replace(one, model=_Other(one.model, self._places(name, weights)))
                for name, one in zip(TEXT_ENCODERS, encoders, strict=True)
            )
        return prompts.embed(encoders, captions)

    def _places(self, part: str, weights: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        """Return the *weights* of one part by the names that they have in it, like those that they stand for."""
        if weights is None:
            return None
        begin = f"{part}."
        return {
            name.removeprefix(begin): tensor.to(self.weights[name])
            for name, tensor in weights.items()
            if name.startswith(begin)
        }


def asking(unet: Any, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """Return how *unet*, whose frozen weights are of *dtype*, is asked: as :meth:`Model.predict` says."""

    def predict(
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        predicted: torch.Tensor = unet(
            noisy.to(dtype),
            timesteps,
            encoder_hidden_states=embeddings.to(dtype),
            # Sizes stay 32-bit up to their embedding: bf16 would make 1368 of 1365.
            added_cond_kwargs={"text_embeds": pooled.to(dtype), "time_ids": time_ids},
            return_dict=False,
        )[0]
        return predicted.float()

    return predict


@dataclass(frozen=True, slots=True)
class _Other:
    """A module with other weights than its own, for as long as it is called."""

    module: Any
    weights: dict[str, torch.Tensor] | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    @property
    def config(self) -> Any:
        return self.module.config

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.weights is None:
            return self.module(*given, **named)
        from torch.func import functional_call

        return functional_call(self.module, self.weights, given, named)


def be_deterministic(threads: int) -> None:
    """Make torch do the same sums in the same order each time. Call before the first computation."""
    import torch

    torch.set_num_threads(threads)
    # On a GPU a few operators have no deterministic form: they warn instead of ending the run.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Else each new tensor is filled first, against operators that read what they did not write: 600 more in a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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


def load(files: Files, training: Training, device: torch.device, *, compiled: bool = False) -> Model:
    """Load what is trained and give it adapters with their initial weights; *compiled* as the plan says."""
    dtype = parts.dtype(training.precision)
    noise = scheduler(parts.scheduler_config(files), training)
    encoders = parts.load_text_encoders(files, dtype) if training.lora.text_encoder else ()
    return adapted(parts.load_unet(files, dtype), encoders, noise, training, device, compiled=compiled)


def adapted(
    unet: Any,
    encoders: tuple[TextEncoder, ...],
    noise: Any,
    training: Training,
    device: torch.device,
    *,
    compiled: bool = False,
) -> Model:
    """Return the model of the frozen *unet* and, where they are trained, both text *encoders*, on *device*."""
    weights = add_adapter(unet, training)
    unet.to(device)
    for name, one in zip(TEXT_ENCODERS, encoders, strict=bool(encoders)):
        weights |= add_encoder_adapter(one.model, name, training)
        one.model.to(device)
    for part in (unet, *(one.model for one in encoders)):
        _still(part)
    if training.gradient_checkpointing:
        for part in (unet, *(one.model for one in encoders)):
            part.train()  # recomputed in training mode only; nothing here behaves differently in it
            (unet.enable_gradient_checkpointing if part is unet else part.activation_checkpointing_enable)()
    if compiled:
        compiling.compile_blocks(unet)
    return Model(unet, weights, noise, str(noise.config.prediction_type), unet.dtype, encoders)


def _still(part: Any) -> None:
    """Take away the dropout that a base model's config may ask for: what it drops depends on where a resume began."""
    import torch

    for module in part.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(vars(module).get("dropout"), float):  # attention, which has no module for it
            module.dropout = 0.0


def scheduler(config: Mapping[str, Any], training: Training) -> Any:
    """Return the schedule of the noise: the base model's, with what the training says otherwise."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    changes: dict[str, Any] = {}
    if training.prediction is not None:
        changes["prediction_type"] = str(training.prediction)
    if training.zero_terminal_snr:
        changes["rescale_betas_zero_snr"] = True
    noise = DDPMScheduler.from_config(dict(config), **changes)
    prediction = str(noise.config.prediction_type)
    if prediction not in (EPSILON, V_PREDICTION):
        raise invalid(
            "WrongBaseModel", f"the base model predicts {prediction}: only epsilon and v_prediction are known"
        )
    if prediction == EPSILON and noise.config.rescale_betas_zero_snr and not training.zero_terminal_snr:
        raise invalid(
            "WrongBaseModel",
            f"the noise schedule of the base model ends in pure noise (rescale_betas_zero_snr in {SCHEDULER} of "
            "baseModel.source), from which nothing can be learned with prediction epsilon: set training.prediction: "
            "v_prediction, if the model was made so, else rescale_betas_zero_snr: false in that file",
        )
    if prediction == EPSILON and noise.config.rescale_betas_zero_snr:
        raise invalid(
            "InvalidConfig",
            "training.zeroTerminalSnr needs prediction v_prediction: from pure noise, the noise says nothing. "
            "Set training.prediction, or leave training.zeroTerminalSnr out",
        )
    return noise


def add_adapter(unet: Any, training: Training, *, initialise: bool = True) -> dict[str, torch.nn.Parameter]:
    """Put the adapter into *unet*; return what is trained of it, by name, in the order of the names.

    Without *initialise* all of it is zero, as it must be where there are no values: on the meta device.
    """
    lora = training.lora
    weights = adapter.add(unet, UNET, adapter.UNET[lora.targets], lora, dora=lora.dora)
    if initialise:
        adapter.initialise(unet, UNET, training.seed)
    return weights


def add_encoder_adapter(
    encoder: Any, name: str, training: Training, *, initialise: bool = True
) -> dict[str, torch.nn.Parameter]:
    """Do the same for the text encoder *name*; no adapter has a magnitude there."""
    lora = training.lora
    weights = adapter.add(encoder, name, adapter.TEXT_ENCODER[lora.targets], lora, dora=False)
    if initialise:
        adapter.initialise(encoder, name, training.seed)
    return weights
