"""A picture from a prompt: Euler's steps from keyed noise to latents, with classifier-free guidance.

Nothing here draws from a global generator or changes the model: equal inputs give equal latents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lorafinetune_trainer.conditioning.samples import Prompt
from lorafinetune_trainer.training import order

if TYPE_CHECKING:
    import torch


class Predict(Protocol):
    """What the UNet predicts of noisy latents, as :meth:`Model.predict` says it."""

    def __call__(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Return the prediction, in float32."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture is made, besides its prompt."""

    edge: int
    """Width and height in pixels."""
    steps: int
    """Steps from noise to latents."""
    guidance: float
    """How much more the prompt counts than its absence; 1 = no guidance."""
    seed: int


def make_schedule(config: Mapping[str, Any], *, prediction: str | None = None, zero_snr: bool = False) -> Any:
    """Return Euler's scheduler for a base model with this scheduler *config*.

    *prediction* is what the UNet predicts, where training changed it; *zero_snr* where it was trained with a noise
    schedule that ends in pure noise, from which sampling must then begin.
    """
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    changes: dict[str, Any] = {} if prediction is None else {"prediction_type": prediction}
    if zero_snr or config.get("rescale_betas_zero_snr"):
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return EulerDiscreteScheduler.from_config({**config, **changes})


def wordless(prompt: Prompt) -> Prompt:
    """Return what SDXL takes for the absence of a prompt: zeros."""
    import torch

    return Prompt(torch.zeros_like(prompt.embeddings), torch.zeros_like(prompt.pooled))


def make_latents(
    predict: Predict,
    schedule: Any,
    prompt: Prompt,
    negative: Prompt,
    recipe: Recipe,
    *,
    number: int,
    shape: tuple[int, int, int],
    device: torch.device,
    deadline: float | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Return the latents of picture *number*, (channels, height, width), as the VAE decodes them once unscaled.

    The noise follows from recipe.seed and *number*. TimeoutError if it is not done at the monotonic time *deadline*.
    """
    import torch

    with torch.no_grad():
        schedule.set_timesteps(recipe.steps, device=device)
        noise = torch.from_numpy(order.picture(recipe.seed, number, (1, *shape))).float().to(device)
        latents = noise * schedule.init_noise_sigma
        ids = torch.tensor([[recipe.edge, recipe.edge, 0, 0, recipe.edge, recipe.edge]], dtype=torch.float32).to(device)
        passes = _passes([prompt] if recipe.guidance == 1 else [negative, prompt], device)
        for timestep in schedule.timesteps:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("it took longer than it may")
            scaled = schedule.scale_model_input(latents, timestep)
            predicted = torch.cat(
                [
                    predict(
                        scaled.expand(len(pooled), -1, -1, -1),
                        timestep.expand(len(pooled)),
                        embeddings,
                        pooled,
                        ids.expand(len(pooled), -1),
                    )
                    for embeddings, pooled in passes
                ]
            )
            if recipe.guidance != 1:
                without, towards = predicted.chunk(2)
                predicted = without + recipe.guidance * (towards - without)
            latents = schedule.step(predicted, timestep, latents, return_dict=False)[0]
            on_step()
    result: torch.Tensor = latents[0]
    return result


def _passes(prompts: list[Prompt], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return embeddings and pooled embeddings of one pass for prompts of one length, else of a pass for each."""
    import torch

    pairs = [(one.embeddings.to(device).unsqueeze(0), one.pooled.to(device).unsqueeze(0)) for one in prompts]
    if len({embeddings.shape for embeddings, _ in pairs}) > 1:
        return pairs
    return [(torch.cat([one for one, _ in pairs]), torch.cat([one for _, one in pairs]))]
