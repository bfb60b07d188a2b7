"""What is trained, as one vector per learning rate: clipping, optimizer, average and copy are single operations.

The vector is the 32-bit master. The model's layers hold views: of it, or, where the model computes in 16 bits, of a
16-bit copy that is made anew after every update. Gradients are collected in 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies in its vector."""

    first: int
    shape: torch.Size

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the weight's part of *vector* in its own shape: a view."""
        return vector[self.first : self.first + math.prod(self.shape)].view(self.shape)


class Vector:
    """Weights that share a learning rate."""

    def __init__(self, name: str, weights: Mapping[str, torch.nn.Parameter], dtype: torch.dtype) -> None:
        """Take over *weights*: from here on they are views. Matrices are computed with in *dtype*."""
        self.name = name
        self.places: dict[str, Place] = {}
        first = 0
        for one in sorted(weights):
            self.places[one] = Place(first, weights[one].shape)
            first += weights[one].numel()
        device = next(iter(weights.values())).device
        self.master = torch.nn.Parameter(torch.empty(first, device=device))
        """The values, float32, (weights,)."""
        self.master.grad = torch.zeros(first, device=device)
        self._copy = torch.empty(first, device=device, dtype=dtype) if dtype is not torch.float32 else None
        self._copy_gradient = torch.zeros_like(self._copy) if self._copy is not None else None
        with torch.no_grad():
            for one, place in self.places.items():
                place.of(self.master).copy_(weights[one])
            self.refresh()
            for one, weight in weights.items():
                place = self.places[one]
                # Lengths (DoRA) move by less than 16 bits can say.
                values, gradient = self.master.detach(), self.master.grad
                if self._copy is not None and self._copy_gradient is not None and len(place.shape) > 1:
                    values, gradient = self._copy, self._copy_gradient
                weight.data = place.of(values)
                weight.grad = place.of(gradient)

    @property
    def gradient(self) -> torch.Tensor:
        """The sum of what was collected, float32, (weights,)."""
        assert self.master.grad is not None
        return self.master.grad

    def collect(self) -> None:
        """Add the gradient of one pass to the sum; after every backward pass."""
        if self._copy_gradient is not None:
            self.gradient.add_(self._copy_gradient)
            self._copy_gradient.zero_()

    def refresh(self) -> None:
        """Let the layers see the master as it is now; after every change of it."""
        if self._copy is not None:
            self._copy.copy_(self.master.detach())

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of a *vector* like the master, by name: views."""
        return {name: place.of(vector) for name, place in self.places.items()}

    def join(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what :meth:`split` was given, on the CPU."""
        return torch.cat([tensors[name].reshape(-1) for name in self.places])


def vectors(weights: Mapping[str, torch.nn.Parameter], dtype: torch.dtype) -> list[Vector]:
    """Return one vector for the UNet's weights and, where there are others, one for the text encoders'."""
    encoders = {name: weight for name, weight in weights.items() if name.startswith("text_encoder")}
    rest = {name: weight for name, weight in weights.items() if name not in encoders}
    return [Vector(name, one, dtype) for name, one in (("unet", rest), ("encoders", encoders)) if one]


def norm(every: Iterable[Vector]) -> torch.Tensor:
    """Return the norm of all gradients together, as a tensor of one number."""
    found: torch.Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(one.gradient) for one in every])
    )
    return found
