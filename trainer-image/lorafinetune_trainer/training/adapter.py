"""The low-rank adapter: which layers get one, what it computes, and the values that it begins with.

Its names are peft's, so that what diffusers and peft know about such files holds for ours. It computes the same in half
as many operations: no dropout, no casts back and forth, and the product is added by the multiplication itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch.nn import functional

from lorafinetune.contract.training import Lora, Targets
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training import order

UNET: Final = {
    Targets.ATTENTION: ("to_q", "to_k", "to_v", "to_out.0"),
    Targets.ALL: ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
}
"""Ends of the names of the layers that are adapted."""
TEXT_ENCODER: Final = {
    Targets.ATTENTION: ("q_proj", "k_proj", "v_proj", "out_proj"),
    Targets.ALL: ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"
"""Ends of the names of what is trained: (rank, inputs), (outputs, rank), (outputs,)."""


class Matrix(torch.nn.Module):
    """One trained tensor, so that its name ends in ``.weight``."""

    def __init__(self, *shape: int, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(*shape, device=device))


class Adapted(torch.nn.Module):
    """A frozen linear layer with an adapter beside it: ``base(x) + scale * up(down(x))``.

    With a magnitude (DoRA) the rows of the sum's matrix are given the trained lengths. Their own lengths count as
    constants in the backward pass (section 4.3 of arXiv 2402.09353), and are computed without the sum itself.
    """

    def __init__(self, base: torch.nn.Linear, rank: int, scale: float, *, dora: bool) -> None:
        super().__init__()
        device = base.weight.device
        self.base_layer = base
        self.scale = scale
        self.lora_A = Matrix(rank, base.in_features, device=device)
        self.lora_B = Matrix(base.out_features, rank, device=device)
        self.lora_magnitude_vector = Matrix(base.out_features, device=device) if dora else None
        self.squares: torch.Tensor | None
        """Squared length of each row of the frozen matrix, (outputs,)."""
        # In 64 bits, so that every processor finds the same.
        squares = base.weight.detach().double().square().sum(dim=1).float() if dora else None
        self.register_buffer("squares", squares, persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) of *values*, (..., inputs)."""
        base, magnitude = self.base_layer, self.lora_magnitude_vector
        plain = functional.linear(values, base.weight, base.bias if magnitude is None else None)
        inner = functional.linear(values, self.lora_A.weight).flatten(0, -2)
        moved = torch.addmm(plain.flatten(0, -2), inner, self.lora_B.weight.t(), alpha=self.scale).view_as(plain)
        if magnitude is None:
            return moved
        moved = (moved * (magnitude.weight / self._lengths())).to(plain.dtype)
        return moved if base.bias is None else moved + base.bias

    @torch.no_grad()
    def _lengths(self) -> torch.Tensor:
        """Lengths of the rows of ``W + scale * B A``, (outputs,), float32."""
        assert self.squares is not None
        down, up = self.lora_A.weight, self.lora_B.weight.float()
        crossed = (functional.linear(self.base_layer.weight, down).float() * up).sum(dim=1)
        own = (up @ (down.float() @ down.float().t()) * up).sum(dim=1)
        squares = self.squares + 2.0 * self.scale * crossed + self.scale**2 * own
        return squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def add(
    part: torch.nn.Module, name: str, ends: Iterable[str], lora: Lora, *, dora: bool
) -> dict[str, torch.nn.Parameter]:
    """Adapt the layers of *part* whose names end in one of *ends*; return what is trained, by name, in that order.

    Names begin with *name*: ``unet.down_blocks.1...to_q.lora_A.weight``. Everything else is frozen.
    """
    part.requires_grad_(False)
    endings = tuple(ends)
    found = [one for one in part.named_modules() if any(one[0] == end or one[0].endswith(f".{end}") for end in endings)]
    for place, layer in found:
        if not isinstance(layer, torch.nn.Linear):
            raise invalid(
                "WrongBaseModel", f"{name}.{place} of the base model is no linear layer: use lora.targets Attention"
            )
        above, _, last = place.rpartition(".")
        setattr(part.get_submodule(above), last, Adapted(layer, lora.rank, lora.scale, dora=dora))
    return {f"{name}.{place}": weight for place, weight in sorted(part.named_parameters()) if weight.requires_grad}


@torch.no_grad()
def initialise(part: torch.nn.Module, name: str, seed: int) -> None:
    """Give the adapter in *part* the values that it begins with: they leave the frozen model as it was."""
    for place, layer in part.named_modules():
        if not isinstance(layer, Adapted):
            continue
        down = layer.lora_A.weight
        rank, inputs = down.shape
        down.copy_(torch.from_numpy(order.initial_weight(seed, f"{name}.{place}{DOWN}", (rank, inputs))))
        layer.lora_B.weight.zero_()
        if layer.lora_magnitude_vector is not None and layer.squares is not None:
            layer.lora_magnitude_vector.weight.copy_(layer.squares.sqrt())
