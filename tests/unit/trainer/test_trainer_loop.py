"""Learning rates and the training state, on a model of one layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.contract.training import Schedule, Training
from lorafinetune_trainer.conditioning.samples import Latents, Prompt, Sample, Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving.checkpoints import Snapshot
from lorafinetune_trainer.training import loop as loops
from lorafinetune_trainer.training import rates as schedules
from lorafinetune_trainer.training.loop import Loop
from lorafinetune_trainer.training.model import Model


def training(**changes: Any) -> Training:
    return Training.model_validate({"steps": 6, "precision": "fp32", "learningRate": 0.1, **changes})


def rates(**changes: Any) -> list[float]:
    settings = training(**changes)
    return [
        round(0.1 * schedules.factor(settings, step, settings.steps or 0), 6) for step in range(settings.steps or 0)
    ]


def test_learning_rates() -> None:
    assert rates() == [0.1] * 6
    assert rates(warmupSteps=2) == [0.05, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert rates(schedule="linear", warmupSteps=2) == [0.05, 0.1, 0.1, 0.075, 0.05, 0.025]
    assert rates(schedule="cosine") == [round(0.05 * (1 + math.cos(math.pi * step / 6)), 6) for step in range(6)]


@given(st.sampled_from(Schedule), st.integers(1, 50), st.integers(0, 60))
def test_learning_rates_stay_between_zero_and_the_peak(schedule: Schedule, steps: int, warmup: int) -> None:
    settings = training(schedule=schedule, steps=steps, warmupSteps=warmup)
    assert all(0 < schedules.factor(settings, step, settings.steps or 0) <= 1 for step in range(steps))


class Unet(torch.nn.Module):
    """Predicts a learned multiple of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([0.5]))
        self.seen: list[dict[str, Any]] = []

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.seen.append({"noisy": noisy.detach(), "timesteps": timesteps, **given})
        return (noisy * self.factor,)


SIZES, MIRRORED = torch.tensor([1365.0, 1, 0, 0, 64, 64]), torch.tensor([1365.0, 1, 0, 9, 64, 64])
SAMPLES = Samples(
    tuple(
        Sample(
            name=f"{number}.png",
            cuts=(Latents(torch.full((4, 2, 2), float(number)), torch.zeros(4, 2, 2), SIZES),),
            flipped=(Latents(torch.full((4, 2, 2), -float(number)), torch.zeros(4, 2, 2), MIRRORED),),
            captions=("a",),
            prompts=(Prompt(torch.zeros(77, 4), torch.zeros(4)),),
        )
        for number in range(1, 4)
    )
)


def make(settings: Training, prediction: str = "epsilon", samples: Samples = SAMPLES) -> Loop:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = Unet()
    model = Model(unet, {"unet.factor": unet.factor}, DDPMScheduler(), prediction, torch.float32)
    return Loop(
        model,
        samples,
        settings,
        dataset_digest="d",
        device=torch.device("cpu"),
        total=settings.steps or 0,
        micro_batch=settings.micro_batch or settings.batch_size,
    )


def train(loop: Loop, until: int) -> list[loops.Progress]:
    seen: list[loops.Progress] = []

    class Enough(Exception):
        pass

    def on_step(progress: loops.Progress) -> None:
        seen.append(progress)
        if progress.step == until:
            raise Enough

    with pytest.raises(Enough):
        loop.train(on_step)
    return seen


def test_a_state_restored_goes_on_as_if_nothing_had_happened() -> None:
    settings = training(gradientAccumulation=2, randomFlip=True)
    undisturbed = make(settings)
    losses = [one.loss for one in train(undisturbed, 6)]
    first = make(settings)
    train(first, 2)
    second = make(settings)
    second.restore(first.snapshot())
    assert [one.loss for one in train(second, 6)] == losses[2:]
    ours, theirs = undisturbed.snapshot(), second.snapshot()
    assert (
        ours.tensors.keys()
        == theirs.tensors.keys()
        == {"lora.unet.factor", "optimizer.exp_avg.unet.factor", "optimizer.exp_avg_sq.unet.factor"}
    )
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_a_snapshot_is_not_changed_by_later_steps() -> None:
    loop = make(training())
    train(loop, 1)
    snapshot = loop.snapshot()
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    train(loop, 2)
    assert all(torch.equal(snapshot.tensors[name], before[name]) for name in before)
    assert not torch.equal(loop.snapshot().tensors["lora.unet.factor"], before["lora.unet.factor"])


def test_the_split_into_passes_does_not_change_what_is_seen() -> None:
    """Four images one by one, or two by two: the same images, noise and timesteps, and nearly the same step."""
    one_by_one, in_pairs = make(training(gradientAccumulation=4)), make(training(batchSize=2, gradientAccumulation=2))
    for loop in (one_by_one, in_pairs):
        train(loop, 3)

    def seen(loop: Loop, what: str) -> torch.Tensor:
        return torch.cat([one[what] for one in loop._model.unet.seen])

    assert torch.equal(seen(one_by_one, "noisy"), seen(in_pairs, "noisy"))
    assert torch.equal(seen(one_by_one, "timesteps"), seen(in_pairs, "timesteps"))
    ours, theirs = (loop.snapshot().tensors["lora.unet.factor"] for loop in (one_by_one, in_pairs))
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_the_noise_and_its_target_are_those_of_the_scheduler() -> None:
    from lorafinetune_trainer.training import order

    for prediction in ("epsilon", "v_prediction"):
        loop = make(training(gradientAccumulation=1), prediction)
        (progress,) = train(loop, 1)
        noise = torch.from_numpy(order.noise(0, 0, 0, (4, 2, 2))).float().unsqueeze(0)
        image = order.sample(0, "d", 3, step=0, slot=0, batch=1)
        timesteps = torch.tensor([order.timestep(0, 0, 0, 1000)])
        scheduler = loop._model.noise
        noisy = scheduler.add_noise(SAMPLES.instances[image].cuts[0].mean.unsqueeze(0), noise, timesteps)
        assert torch.allclose(loop._model.unet.seen[0]["noisy"], noisy, atol=1e-6)
        target = (
            noise
            if prediction == "epsilon"
            else scheduler.get_velocity(SAMPLES.instances[image].cuts[0].mean[None], noise, timesteps)
        )
        assert progress.loss == pytest.approx(float(((noisy * 0.5 - target) ** 2).mean()), rel=1e-5)


def test_size_ids_stay_exact() -> None:
    loop = make(training(gradientAccumulation=1))
    train(loop, 1)
    ids = loop._model.unet.seen[0]["added_cond_kwargs"]["time_ids"]
    assert ids.dtype == torch.float32
    assert ids[0, 0] == 1365.0


def test_flips_come_with_their_own_latents_and_crops() -> None:
    loop = make(training(gradientAccumulation=8, randomFlip=True))
    train(loop, 2)
    seen = [float(one["added_cond_kwargs"]["time_ids"][0, 3]) for one in loop._model.unet.seen]
    assert set(seen) == {0.0, 9.0}


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("optimizer.exp_avg.unet.factor"),
        lambda tensors: tensors.update({"lora.other": torch.zeros(1)}),
        lambda tensors: tensors.update({"lora.unet.factor": torch.zeros(2)}),
        lambda tensors: tensors.update({"lora.unet.factor": torch.zeros(1, dtype=torch.float64)}),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(change: Any) -> None:
    loop = make(training())
    train(loop, 1)
    good = loop.snapshot()
    tensors = dict(good.tensors)
    change(tensors)
    fresh = make(training())
    with pytest.raises(ValueError):
        fresh.restore(Snapshot(good.step, good.updates, tensors, good.scalars))
    assert (fresh.step, fresh.updates) == (0, 0)
    assert float(fresh.snapshot().tensors["lora.unet.factor"]) == 0.5


def test_steps_that_are_not_finite_change_nothing_and_are_counted() -> None:
    settings = training(steps=100)
    first = make(settings)
    train(first, 2)
    before = first.snapshot().tensors["lora.unet.factor"]
    one = SAMPLES.instances[0]
    bad = replace(one, name="bad.png", cuts=(replace(one.cuts[0], mean=torch.full((4, 2, 2), math.nan)),))
    loop = make(settings, samples=Samples((bad, SAMPLES.instances[1])))
    loop.restore(first.snapshot())
    seen: list[loops.Progress] = []
    with pytest.raises(
        Failure, match=r"10 steps in a row, up to step 12, the last time with bad\.png: lower"
    ) as caught:
        loop.train(seen.append)
    assert {one.loss for one in seen} == {one.gradient_norm for one in seen} == {None}
    assert (caught.value.code, caught.value.reason) == (72, "NaNLoss")
    assert (loop.step, loop.updates) == (12, 2)
    assert torch.equal(loop.snapshot().tensors["lora.unet.factor"], before)
    resumed = make(settings)
    resumed.restore(loop.snapshot())
    assert (resumed.not_finite, resumed.skipped, resumed.updates) == (10, 10, 2)


def test_predictions_with_copies_leave_the_trained_weights_alone() -> None:
    loop = make(training())
    model = loop._model
    kept = model.weights["unet.factor"]
    noisy = torch.ones(1, 4, 2, 2)
    rest = (torch.tensor([5]), torch.zeros(1, 77, 4), torch.zeros(1, 4), SIZES[None])
    with torch.no_grad():
        assert float(model.predict(noisy, *rest).mean()) == 0.5
        assert float(model.predict(noisy, *rest, weights={"unet.factor": torch.tensor([3.0])}).mean()) == 3.0
        assert float(model.predict(noisy, *rest).mean()) == 0.5
    assert model.unet.factor is kept
    published = loop.published()["unet.factor"]
    train(loop, 1)
    assert published.item() == 0.5 != kept.item()
