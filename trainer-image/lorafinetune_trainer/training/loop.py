"""The training itself: step after step, each a pure function of the state before it and of (seed, step, slot)."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch.nn import functional

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.training import Precision, Schedule, Training
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving.checkpoints import Snapshot
from lorafinetune_trainer.saving.snapshots import HostCopies
from lorafinetune_trainer.training import order
from lorafinetune_trainer.training.model import Model

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_NOT_FINITE: Final = 10
"""Steps in a row without a finite loss and gradient after which the run has failed."""
MAX_NOT_FINITE_FP16: Final = 25
"""In fp16 the first steps may overflow until the scaler has found its scale: it halves it each time."""
BETAS: Final = (0.9, 0.999)
EPSILON: Final = 1e-8
_LORA, _FIRST, _SECOND = "lora.", "exp_avg.", "exp_avg_sq."


class Progress(NamedTuple):
    """One step that was done."""

    step: int
    loss: float | None
    """Mean over the step's images; None where it was not finite."""
    learning_rate: float
    seconds_per_step: float


def learning_rate(training: Training, step: int, total: int) -> float:
    """Return the learning rate of *step* (0, 1 ...): a pure function, so no scheduler has a state to save."""
    if step < training.warmup_steps:
        return training.peak_rate * ((step + 1) / training.warmup_steps)
    if training.schedule is Schedule.CONSTANT:
        return training.peak_rate
    left = max(1, total - training.warmup_steps)
    done = min(1.0, (step - training.warmup_steps) / left)
    if training.schedule is Schedule.LINEAR:
        return training.peak_rate * (1.0 - done)
    return training.peak_rate * 0.5 * (1.0 + math.cos(math.pi * done))


class Loop:
    """Weights, optimizer and counters of one run, and the step that moves them."""

    def __init__(
        self,
        model: Model,
        samples: Samples,
        training: Training,
        *,
        dataset_digest: str,
        accelerator: Accelerator,
        total: int,
    ) -> None:
        self._model = model
        self._samples = samples
        self._training = training
        self._dataset_digest = dataset_digest
        self._accelerator = accelerator
        self._device = accelerator.device
        self._weights = list(model.weights.values())
        self._optimizer = torch.optim.AdamW(
            self._weights,
            lr=training.peak_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=training.weight_decay,
            foreach=self._device.type != "cpu",
        )
        self._scaler = torch.amp.GradScaler(self._device.type) if training.precision is Precision.FP16 else None
        self._alphas = model.noise.alphas_cumprod.to(self._device, torch.float32)
        self._copies = HostCopies(self._device)
        self._durations: deque[float] = deque(maxlen=20)
        self._lock = threading.Lock()
        self.total = total
        """Optimizer steps to do."""
        self.step = 0
        """Optimizer steps done."""
        self.updates = 0
        """Those that changed the weights."""
        self.not_finite = 0
        """Steps in a row, up to now, whose loss or gradient was not finite."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from *snapshot*; ValueError, and nothing changed, where it is not a state of this model."""
        names = list(self._model.weights)
        prefixes = (_LORA, _FIRST, _SECOND) if snapshot.updates else (_LORA,)
        if set(snapshot.tensors) != {prefix + name for prefix in prefixes for name in names}:
            raise ValueError("the checkpoint holds other weights than this model")
        for name, weight in self._model.weights.items():
            for prefix in prefixes:
                tensor = snapshot.tensors[prefix + name]
                if tensor.shape != weight.shape or tensor.dtype != torch.float32:
                    raise ValueError(f"{prefix}{name} in the checkpoint has not the shape {tuple(weight.shape)}")
        scaler = self._scaler.state_dict() if self._scaler is not None else {}
        if scaler:
            scaler["scale"] = float(snapshot.scalars["scaler.scale"])
            scaler["_growth_tracker"] = int(snapshot.scalars["scaler.growthTracker"])
        with self._lock, torch.no_grad():
            for name, weight in self._model.weights.items():
                weight.copy_(snapshot.tensors[_LORA + name])
                if snapshot.updates:
                    self._optimizer.state[weight] = {
                        "step": torch.tensor(float(snapshot.updates)),
                        "exp_avg": snapshot.tensors[_FIRST + name].to(self._device, copy=True),
                        "exp_avg_sq": snapshot.tensors[_SECOND + name].to(self._device, copy=True),
                    }
            if self._scaler is not None:
                self._scaler.load_state_dict(scaler)
            self.step, self.updates = snapshot.step, snapshot.updates
            self.not_finite = int(snapshot.scalars.get("notFinite", 0))
            self._copies.changed()

    def snapshot(self) -> Snapshot:
        """Return the state after the newest step, copied to the CPU; from any thread, at any time.

        Between two optimizer steps the state does not change, so the lock is held only while one is being taken.
        """
        with self._lock:
            trained: dict[str, torch.Tensor] = {}
            for name, weight in self._model.weights.items():
                trained[_LORA + name] = weight
                moments = self._optimizer.state.get(weight)
                if moments:
                    trained[_FIRST + name] = moments["exp_avg"]
                    trained[_SECOND + name] = moments["exp_avg_sq"]
            tensors = self._copies.take(trained)
            scalars: dict[str, float | int | str | bool] = {"notFinite": self.not_finite}
            if self._scaler is not None:
                scaler = self._scaler.state_dict()
                scalars["scaler.scale"] = float(scaler["scale"])
                scalars["scaler.growthTracker"] = int(scaler["_growth_tracker"])
            return Snapshot(self.step, self.updates, tensors, scalars)

    def published(self) -> dict[str, torch.Tensor]:
        """Return copies, float32 on the CPU, of the weights that are to be exported, by name; from any thread."""
        with self._lock:
            return {name: weight.detach().to("cpu", copy=True) for name, weight in self._model.weights.items()}

    def train(self, on_step: Callable[[Progress], None]) -> None:
        """Take the steps that are left; *on_step* is called after each. Raises Failure when the loss stays NaN."""
        while self.step < self.total:
            started = time.monotonic()
            rate = learning_rate(self._training, self.step, self.total)
            loss = self._take_step(rate)
            self._durations.append(time.monotonic() - started)
            mean = sum(self._durations) / len(self._durations)
            on_step(Progress(self.step, loss if math.isfinite(loss) else None, rate, mean))
            self._guard()

    def _take_step(self, rate: float) -> float:
        training = self._training
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for number in range(training.gradient_accumulation):
            loss = self._loss(number * training.batch_size) / training.gradient_accumulation
            (self._scaler.scale(loss) if self._scaler is not None else loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._weights, training.max_grad_norm)
        total = torch.stack([torch.stack(losses).sum(), norm]).tolist()  # the one wait for the GPU in a step
        finite = all(math.isfinite(one) for one in total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with self._lock:
            if finite:
                self._optimizer.step()
                self.updates += 1
                self.not_finite = 0
            else:
                self.not_finite += 1
            if self._scaler is not None:
                self._scaler.update()
            self.step += 1
            self._copies.changed()
        return float(total[0])

    def _loss(self, first_slot: int) -> torch.Tensor:
        """Return the loss of one pass over the images at *first_slot* and the slots after it."""
        training, step = self._training, self.step
        slots = range(first_slot, first_slot + training.batch_size)
        batch = training.batch_size * training.gradient_accumulation
        instances = self._samples.instances
        latents, noises, timesteps, times, embeddings, pooled = [], [], [], [], [], []
        for slot in slots:
            sample = instances[
                order.sample(training.seed, self._dataset_digest, len(instances), step=step, slot=slot, batch=batch)
            ]
            cut = (sample.flipped if training.random_flip and order.flip(training.seed, step, slot) else sample.cuts)[0]
            shape = tuple(cut.mean.shape)
            latents.append(
                cut.mean + cut.std * torch.from_numpy(order.posterior(training.seed, step, slot, shape)).float()
            )
            noises.append(torch.from_numpy(order.noise(training.seed, step, slot, shape)).float())
            timesteps.append(order.timestep(training.seed, step, slot, len(self._alphas)))
            times.append(cut.time_ids)
            embeddings.append(sample.prompts[0].embeddings)
            pooled.append(sample.prompts[0].pooled)
        clean, noise = self._stack(latents), self._stack(noises)
        alpha = self._alphas[torch.tensor(timesteps, device=self._device)].reshape(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise
        target = noise
        if self._model.prediction == "v_prediction":
            target = alpha.sqrt() * noise - (1.0 - alpha).sqrt() * clean
        predicted = self._model.predict(
            noisy,
            torch.tensor(timesteps, device=self._device),
            self._stack(embeddings),
            self._stack(pooled),
            self._stack(times),
        )
        return functional.mse_loss(predicted, target)

    def _stack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(tensors)).to(self._device)

    def _guard(self) -> None:
        training = self._training
        limit = MAX_NOT_FINITE_FP16 if training.precision is Precision.FP16 else MAX_NOT_FINITE
        if self.not_finite >= limit:
            raise Failure(
                ExitCode.FAILED,
                "NaNLoss",
                f"loss or gradient was NaN or infinite in {self.not_finite} steps in a row, up to step {self.step}: "
                f"lower training.learningRate (now {training.peak_rate:g}), "
                + ("use training.precision bf16, " if training.precision is Precision.FP16 else "")
                + "or check the base model's weights; the checkpoints before it are kept",
            )
