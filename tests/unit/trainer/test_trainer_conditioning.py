"""Work that runs ahead, in order and bounded; and the memory that samples take."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lorafinetune.contract.training import Training
from lorafinetune_trainer.conditioning import size
from lorafinetune_trainer.conditioning.objects import ahead
from lorafinetune_trainer.conditioning.recipe import Recipe
from lorafinetune_trainer.data import dataset
from lorafinetune_trainer.data.buckets import Size
from lorafinetune_trainer.data.dataset import Image


def test_what_runs_ahead_comes_in_order_and_is_bounded() -> None:
    taken: list[int] = []
    begun = threading.Semaphore(0)

    def items() -> Any:
        for number in range(10):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        begun.release()
        return -number

    with ThreadPoolExecutor(8) as pool:
        found = ahead(pool, work, items(), 3)
        assert next(found) == 0
        for _ in range(3):
            assert begun.acquire(timeout=30)
        assert taken == [0, 1, 2, 3], "three are ready or under way, and no more"
        assert list(found) == [-number for number in range(1, 10)]


def test_what_fails_ahead_is_told_in_its_turn() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = ahead(pool, lambda number: 1 // number, [1, 1, 0, 1], 2)
        assert (next(found), next(found)) == (1, 1)
        with pytest.raises(ZeroDivisionError):
            next(found)


def recipe(**changes: Any) -> Recipe:
    return Recipe(Training.model_validate(changes), "vae", "encoders")


IMAGE = Image("a.png", "1" * 64, "a, b, c, d", Size(1900, 1000))


def test_keys_change_with_what_changes_the_result_and_with_nothing_else() -> None:
    plain = recipe()
    assert plain.latents_key(IMAGE) == recipe(seed=5, steps=7, learningRate=0.3).latents_key(IMAGE)
    other = [
        recipe(resolution=512),
        recipe(aspectBuckets=False),
        recipe(randomFlip=True),
        recipe(randomCrop=True),
        recipe(randomCrop=True, seed=5),
        Recipe(Training(), "another", "encoders"),
    ]
    assert len({one.latents_key(IMAGE) for one in (plain, *other)}) == 7
    assert plain.orders("b, a") == ("b, a",)
    shuffled = recipe(captions={"shuffle": True, "keepTokens": 1}).orders(IMAGE.caption)
    assert len(shuffled) == 6
    assert all(one.startswith("a, ") for one in shuffled)
    keys = {plain.prompts_key(("x",)), plain.prompts_key(("x", "y")), plain.prompts_key(("y", "x"))}
    assert len(keys | {Recipe(Training(), "vae", "others").prompts_key(("x",))}) == 4


def test_the_memory_that_samples_take() -> None:
    data = dataset.of([IMAGE, Image("b.png", "2" * 64, "a, b, c, d", Size(512, 512))], lambda *_: b"")
    wide, square = 2 * 4 * (1408 // 8) * (704 // 8) * 4, 2 * 4 * 128 * 128 * 4
    prompt = (77 * 2048 + 1280) * 4
    assert size.host_bytes(recipe(), data) == wide + square + 2 * prompt, "its caption and the empty one"
    assert size.host_bytes(recipe(lora={"textEncoder": True}), data) == wide + square
    assert size.host_bytes(recipe(randomFlip=True, aspectBuckets=False), data) == 4 * square + 2 * prompt
    assert size.host_bytes(recipe(captions={"shuffle": True}), data) == wide + square + 9 * prompt
    long = dataset.of([Image("c.png", "3" * 64, "x" * 500, Size(512, 512))], lambda *_: b"")
    assert size.host_bytes(recipe(), data, long, ["negative"]) == wide + 2 * square + 6 * prompt - 2 * 1280 * 4


def test_samples_that_do_not_fit_are_refused_with_what_to_do() -> None:
    plain = Training()
    assert size.short(plain, 2**30, 2**30) is None
    lacking = size.short(plain, 2**31, 2**30)
    assert lacking is not None
    assert lacking.code == 71
    assert "the host has 1.0 GiB" in lacking.message
    assert "take about 2.0 GiB: choose nodes" in lacking.message
    assert "randomCrop" not in lacking.message
    shuffled = size.short(Training.model_validate({"captions": {"shuffle": True}, "randomCrop": True}), 2, 1)
    assert shuffled is not None
    assert "training.randomCrop: false" in shuffled.message
    assert "training.captions.shuffle: false" in shuffled.message
