"""The training itself: step after step, each a pure function of the state before it and of (seed, step, slot)."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch.nn import functional

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.training import Precision, Training
from lorafinetune_trainer import memory
from lorafinetune_trainer.conditioning import prompts
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving.checkpoints import EMA, LORA, Snapshot
from lorafinetune_trainer.saving.snapshots import HostCopies
from lorafinetune_trainer.training import batches, noising, rates, vectors
from lorafinetune_trainer.training.batches import Batch, Batches
from lorafinetune_trainer.training.ema import Average
from lorafinetune_trainer.training.model import Model
from lorafinetune_trainer.training.optimizers import PREFIX, Optimizer

MAX_NOT_FINITE: Final = 10
"""Steps in a row without a finite loss and gradient after which the run has failed."""
MAX_NOT_FINITE_FP16: Final = 25
"""In fp16 the first steps may overflow until the scaler has found its scale: it halves it each time."""
MAX_NAMES: Final = 8
"""Images that a failure names."""


class Progress(NamedTuple):
    """One step that was done."""

    step: int
    loss: float | None
    """Sum over the step's slots, each as it counts, by their number; None where it was not finite."""
    learning_rate: float
    seconds_per_step: float
    """Mean over the latest steps."""
    gradient_norm: float | None
    """Before it was limited; None where it was not finite."""
    images_per_second: float
    memory_bytes: int
    """Peak memory of the GPU, or of the process where there is none."""
    seconds: float
    """Of this step alone."""


class Loop:
    """Weights, optimizer, average and counters of one run, and the step that moves them."""

    def __init__(
        self,
        model: Model,
        samples: Samples,
        training: Training,
        *,
        dataset_digest: str,
        device: torch.device,
        total: int,
        micro_batch: int,
    ) -> None:
        self._model = model
        self._training = training
        self._device = device
        self._vectors = vectors.vectors(model.weights, model.dtype)
        self._optimizer = Optimizer(training, self._vectors)
        self._average = Average(training.ema_decay, self._vectors) if training.ema_decay is not None else None
        self._scaler = torch.amp.GradScaler(device.type) if training.precision is Precision.FP16 else None
        self._noising = noising.noising(model.noise.alphas_cumprod, model.prediction, training.min_snr_gamma)
        self._batches = Batches(
            samples,
            training,
            self._noising,
            dataset_digest=dataset_digest,
            micro_batch=micro_batch,
            windows=lru_cache(4096)(lambda caption: prompts.windows(model.encoders, caption))
            if model.encoders
            else None,
        )
        self._durations: deque[float] = deque(maxlen=20)
        self._lock = threading.Lock()
        self._copies = HostCopies(device)
        self._bad: tuple[str, ...] = ()
        self.total = total
        """Optimizer steps to do."""
        self.step = 0
        """Optimizer steps done."""
        self.updates = 0
        """Those that changed the weights."""
        self.not_finite = 0
        """Steps in a row, up to now, whose loss or gradient was not finite."""
        self.skipped = 0
        """All such steps."""

    def begin_with(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give some weights other values to begin with, by name; before the first step."""
        assert self.step == 0
        with self._lock, torch.no_grad():
            for number, one in enumerate(self._vectors):
                for name, place in one.places.items():
                    if name in weights:
                        place.of(one.master).copy_(weights[name])
                one.refresh()
                if self._average is not None:
                    self._average.values[number].copy_(one.master)
            self._copies.changed()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from *snapshot*; ValueError, and nothing changed, where it is no state of this model."""
        try:
            put = self._plan_restore(snapshot)
        except KeyError as error:
            raise ValueError(f"the checkpoint lacks {error}") from error
        with self._lock, torch.no_grad():
            put()
            self._copies.changed()

    def _plan_restore(self, snapshot: Snapshot) -> Callable[[], None]:
        tensors, scalars = snapshot.tensors, snapshot.scalars
        masters = self._values(tensors, LORA)
        averages = self._values(tensors, EMA) if self._average is not None else []
        rest = {name: one for name, one in tensors.items() if name.startswith(PREFIX)}
        known = sum(len(one.places) for one in self._vectors) * (2 if averages else 1)
        if len(tensors) - len(rest) != known:
            raise ValueError("the checkpoint holds other weights than this model")
        restore_optimizer = self._optimizer.plan_restore(rest, scalars, snapshot.updates)
        scaler = self._scaler.state_dict() if self._scaler is not None else {}
        if scaler:
            scaler["scale"] = float(scalars["scaler.scale"])
            scaler["_growth_tracker"] = int(scalars["scaler.growthTracker"])
        not_finite, skipped = int(scalars["notFinite"]), int(scalars["skipped"])

        def put() -> None:
            for one, master in zip(self._vectors, masters, strict=True):
                one.master.copy_(master)
                one.refresh()
            if self._average is not None:
                for value, average in zip(self._average.values, averages, strict=True):
                    value.copy_(average)
            restore_optimizer()
            if self._scaler is not None:
                self._scaler.load_state_dict(scaler)
            self.step, self.updates = snapshot.step, snapshot.updates
            self.not_finite, self.skipped = not_finite, skipped

        return put

    def snapshot(self) -> Snapshot:
        """Return the state after the newest step, copied to the CPU; from any thread, at any time.

        Between two optimizer steps the state does not change, so the lock is held only while one is being taken.
        """
        with self._lock:
            trained: dict[str, torch.Tensor] = {f"{LORA}{one.name}": one.master for one in self._vectors}
            if self._average is not None:
                values = zip(self._vectors, self._average.values, strict=True)
                trained |= {f"{EMA}{one.name}": value for one, value in values}
            optimizer = self._optimizer.tensors()
            copies = self._copies.take(trained | optimizer)
            scalars: dict[str, float | int | str | bool] = {
                "notFinite": self.not_finite,
                "skipped": self.skipped,
                **self._optimizer.numbers(),
            }
            if self._scaler is not None:
                scaler = self._scaler.state_dict()
                scalars["scaler.scale"] = float(scaler["scale"])
                scalars["scaler.growthTracker"] = int(scaler["_growth_tracker"])
            step, updates = self.step, self.updates
        found = self._optimizer.named({key: copies[key] for key in optimizer})
        for one in self._vectors:
            for prefix in (LORA, EMA) if self._average is not None else (LORA,):
                parts = one.split(copies[prefix + one.name])
                found.update({prefix + name: part for name, part in parts.items()})
        return Snapshot(step, updates, found, scalars)

    def published(self) -> dict[str, torch.Tensor]:
        """Return copies, float32 on the CPU, of the weights that are to be exported, by name; from any thread.

        The average where there is one, else the weights.
        """
        with self._lock:
            values = self._average.values if self._average is not None else [one.master for one in self._vectors]
            named = {one.name: value for one, value in zip(self._vectors, values, strict=True)}
            copies = self._copies.take(named)
        return {name: part for one in self._vectors for name, part in one.split(copies[one.name]).items()}

    def train(self, on_step: Callable[[Progress], None]) -> None:
        """Take the steps that are left; *on_step* is called after each. Raises Failure when the loss stays NaN.

        So it does where not a single step has changed the weights: what they were before is nobody's product.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
            drawn: Future[tuple[Batch, ...]] | None = None
            while self.step < self.total:
                started = time.monotonic()
                here = drawn.result() if drawn is not None else self._batches.at(self.step)
                # Draws are pure, so those of the next step are made while this one is computed.
                drawn = pool.submit(self._batches.at, self.step + 1) if self.step + 1 < self.total else None
                factor = rates.factor(self._training, self.step, self.total)
                loss, norm = self._take_step(here, factor)
                self._durations.append(time.monotonic() - started)
                mean = sum(self._durations) / len(self._durations)
                on_step(
                    Progress(
                        step=self.step,
                        loss=loss if math.isfinite(loss) else None,
                        learning_rate=self._training.peak_rate * factor,
                        seconds_per_step=mean,
                        gradient_norm=norm if math.isfinite(norm) else None,
                        images_per_second=self._batches.images / max(mean, 1e-9),
                        memory_bytes=memory.peak(self._device),
                        seconds=self._durations[-1],
                    )
                )
                self._guard()
        if self.total and not self.updates:
            raise self._not_finite()  # too few steps for the guard, and none of them has learnt anything

    def _take_step(self, here: Sequence[Batch], factor: float) -> tuple[float, float]:
        """Compute the gradient of one step and move the state; return loss and norm."""
        for one in self._vectors:
            one.gradient.zero_()
        losses = [self._pass(batch) for batch in batches.moved(here, self._device)]
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer.inner)
        norm = vectors.norm(self._vectors)
        *slots, size = torch.cat([*losses, norm[None]]).tolist()  # the one wait for the device in a step
        finite = math.isfinite(size) and all(math.isfinite(one) for one in slots)
        if size > self._training.max_grad_norm:
            for one in self._vectors:
                one.gradient.mul_(self._training.max_grad_norm / (size + 1e-6))
        with self._lock:
            if finite:
                self._optimizer.step(factor)
                for one in self._vectors:
                    one.refresh()
                self.updates += 1
                self.not_finite = 0
                if self._average is not None:
                    self._average.update(self.updates)
            else:
                self.not_finite += 1
                self.skipped += 1
                names = [name for batch in here for name in batch.names]
                wrong = [name for name, loss in zip(names, slots, strict=True) if not math.isfinite(loss)]
                self._bad = tuple(dict.fromkeys(wrong or names))
            if self._scaler is not None:
                self._scaler.update()
            self.step += 1
            self._copies.changed()
        return math.fsum(slots) if finite else math.nan, size

    def _pass(self, batch: Batch) -> torch.Tensor:
        """Add the gradient of *batch*; return the loss of each of its slots as it counts in the step's, (slots,)."""
        shares = (batch.signal_share, batch.noise_share)
        embeddings, pooled = batch.embeddings, batch.pooled
        if self._model.encoders:
            embeddings, pooled = self._model.embed(batch.captions)
        predicted = self._model.predict(
            noising.mix(*shares, batch.clean, batch.noise), batch.timesteps, embeddings, pooled, batch.time_ids
        )
        target = noising.target(self._noising.prediction, *shares, batch.clean, batch.noise)
        errors = functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3)) * batch.coefficients
        loss = errors.sum()
        (self._scaler.scale(loss) if self._scaler is not None else loss).backward()  # type: ignore[no-untyped-call]
        for one in self._vectors:
            one.collect()
        return errors.detach()

    def _values(self, tensors: Mapping[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
        """Return the vectors of all weights whose names in *tensors* begin with *prefix*."""
        found = []
        for one in self._vectors:
            parts = {name: tensors[prefix + name] for name in one.places}
            for name, part in parts.items():
                if part.shape != one.places[name].shape or part.dtype is not torch.float32:
                    shape = tuple(one.places[name].shape)
                    raise ValueError(f"{prefix}{name} in the checkpoint has not the shape {shape} in float32")
            found.append(one.join(parts))
        return found

    def _guard(self) -> None:
        fp16 = self._training.precision is Precision.FP16
        if self.not_finite >= (MAX_NOT_FINITE_FP16 if fp16 else MAX_NOT_FINITE):
            raise self._not_finite()

    def _not_finite(self) -> Failure:
        training, bad = self._training, self._bad
        more = f" and {len(bad) - MAX_NAMES} more" if len(bad) > MAX_NAMES else ""
        names = f", the last time with {', '.join(bad[:MAX_NAMES])}{more}" if bad else ""
        return Failure(
            ExitCode.NOT_FINITE,
            "NaNLoss",
            f"loss or gradient was NaN or infinite in {self.not_finite} steps in a row, up to step {self.step}{names}: "
            f"lower training.learningRate (now {training.peak_rate:g}), "
            + ("use training.precision bf16, " if training.precision is Precision.FP16 else "")
            + "look at those images, or check the base model's weights; the checkpoints before it are kept",
        )
