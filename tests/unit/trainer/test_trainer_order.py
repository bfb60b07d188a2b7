"""Order, noise, timesteps, flips and initial weights: pure functions, with values that must never change."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune_trainer.training import order

DIGEST = "d" * 64


def test_values_that_must_never_change() -> None:
    """A run that was begun with one release goes on with the next: these values are part of the format."""
    assert order.permutation(0, DIGEST, 0, 8) == (5, 7, 1, 3, 2, 6, 0, 4)
    assert [order.timestep(7, step, slot, 1000) for step in (0, 1) for slot in (0, 1)] == [424, 467, 320, 457]
    assert [order.flip(7, step, 0) for step in range(6)] == [True, False, True, False, True, True]
    assert order.noise(7, 3, 1, (2,)).tolist() == [0.9299497016117366, 1.7130086372228286]
    assert order.posterior(7, 3, 1, (2,)).tolist() == [-0.7685077636912073, -1.6366916916726746]
    assert order.initial_weight(7, "a.lora_A.weight", (1, 4)).tolist() == [
        [0.36011086777519374, -0.14696159600366276, 0.17938348628376943, -0.15586834192145782]
    ]
    assert [order.cut(7, step, 1, 4) for step in range(8)] == [3, 0, 2, 0, 0, 3, 1, 0]
    assert [order.caption(7, step, 1, 8) for step in range(8)] == [1, 1, 7, 6, 0, 5, 4, 3]
    assert [step for step in range(8) if order.drops(7, step, 1, 0.5)] == [0, 1, 3, 6, 7]
    sha = hashlib.sha256(order.noise(0, 0, 0, (4, 128, 128)).astype(np.float32).tobytes()).hexdigest()
    assert sha == "ac02421bc4c0681bebb7470045fa102118a2f1cd06f60401bc53d1b9e7fbf05f"


def test_class_images_have_draws_of_their_own_that_must_never_change() -> None:
    kind = order.Kind.CLASS
    assert order.permutation(0, DIGEST, 0, 8, kind) == (5, 6, 7, 3, 1, 0, 4, 2)
    assert [order.timestep(7, step, slot, 1000, kind) for step in (0, 1) for slot in (0, 1)] == [985, 333, 813, 196]
    assert [order.flip(7, step, 0, kind) for step in range(6)] == [True, False, False, True, False, True]
    assert [order.cut(7, step, 1, 4, kind) for step in range(8)] == [3, 0, 3, 2, 0, 0, 0, 2]
    assert [order.caption(7, step, 1, 8, kind) for step in range(8)] == [7, 4, 7, 3, 7, 6, 0, 3]
    assert [step for step in range(8) if order.drops(7, step, 1, 0.5, kind)] == [0, 2, 5, 6]
    assert order.noise(7, 3, 1, (2,), kind).tolist() == [-0.023644875654523986, 0.3719778801217604]
    assert order.posterior(7, 3, 1, (2,), kind).tolist() == [0.06880240522070548, 0.07530485572063378]
    assert order.sample(0, DIGEST, 8, step=0, slot=1, batch=2, kind=kind) == 6


def test_shares_and_choices_are_distributed_as_they_should_be() -> None:
    assert not any(order.drops(1, step, 0, 0.0) for step in range(500))
    assert all(order.drops(1, step, 0, 1.0) for step in range(500))
    assert 60 < sum(order.drops(1, step, 0, 0.1) for step in range(1000)) < 140
    for draw, choices in ((order.cut, 4), (order.caption, 8)):
        counts = Counter(draw(1, step, 0, choices) for step in range(2000))
        assert set(counts) == set(range(choices))
        assert min(counts.values()) > 0.8 * 2000 / choices
        assert {draw(1, step, 0, 1) for step in range(50)} == {0}


@given(images=st.integers(1, 50), batch=st.integers(1, 12), seed=st.integers(0, 2**53 - 1))
@settings(max_examples=60, deadline=None)
def test_each_image_is_seen_once_an_epoch_whatever_the_batch(images: int, batch: int, seed: int) -> None:
    steps = -(-images * 3 // batch)
    seen = [
        order.sample(seed, DIGEST, images, step=step, slot=slot, batch=batch)
        for step in range(steps)
        for slot in range(batch)
    ]
    for epoch in range(3):
        assert sorted(seen[epoch * images : (epoch + 1) * images]) == list(range(images))


@given(
    repeats=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    batch=st.integers(1, 5),
    kills=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=12),
    kind=st.sampled_from(order.Kind),
)
@settings(max_examples=60, deadline=None)
def test_each_image_is_shown_as_often_as_it_repeats_whatever_is_killed(
    repeats: list[int], batch: int, kills: list[tuple[int, int]], kind: order.Kind
) -> None:
    """Attempts that do some steps and lose the last of them: what counts is the last time that each was done."""
    shown = [image for image, count in enumerate(repeats) for _ in range(count)]
    steps = -(-len(shown) * 2 // batch)
    counted: dict[int, list[int]] = {}
    step = 0
    for done, lost in [*kills, (steps, 0)]:
        for one in range(step, min(step + done, steps)):
            counted[one] = [
                shown[order.sample(5, DIGEST, len(shown), step=one, slot=slot, batch=batch, kind=kind)]
                for slot in range(batch)
            ]
        step = max(0, min(step + done, steps) - lost)
    seen = [image for one in range(steps) for image in counted[one]]
    for epoch in range(2):
        part = seen[epoch * len(shown) : (epoch + 1) * len(shown)]
        assert [part.count(image) for image in range(len(repeats))] == repeats


def test_no_instance_shares_a_draw_with_a_class_image() -> None:
    draws = {
        (kind, purpose): int(order.stream(3, kind + purpose, 4, 5).random_raw())
        for kind in order.Kind
        for purpose in ("noise", "posterior", "timestep", "flip", "cut", "caption", "drop", f"permutation/{DIGEST}")
    }
    assert len(set(draws.values())) == len(draws) == 16
    assert [order.permutation(0, DIGEST, epoch, 20) for epoch in range(3)] != [
        order.permutation(0, DIGEST, epoch, 20, order.Kind.CLASS) for epoch in range(3)
    ]


def test_each_epoch_has_an_order_of_its_own() -> None:
    seen = [order.sample(0, DIGEST, 20, step=step, slot=0, batch=1) for step in range(60)]
    assert len({tuple(seen[first : first + 20]) for first in (0, 20, 40)}) == 3


def test_epochs_and_seeds_and_data_sets_have_orders_of_their_own() -> None:
    orders = {
        order.permutation(seed, digest, epoch, 20) for seed in (0, 1) for digest in ("a", "b") for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_no_two_places_share_a_draw() -> None:
    places = [(purpose, step, slot) for purpose in ("noise", "x") for step in range(5) for slot in range(5)]
    words = {int(order.stream(3, purpose, step, slot).random_raw()) for purpose, step, slot in places}
    assert len(words) == len(places)


def test_long_draws_do_not_run_into_the_next_place() -> None:
    one, next_ = order.noise(0, 0, 0, (100_000,)), order.noise(0, 0, 1, (1000,))
    assert not set(one.tolist()) & set(next_.tolist())


def test_draws_are_distributed_as_they_should_be() -> None:
    noise = np.concatenate([order.noise(1, step, 0, (1000,)) for step in range(50)])
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    steps = [order.timestep(1, step, 0, 1000) for step in range(4000)]
    assert min(steps) >= 0
    assert max(steps) <= 999
    assert abs(sum(steps) / len(steps) - 499.5) < 20
    flips = Counter(order.flip(1, step, 0) for step in range(2000))
    assert 900 < flips[True] < 1100
    weights = order.initial_weight(1, "name", (16, 100))
    assert float(np.abs(weights).max()) <= 0.1
    assert float(np.abs(weights).max()) > 0.099


@pytest.mark.parametrize("draw", [order.noise, order.posterior])
def test_noise_is_64_bit_and_of_the_asked_shape(draw: object) -> None:
    values = draw(0, 1, 2, (4, 8, 8))  # type: ignore[operator]
    assert values.dtype == np.float64
    assert values.shape == (4, 8, 8)


def test_noise_and_posterior_differ() -> None:
    assert order.noise(0, 0, 0, (4,)).tolist() != order.posterior(0, 0, 0, (4,)).tolist()
