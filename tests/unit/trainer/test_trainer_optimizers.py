"""Optimizers, average and scaler: what they compute, and that their state is whole."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune_trainer import memory, planning
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving import uploads
from lorafinetune_trainer.saving.checkpoints import Snapshot
from lorafinetune_trainer.training import ema, rates, vectors
from lorafinetune_trainer.training.optimizers import Optimizer
from tests.unit.trainer import tiny

KINDS = ("AdamW", "AdamW8bit", "Prodigy")


def parameters(count: int = 5000) -> dict[str, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {
        "unet.a": torch.nn.Parameter(torch.randn(count // 50, 50, generator=random)),
        "text_encoder.b": torch.nn.Parameter(torch.randn(count // 50, 50, generator=random)),
    }


def test_adamw_is_torchs_over_each_matrix() -> None:
    ours, theirs = parameters(), parameters()
    settings = tiny.training(learningRate=0.01, textEncoderLearningRate=0.002, weightDecay=0.1)
    made = vectors.vectors(ours, torch.float32)
    optimizer = Optimizer(settings, made)
    groups = [
        {"params": [theirs["unet.a"]], "lr": 0.005},
        {"params": [theirs["text_encoder.b"]], "lr": 0.001},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for step in range(4):
        for name in ours:
            gradient = torch.randn(ours[name].shape, generator=torch.Generator().manual_seed(step))
            assert ours[name].grad is not None
            ours[name].grad.copy_(gradient)  # a view of its vector's
            theirs[name].grad = gradient
        optimizer.step(0.5)
        reference.step()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def stepped(kind: str, updates: int) -> tuple[Optimizer, list[vectors.Vector]]:
    made = vectors.vectors(parameters(), torch.float32)
    rate = 1.0 if kind == "Prodigy" else 0.01
    optimizer = Optimizer(tiny.training(optimizer=kind, learningRate=rate), made)
    for step in range(updates):
        move(optimizer, made, step)
    return optimizer, made


def move(optimizer: Optimizer, made: list[vectors.Vector], step: int) -> None:
    for one in made:
        one.gradient.copy_(torch.randn(one.gradient.shape, generator=torch.Generator().manual_seed(step)))
        one.gradient.add_(10.0)  # a direction that stays, so that Prodigy raises its rate
    optimizer.step(0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_restored_moves_on_alike(kind: str) -> None:
    first, values = stepped(kind, 30)
    state, numbers = first.named(first.tensors()), first.numbers()
    saved = {name: tensor.clone() for name, tensor in state.items()}
    masters = [one.master.detach().clone() for one in values]
    second, others = stepped(kind, 0)
    for one, master in zip(others, masters, strict=True):
        one.master.data.copy_(master)
    second.plan_restore(saved, numbers, 30)()
    for step in (30, 31):
        move(first, values, step)
        move(second, others, step)
    assert all(torch.equal(one.master, other.master) for one, other in zip(values, others, strict=True))
    assert first.numbers() == second.numbers()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_state_has_the_size_that_the_memory_formula_says(kind: str) -> None:
    optimizer, made = stepped(kind, 1)
    trained = sum(one.master.numel() for one in made)
    found = uploads.size_of({**{one.name: one.master for one in made}, **optimizer.tensors()})
    formula = memory.snapshot(tiny.training(optimizer=kind, learningRate=1.0 if kind == "Prodigy" else 0.01), trained)
    small = 2 * 4 * 256 * len(made) if kind == "AdamW8bit" else 64 * len(made)  # tables and counters
    assert abs(found - formula) <= small + formula // 50, (found, formula)


def test_8_bit_states_have_8_bits() -> None:
    optimizer, _ = stepped("AdamW8bit", 1)
    found = optimizer.named(optimizer.tensors())
    assert {name.split(".")[1]: str(one.dtype) for name, one in found.items()} == {
        "state1": "torch.uint8",
        "state2": "torch.uint8",
        "absmax1": "torch.float32",
        "absmax2": "torch.float32",
        "qmap1": "torch.float32",
        "qmap2": "torch.float32",
    }
    assert found["optimizer.state1.unet.a"].shape == (100, 50)
    assert len(found["optimizer.state1.unet.a"].unique()) > 20


def test_prodigy_finds_its_rate_and_keeps_it() -> None:
    optimizer, _ = stepped("Prodigy", 0)
    assert optimizer.numbers()["optimizer.d"] == 1e-6
    optimizer, _ = stepped("Prodigy", 30)
    numbers = optimizer.numbers()
    assert numbers["optimizer.k"] == 30
    assert numbers["optimizer.d"] > 1e-6
    assert set(numbers) == {f"optimizer.{name}" for name in ("k", "d", "d_max", "d_numerator")}
    assert {"optimizer.s.unet.a", "optimizer.p0.unet.a"} < set(optimizer.named(optimizer.tensors()))


def test_prodigy_with_two_rates_is_refused() -> None:
    made = vectors.vectors(parameters(), torch.float32)
    with pytest.raises(Failure, match=r"training\.textEncoderLearningRate"):
        Optimizer(tiny.training(optimizer="Prodigy", textEncoderLearningRate=0.5), made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_another_optimizer_is_refused(kind: str) -> None:
    other = {"AdamW": "Prodigy", "AdamW8bit": "AdamW", "Prodigy": "AdamW8bit"}[kind]
    mine, theirs = tiny.loop(tiny.training(optimizer=kind)), tiny.loop(tiny.training(optimizer=other))
    tiny.train(theirs, 1)
    before = mine.snapshot()
    with pytest.raises(ValueError, match="checkpoint"):
        mine.restore(theirs.snapshot())
    assert tiny.differing(before, mine.snapshot()) == []


def test_a_library_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.training(optimizer="AdamW8bit")
    assert "bitsandbytes" in planning.libraries(settings)
    monkeypatch.setitem(planning.OPTIMIZERS, settings.optimizer, "no-such-library")
    with pytest.raises(Failure, match=r"training\.optimizer AdamW8bit needs the library no-such-library"):
        planning.libraries(settings)


def test_the_average_follows_fast_at_first() -> None:
    assert [round(ema.decay(0.9, updates), 4) for updates in (1, 2, 10, 80, 1000)] == [0.1818, 0.25, 0.55, 0.9, 0.9]
    made = vectors.vectors({"unet.a": torch.nn.Parameter(torch.zeros(3))}, torch.float32)
    average = ema.Average(0.5, made)
    wanted = 0.0
    for update, value in enumerate((1.0, 2.0, 5.0), start=1):
        made[0].master.data.fill_(value)
        average.update(update)
        share = min(0.5, (1 + update) / (10 + update))
        wanted = share * wanted + (1 - share) * value
    assert average.values[0].tolist() == pytest.approx([wanted] * 3)


def test_what_is_published_is_the_average_where_there_is_one() -> None:
    loop = tiny.loop(tiny.training(emaDecay=0.9))
    tiny.train(loop, 3)
    snapshot = loop.snapshot().tensors
    for name, one in loop.published().items():
        assert torch.equal(one, snapshot[f"ema.{name}"])
    assert any(not torch.equal(snapshot[f"ema.{name}"], snapshot[f"lora.{name}"]) for name in loop.published())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_how_a_step_is_split_changes_it_by_next_to_nothing(precision: str) -> None:
    """From one state, one step in passes of one, two and four: the weights are the same to 1e-4 of what they moved."""
    settings = tiny.training(gradientAccumulation=4, precision=precision, learningRate=1e-3)
    start = tiny.loop(settings).snapshot()
    moved = []
    for size in (1, 2, 4):
        loop = tiny.loop(settings, micro_batch=size)
        seen: list[torch.Tensor] = []
        collect = loop._optimizer.step
        loop._optimizer.step = lambda factor, loop=loop, seen=seen, collect=collect: (  # type: ignore[method-assign, misc]
            seen.append(torch.cat([one.gradient for one in loop._vectors]).clone()),
            collect(factor),
        )[1]
        tiny.train(loop, 1)
        moved.append(seen[0])
    assert start.step == 0
    limit = 1e-4 if precision == "fp32" else 0.05  # 16 bits: one rounding more or less in each sum
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < limit


def bad_samples(name: str = "bad.png") -> Samples:
    one = tiny.sample(0)
    return Samples((replace(one, name=name, cuts=tuple(replace(cut, mean=cut.mean * math.nan) for cut in one.cuts)),))


def test_fp16_overflows_are_skipped_counted_and_the_scale_is_kept() -> None:
    settings = tiny.training(precision="fp16", steps=30)
    loop = tiny.loop(settings)
    assert loop._scaler is not None
    loop._scaler.load_state_dict({**loop._scaler.state_dict(), "scale": 2.0**40})  # every gradient overflows
    before = loop.snapshot()
    tiny.train(loop, 3)
    after = loop.snapshot()
    assert (after.step, after.updates, after.scalars["skipped"], after.scalars["notFinite"]) == (3, 0, 3, 3)
    assert after.scalars["scaler.scale"] == 2.0**37
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    resumed = tiny.loop(settings)
    resumed.restore(tiny.through_bytes(after))
    for one in (loop, resumed):
        tiny.train(one, 28)
    assert tiny.differing(loop.snapshot(), resumed.snapshot()) == []
    last = resumed.snapshot()
    assert last.updates > 0
    assert last.updates + int(last.scalars["skipped"]) == 28
    assert last.scalars["notFinite"] == 0


def test_nan_ends_the_run_with_the_names_of_the_images() -> None:
    given = Samples((*bad_samples().instances, tiny.sample(1), tiny.sample(2)))
    loop = tiny.loop(tiny.training(steps=40, gradientAccumulation=3, precision="bf16"), given)
    with pytest.raises(Failure, match=re.escape("the last time with bad.png: lower training.learningRate")) as caught:
        loop.train(lambda _: None)
    assert (caught.value.code, caught.value.reason) == (ExitCode.NOT_FINITE, "NaNLoss")
    assert (loop.step, loop.updates, loop.skipped) == (10, 0, 10)


@pytest.mark.parametrize("prefix", ["lora.", "ema.", "optimizer.exp_avg."])
def test_each_part_of_a_state_is_needed(prefix: str) -> None:
    settings = tiny.training(emaDecay=0.9)
    loop = tiny.loop(settings)
    tiny.train(loop, 1)
    good = loop.snapshot()
    tensors = dict(good.tensors)
    del tensors[next(name for name in tensors if name.startswith(prefix))]
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        tiny.loop(settings).restore(Snapshot(good.step, good.updates, tensors, good.scalars))
    with pytest.raises(ValueError, match="other weights"):
        tiny.loop(tiny.training()).restore(good)  # one without an average


RATES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "restarts": ({"schedule": "cosineWithRestarts", "scheduleCycles": 2}, [1.0, 0.75, 0.25, 1.0, 0.75, 0.25]),
    "polynomial": ({"schedule": "polynomial"}, [round((1 - step / 6) ** 2, 4) for step in range(6)]),
    "polynomial of one": (
        {"schedule": "polynomial", "schedulePower": 1, "warmupSteps": 2},
        [0.5, 1, 1, 0.75, 0.5, 0.25],
    ),
}


@pytest.mark.parametrize("which", RATES)
def test_rates(which: str) -> None:
    changes, wanted = RATES[which]
    assert [round(rates.factor(tiny.training(steps=6, **changes), step, 6), 4) for step in range(6)] == wanted
