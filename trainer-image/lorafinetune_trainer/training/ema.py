"""The exponential moving average of the weights: part of the state, and what is published where it is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorafinetune_trainer.training.vectors import Vector


def decay(longest: float, updates: int) -> float:
    """Return the share of the average that stays at update number *updates* (1, 2 ...): at first it follows fast."""
    return min(longest, (1 + updates) / (10 + updates))


class Average:
    """The average of all vectors, float32, on the device."""

    def __init__(self, longest: float, every: Sequence[Vector]) -> None:
        self._longest = longest
        self._every = every
        self.values = [one.master.detach().clone() for one in every]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move towards the weights as they are after the update number *updates*."""
        share = 1.0 - decay(self._longest, updates)
        for value, one in zip(self.values, self._every, strict=True):
            value.lerp_(one.master, share)
