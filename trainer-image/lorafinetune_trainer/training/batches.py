"""What a step shows the model: its slots drawn by their keys, and put together into batches of one shape each.

Pure: the same step of the same run gives the same batches, in the same order, so the next one's can be drawn ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch

from lorafinetune.contract.training import Training
from lorafinetune_trainer.conditioning.samples import Prompt, Sample, Samples
from lorafinetune_trainer.training import order
from lorafinetune_trainer.training.noising import Noising
from lorafinetune_trainer.training.order import Kind

_EXACT: Final = 2**24
"""Up to here a float32 holds every integer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Slots that go through the model at once; each tensor's first dimension is theirs."""

    names: tuple[str, ...]
    """Of the images' files."""
    captions: tuple[str, ...]
    clean: torch.Tensor
    """Latents, (slots, channels, height, width), float32."""
    noise: torch.Tensor
    signal_share: torch.Tensor
    """Of the latents in what the model sees, (slots,)."""
    noise_share: torch.Tensor
    timesteps: torch.Tensor
    """(slots,), int64."""
    time_ids: torch.Tensor
    """(slots, 6)."""
    coefficients: torch.Tensor
    """What each slot's squared error counts in the step's loss, (slots,)."""
    embeddings: torch.Tensor
    """(slots, tokens, width); no tokens where the text encoders are trained."""
    pooled: torch.Tensor
    """(slots, width)."""


_TENSORS: Final = tuple(field.name for field in fields(Batch) if field.name not in ("names", "captions"))


@dataclass(frozen=True, slots=True)
class _Slot:
    """One image of a step, before it stands in a batch."""

    name: str
    caption: str
    length: int
    """Tokens or windows of the caption: batches are of one length."""
    clean: torch.Tensor
    noise: torch.Tensor
    timestep: int
    time_ids: torch.Tensor
    coefficient: float
    prompt: Prompt | None


class Batches:
    """All steps of a run."""

    def __init__(
        self,
        samples: Samples,
        training: Training,
        noising: Noising,
        *,
        dataset_digest: str,
        micro_batch: int,
        windows: Callable[[str], int] | None = None,
    ) -> None:
        """*windows* says how long a caption is, where the text encoders are trained; else its embeddings say it."""
        self._training = training
        self._noising = noising
        self._dataset_digest = dataset_digest
        self._micro_batch = micro_batch
        self._windows = windows
        self._empty = samples.empty
        self._shown = {
            Kind.INSTANCE: [one for one in samples.instances for _ in range(one.repeats)],
            Kind.CLASS: [one for one in samples.classes for _ in range(one.repeats)],
        }
        if noising.timesteps > _EXACT:
            raise ValueError("more timesteps than float32 can count")

    @property
    def images(self) -> int:
        """Images of one step."""
        return sum(self._training.images_per_step for shown in self._shown.values() if shown)

    def at(self, step: int) -> tuple[Batch, ...]:
        """Return the batches of *step* (0, 1 ...), on the CPU, in the order in which their gradients are added up."""
        training = self._training
        slots = [
            self._slot(kind, shown, step, number)
            for kind, shown in self._shown.items()
            if shown
            for number in range(training.images_per_step)
        ]
        groups: dict[tuple[object, ...], list[_Slot]] = {}
        for slot in slots:
            groups.setdefault((tuple(slot.clean.shape), slot.length), []).append(slot)
        size = self._micro_batch
        return tuple(
            self._batch(group[first : first + size])
            for group in groups.values()
            for first in range(0, len(group), size)
        )

    def _slot(self, kind: Kind, shown: Sequence[Sample], step: int, slot: int) -> _Slot:
        training, seed = self._training, self._training.seed
        batch = training.images_per_step
        place = order.sample(seed, self._dataset_digest, len(shown), step=step, slot=slot, batch=batch, kind=kind)
        sample = shown[place]
        flips = training.random_flip and order.flip(seed, step, slot, kind)
        cuts = sample.flipped if flips else sample.cuts
        cut = cuts[order.cut(seed, step, slot, len(cuts), kind)]
        shape = tuple(cut.mean.shape)
        noise = order.noise(seed, step, slot, shape, kind)
        if training.noise_offset:
            noise = noise + training.noise_offset * order.offset(seed, step, slot, shape[0], kind)
        timestep = order.timestep(seed, step, slot, self._noising.timesteps, kind)
        coefficient = float(self._noising.loss_weights[timestep]) / batch
        number = order.caption(seed, step, slot, len(sample.captions), kind)
        caption, prompt = sample.captions[number], sample.prompts[number] if sample.prompts else None
        if order.drops(seed, step, slot, training.captions.dropout, kind):
            caption, prompt = "", self._empty
        if self._windows is not None:
            length, prompt = self._windows(caption), None
        elif prompt is not None:
            length = len(prompt.embeddings)
        else:
            raise ValueError(f"{sample.name} has no embeddings")
        return _Slot(
            name=sample.name,
            caption=caption,
            length=length,
            clean=cut.mean + cut.std * torch.from_numpy(order.posterior(seed, step, slot, shape, kind)).float(),
            noise=torch.from_numpy(noise).float(),
            timestep=timestep,
            time_ids=cut.time_ids,
            coefficient=coefficient * (training.prior_loss_weight if kind is Kind.CLASS else 1.0),
            prompt=prompt,
        )

    def _batch(self, slots: Sequence[_Slot]) -> Batch:
        timesteps = torch.tensor([one.timestep for one in slots])
        prompts = [one.prompt for one in slots if one.prompt is not None]
        nothing = torch.empty(len(slots), 0)
        return Batch(
            names=tuple(one.name for one in slots),
            captions=tuple(one.caption for one in slots),
            clean=torch.stack([one.clean for one in slots]),
            noise=torch.stack([one.noise for one in slots]),
            signal_share=self._noising.signal[timesteps],
            noise_share=self._noising.noise[timesteps],
            timesteps=timesteps,
            time_ids=torch.stack([one.time_ids for one in slots]),
            coefficients=torch.tensor([one.coefficient for one in slots]),
            embeddings=torch.stack([one.embeddings for one in prompts]) if prompts else nothing,
            pooled=torch.stack([one.pooled for one in prompts]) if prompts else nothing,
        )


def moved(given: Sequence[Batch], device: torch.device) -> tuple[Batch, ...]:
    """Return the batches on *device*: one copy for all their tensors, which the GPU makes while it computes."""
    if device.type == "cpu":
        return tuple(given)
    packed = pack(given)
    if device.type == "cuda":
        packed = packed.pin_memory()
    return unpack(packed.to(device, non_blocking=True), given)


def pack(given: Sequence[Batch]) -> torch.Tensor:
    """Return all numbers of all batches one after the other, float32: integers are small enough to be exact."""
    return torch.cat([getattr(batch, name).reshape(-1).float() for batch in given for name in _TENSORS])


def unpack(packed: torch.Tensor, like: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return the batches that *packed* holds, wherever it lies, in the shapes and types of those it was made of."""
    first, found = 0, []
    for batch in like:
        parts: dict[str, Any] = {}
        for name in _TENSORS:
            tensor = getattr(batch, name)
            parts[name] = packed[first : first + tensor.numel()].view(tensor.shape).to(tensor.dtype)
            first += tensor.numel()
        found.append(replace(batch, **parts))
    return tuple(found)
