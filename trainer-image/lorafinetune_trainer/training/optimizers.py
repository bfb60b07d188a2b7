"""What turns gradients into updates, and its state as named tensors and numbers: no pickle, and nothing forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from lorafinetune.contract.training import Optimizer as Kind
from lorafinetune.contract.training import Training
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.training.vectors import Vector

BETAS: Final = (0.9, 0.999)
EPSILON: Final = 1e-8
SMALLEST_8BIT: Final = 4096
"""A vector with fewer weights keeps a 32-bit state."""
PREFIX: Final = "optimizer."

_LIKE_WEIGHTS: Final = {
    Kind.ADAMW: ("exp_avg", "exp_avg_sq"),
    Kind.ADAMW_8BIT: ("state1", "state2"),
    Kind.PRODIGY: ("exp_avg", "exp_avg_sq", "s", "p0"),
}
"""Tensors of the state that have one number for each weight."""
_OTHERS: Final = {Kind.ADAMW_8BIT: ("absmax1", "absmax2", "qmap1", "qmap2")}
"""Those that do not: scales of the blocks of an 8-bit state, and what its 256 values mean."""
_NUMBERS: Final = {Kind.PRODIGY: ("k", "d", "d_max", "d_numerator")}
"""Numbers that the whole optimizer shares."""


class Optimizer:
    """AdamW, 8-bit AdamW or Prodigy over some vectors."""

    def __init__(self, training: Training, every: Sequence[Vector]) -> None:
        self._kind = training.optimizer
        self._every = every
        own = training.text_encoder_learning_rate
        self._peaks = [own if own is not None and one.name == "encoders" else training.peak_rate for one in every]
        if self._kind is Kind.PRODIGY and len(set(self._peaks)) > 1:
            raise invalid(
                "InvalidConfig",
                "training.textEncoderLearningRate: Prodigy finds one rate for all; leave it out, or use AdamW",
            )
        groups = [{"params": [one.master], "lr": peak} for one, peak in zip(every, self._peaks, strict=True)]
        self.inner = _MAKERS[self._kind](groups)
        for group in self.inner.param_groups:
            group["weight_decay"] = training.weight_decay

    def step(self, factor: float) -> None:
        """Update the vectors with their gradients, with *factor* times the peak learning rates."""
        for group, peak in zip(self.inner.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self.inner.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state's tensors as they are, by key and vector: not copied, empty before the first update."""
        found = {}
        for one in self._every:
            state = self.inner.state.get(one.master, {})
            found.update({f"{key}.{one.name}": state[key] for key in self._keys(one) if key in state})
        return found

    def named(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what :meth:`tensors` gave, by the names of a checkpoint: cut into weights where it is like them."""
        found: dict[str, torch.Tensor] = {}
        for one in self._every:
            for key in self._keys(one):
                tensor = tensors.get(f"{key}.{one.name}")
                if tensor is None:
                    continue
                if key in _LIKE_WEIGHTS[self._kind]:
                    parts = one.split(tensor)
                    found.update({f"{PREFIX}{key}.{name}": part for name, part in parts.items()})
                else:
                    found[f"{PREFIX}{key}.{one.name}"] = tensor
        return found

    def numbers(self) -> dict[str, float]:
        """Return the numbers that belong to the state."""
        group = self.inner.param_groups[0]
        return {f"{PREFIX}{key}": float(group[key]) for key in _NUMBERS.get(self._kind, ())}

    def plan_restore(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any], updates: int
    ) -> Callable[[], None]:
        """Check what :meth:`named` and :meth:`numbers` gave after so many *updates*; return what puts it in place.

        ValueError or KeyError where it is not the state of this optimizer; nothing has changed then.
        """
        found = dict(tensors)
        states: list[dict[str, Any]] = []
        for one in self._every if updates else ():
            state: dict[str, Any] = {"step": updates}
            if self._kind is Kind.ADAMW:
                state["step"] = torch.tensor(float(updates), device=one.master.device)
            for key in self._keys(one):
                dtype = torch.uint8 if self._is_8bit(one) and key.startswith("state") else torch.float32
                if key in _LIKE_WEIGHTS[self._kind]:
                    parts = {name: found.pop(f"{PREFIX}{key}.{name}") for name in one.places}
                    for name, part in parts.items():
                        if part.shape != one.places[name].shape:
                            raise ValueError(f"{key} of {name} has not the shape {tuple(one.places[name].shape)}")
                    tensor = one.join(parts)
                else:
                    tensor = found.pop(f"{PREFIX}{key}.{one.name}")
                if tensor.dtype is not dtype:
                    raise ValueError(f"{key} of the optimizer's state is {tensor.dtype}, not {dtype}")
                state[key] = tensor.to(one.master.device)
            states.append(state)
        if found:
            raise ValueError(f"the checkpoint holds the state of another optimizer: {min(found)}")
        shared = {key: float(numbers[f"{PREFIX}{key}"]) for key in _NUMBERS.get(self._kind, ())}
        if "k" in shared:
            shared["k"] = int(shared["k"])

        def restore() -> None:
            for one, state in zip(self._every, states, strict=bool(updates)):
                self.inner.state[one.master] = state
            for group in self.inner.param_groups:
                group.update(shared)

        return restore

    def _keys(self, one: Vector) -> tuple[str, ...]:
        others = _OTHERS.get(self._kind, ()) if self._is_8bit(one) else ()
        return _LIKE_WEIGHTS[self._kind] + others

    def _is_8bit(self, one: Vector) -> bool:
        return self._kind is Kind.ADAMW_8BIT and one.master.numel() >= SMALLEST_8BIT


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # One pass over memory instead of a dozen.
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise invalid(
            "OptimizerMissing",
            "training.optimizer AdamW8bit needs the library bitsandbytes, which this image lacks: use AdamW, or an "
            f"image with the extra eight-bit ({error})",
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(groups, betas=BETAS, eps=EPSILON, min_8bit_size=SMALLEST_8BIT)
    return made


def _prodigy(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    made: torch.optim.Optimizer = Prodigy(
        groups, betas=BETAS, eps=EPSILON, use_bias_correction=True, safeguard_warmup=True
    )
    return made


_MAKERS: Final = {Kind.ADAMW: _adamw, Kind.ADAMW_8BIT: _adamw_8bit, Kind.PRODIGY: _prodigy}
