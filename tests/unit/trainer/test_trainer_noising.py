"""Noise schedules and loss weights against closed forms; what the slots of a step draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.training import batches, model, noising, order
from lorafinetune_trainer.training.batches import Batches
from lorafinetune_trainer.training.order import Kind
from tests.unit.trainer import tiny

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def closed_form() -> torch.Tensor:
    """Alpha-bar of SDXL's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1.0 - betas).cumprod(0)


def test_the_schedule_is_the_base_models() -> None:
    scheduler = model.scheduler(SDXL, tiny.training())
    assert torch.allclose(scheduler.alphas_cumprod.double(), closed_form(), rtol=1e-4)
    assert scheduler.config.prediction_type == "epsilon"


def test_zero_terminal_snr_shifts_and_scales_the_roots() -> None:
    settings = tiny.training(prediction="v_prediction", zeroTerminalSnr=True)
    found = model.scheduler(SDXL, settings).alphas_cumprod.double()
    roots = closed_form().sqrt()
    wanted = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    assert found[-1] == 0.0
    assert torch.allclose(found, wanted, rtol=2e-3, atol=1e-7)
    assert float(found[0]) == pytest.approx(float(closed_form()[0]), rel=1e-5)


def test_zero_terminal_snr_without_v_prediction_is_refused() -> None:
    with pytest.raises(Failure, match=r"training\.zeroTerminalSnr needs prediction v_prediction"):
        model.scheduler(SDXL, tiny.training(zeroTerminalSnr=True))
    # Where it is the base model's own schedule, no field that the user did not write is blamed.
    base = {**SDXL, "rescale_betas_zero_snr": True}
    for settings in (tiny.training(), tiny.training(prediction="epsilon")):
        with pytest.raises(Failure, match=r"the base model ends in pure noise \(.*scheduler_config.json") as caught:
            model.scheduler(base, settings)
        assert "zeroTerminalSnr" not in caught.value.message
        assert "set training.prediction: v_prediction" in caught.value.message
    assert model.scheduler(base, tiny.training(prediction="v_prediction")).alphas_cumprod[-1] == 0.0
    with pytest.raises(Failure, match="only epsilon and v_prediction"):
        model.scheduler({**SDXL, "prediction_type": "sample"}, tiny.training())


def test_min_snr_weights() -> None:
    snr = torch.tensor([0.0, 0.5, 5.0, 50.0], dtype=torch.float64)
    assert noising.min_snr_weights(snr, "epsilon", None).tolist() == [1, 1, 1, 1]
    assert noising.min_snr_weights(snr, "epsilon", 5.0).tolist() == [1, 1, 1, 0.1]
    assert noising.min_snr_weights(snr, "v_prediction", 5.0).tolist() == pytest.approx([0, 0.5 / 1.5, 5 / 6, 5 / 51])


def test_v_and_noise_determine_the_latents() -> None:
    schedule = noising.noising(closed_form(), "v_prediction")
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([10, 900])
    shares = schedule.signal[steps], schedule.noise[steps]
    noisy = noising.mix(*shares, clean, noise)
    v = noising.target("v_prediction", *shares, clean, noise)
    signal, spread = (one.reshape(-1, 1, 1, 1) for one in shares)
    assert torch.allclose(signal * noisy - spread * v, clean, atol=1e-5)
    assert torch.allclose(spread * noisy + signal * v, noise, atol=1e-5)
    assert noising.target("epsilon", *shares, clean, noise) is noise


def drawn(given: Samples, micro_batch: int = 1, windows: Any = None, **changes: Any) -> Batches:
    settings = tiny.training(**changes)
    schedule = noising.noising(closed_form(), "epsilon", settings.min_snr_gamma)
    return Batches(given, settings, schedule, dataset_digest="d", micro_batch=micro_batch, windows=windows)


def test_noise_offset_is_one_number_for_each_channel_and_slot() -> None:
    plain, moved = (drawn(tiny.samples(), noiseOffset=share).at(2) for share in (0.0, 0.1))
    offsets = [(other.noise - one.noise)[0] for one, other in zip(plain, moved, strict=True)]
    for slot, found in enumerate(offsets):
        wanted = torch.from_numpy(0.1 * order.offset(0, 2, slot, 4)).float()
        assert torch.allclose(found, wanted.expand_as(found), atol=1e-6)
    assert not torch.equal(offsets[0], offsets[1])


def test_slots_are_grouped_by_shape_and_length_and_none_is_lost() -> None:
    long = tiny.sample(3)
    prompt = long.prompts[0]
    twice = type(prompt)(torch.cat([prompt.embeddings] * 2), prompt.pooled)
    long = type(long)("long.png", long.cuts, (), ("long",), (twice,))
    given = Samples((tiny.sample(0), tiny.sample(1, shape=(8, 12)), long))
    found = drawn(given, 2, gradientAccumulation=9).at(0)
    assert [one.clean.shape[0] for one in found] == [2, 1, 2, 1, 2, 1]
    for one in found:
        assert len(set(one.names)) == 1
        assert one.embeddings.shape[1] == (154 if one.names[0] == "long.png" else 77)
    assert sorted(name for one in found for name in one.names) == sorted(["0.png", "1.png", "long.png"] * 3)


def test_class_images_have_slots_an_order_and_a_weight_of_their_own() -> None:
    given = tiny.samples(classes=(tiny.sample(7), tiny.sample(8)))
    alone = drawn(tiny.samples(), 8, gradientAccumulation=4).at(5)[0]
    (both,) = drawn(given, 8, gradientAccumulation=4, priorLossWeight=0.5).at(5)
    assert both.names[:4] == alone.names
    assert torch.equal(both.noise[:4], alone.noise)
    assert set(both.names[4:]) == {"7.png", "8.png"}
    assert both.coefficients.tolist() == [0.25] * 4 + [0.125] * 4
    assert not torch.equal(both.noise[4], both.noise[0])
    first = given.classes[order.sample(0, "d", 2, step=5, slot=0, batch=4, kind=Kind.CLASS)]
    assert both.names[4] == first.name


def test_an_epoch_shows_an_image_as_often_as_it_repeats() -> None:
    found = drawn(Samples((tiny.sample(0, repeats=3), tiny.sample(1))), 8, gradientAccumulation=4).at(7)
    assert sorted(name for one in found for name in one.names) == ["0.png"] * 3 + ["1.png"]


def test_captions_are_dropped_for_the_prompt_without_words() -> None:
    given = tiny.samples()
    (kept,), (dropped,) = (drawn(given, 8, captions={"dropout": share}).at(0) for share in (0.0, 1.0))
    assert given.empty is not None
    assert torch.equal(dropped.embeddings[0], given.empty.embeddings)
    assert dropped.captions == ("", "")
    assert not torch.equal(kept.embeddings, dropped.embeddings)
    with pytest.raises(ValueError, match="has no embeddings"):
        drawn(Samples(given.instances), 8, captions={"dropout": 1.0}).at(0)


def test_batches_packed_for_a_device_are_unpacked_as_they_were() -> None:
    found = drawn(Samples((tiny.sample(0), tiny.sample(1, shape=(8, 12)))), 2, gradientAccumulation=5).at(0)
    packed = batches.pack(found)
    assert (packed.ndim, packed.dtype) == (1, torch.float32)
    for one, other in zip(found, batches.unpack(packed, found), strict=True):
        assert (one.names, one.captions) == (other.names, other.captions)
        for name in batches._TENSORS:
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
