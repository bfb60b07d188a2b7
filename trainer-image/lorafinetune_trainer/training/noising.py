"""How noise is mixed into latents, what the model has to answer, and how much each answer counts: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

EPSILON: Final = "epsilon"
V_PREDICTION: Final = "v_prediction"


@dataclass(frozen=True, slots=True)
class Noising:
    """The noise schedule as the training sees it."""

    signal: torch.Tensor
    """Share of the latents at each timestep, (timesteps,), float32, on the CPU: the root of alpha-bar."""
    noise: torch.Tensor
    """Share of the noise: the root of one minus alpha-bar."""
    prediction: str
    """``epsilon`` or ``v_prediction``."""
    loss_weights: torch.Tensor
    """What the squared error at each timestep is multiplied by, (timesteps,), float32."""

    @property
    def timesteps(self) -> int:
        """Number of timesteps."""
        return len(self.signal)


def noising(alphas: torch.Tensor, prediction: str, min_snr_gamma: float | None = None) -> Noising:
    """Return the schedule with the cumulative products *alphas* (alpha-bar), (timesteps,)."""
    alphas = alphas.double()
    return Noising(
        signal=alphas.sqrt().float(),
        noise=(1.0 - alphas).sqrt().float(),
        prediction=prediction,
        loss_weights=min_snr_weights(alphas / (1.0 - alphas), prediction, min_snr_gamma).float(),
    )


def min_snr_weights(snr: torch.Tensor, prediction: str, gamma: float | None) -> torch.Tensor:
    """Return the min-SNR weight of each signal-to-noise ratio; ones without *gamma*.

    A model that predicts the noise weighs its error by the ratio already, one that predicts v by the ratio plus one: so
    what min(SNR, gamma) asks for is divided by that. Where there is no signal at all the quotient has its limit.
    """
    import torch

    if gamma is None:
        return torch.ones_like(snr)
    if prediction == V_PREDICTION:
        return snr.clamp(max=gamma) / (snr + 1.0)
    return (gamma / snr).clamp(max=1.0)


def mix(signal: torch.Tensor, noise_share: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return noisy latents, (images, channels, height, width); the shares are (images,)."""
    return _each(signal) * clean + _each(noise_share) * noise


def target(
    prediction: str, signal: torch.Tensor, noise_share: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return what the model should predict of latents so mixed."""
    if prediction == V_PREDICTION:
        return _each(signal) * noise - _each(noise_share) * clean
    return noise


def _each(shares: torch.Tensor) -> torch.Tensor:
    return shares.reshape(-1, 1, 1, 1)
