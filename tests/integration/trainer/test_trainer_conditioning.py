"""Conditioning by real encoders into a real bucket: what is computed, put, adopted, refused and loaded again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from lorafinetune.contract import layout
from lorafinetune.contract.head import Fenced
from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune.contract.training import Training
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base.files import Folder
from lorafinetune_trainer.data import dataset as datasets
from tests.integration.trainer.process import in_preloaded
from tests.integration.trainer.s3 import Access

EVERYTHING = {
    "resolution": 256,
    "randomCrop": True,
    "randomFlip": True,
    "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.1},
}
VALIDATION = ["a cat", "blurred"]


@dataclass
class Counts:
    """How often what was done."""

    vae: int = 0
    prompts: int = 0
    loads: list[str] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)


class Models(NamedTuple):
    """Where the encoders lie."""

    sdxl: Path
    vae: Path


def folder_of(place: Path) -> Folder:
    return Folder(place, tuple(sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())))


@pytest.fixture
def models(tiny_model: Path, quick_vae: Path) -> Models:
    return Models(tiny_model, quick_vae)


def condition(
    bucket: Bucket,
    models: Models,
    photos: Path,
    training: dict[str, Any],
    *,
    before_put: Callable[[], None] = lambda: None,
) -> tuple[Any, Counts]:
    """Prepare with the tiny model's real encoders; return the entry and what was done for it."""
    import torch

    from lorafinetune_trainer.base.files import Part
    from lorafinetune_trainer.conditioning import latents, pinned, prompts
    from lorafinetune_trainer.conditioning.recipe import Recipe

    torch.set_num_threads(1)
    counts = Counts()
    files = folder_of(models.sdxl)
    source = Source(source=str(photos), instance_prompt="sks dog, snow, wood, sky", class_prompt="a dog")
    data = datasets.scan(datasets.instances(source), lambda _: bucket)
    asked = datasets.classes(source.model_copy(update={"class_source": str(photos / "10_a class")}))
    assert asked is not None
    settings = Training.model_validate(training)

    def encode_cuts() -> Any:
        counts.loads.append("vae")
        encode = latents.encoder(Part(folder_of(models.vae), ""), torch.device("cpu"), flips=settings.random_flip)

        def counted(given: Any) -> Any:
            counts.vae += 1
            return encode(given)

        return counted

    def encode_prompts() -> Any:
        counts.loads.append("encoders")
        encode = prompts.encoder(prompts.load(files, torch.device("cpu")))

        def counted(orders: tuple[str, ...]) -> Any:
            counts.prompts += len(orders)
            return encode(orders)

        return counted

    entry = pinned.prepare(
        bucket,
        data,
        Recipe(settings, "vae", "encoders"),
        classes=datasets.scan(asked, lambda _: bucket),
        validation=VALIDATION,
        encode_cuts=encode_cuts,
        encode_prompts=encode_prompts,
        run_uid="uid",
        attempt=1,
        before_put=before_put,
        progress=lambda done, total: counts.told.append((done, total)),
    )
    return entry, counts


@pytest.fixture(scope="module")
def pictures(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with a folder of repeats and a long caption."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "10_a class").mkdir()
    for name in ("cat", "rocket"):
        shutil.copy(photos / f"{name}.png", folder)
    shutil.copy(photos / "coffee.png", folder / "10_a class")
    (folder / "rocket.txt").write_text("sks dog, " + "a dog in the snow and on the timber " * 9 + ", night")
    return folder


def place(s3: Access, name: str) -> Bucket:
    return s3.bucket(f"s3://loras/{name}/")


def _everything(s3: Access, name: str, models: Models, pictures: Path) -> None:
    import torch

    from lorafinetune_trainer.base.files import Part
    from lorafinetune_trainer.conditioning import latents, pinned, prompts
    from lorafinetune_trainer.data import buckets, captions

    bucket = place(s3, name)
    entry, counts = condition(bucket, models, pictures, EVERYTHING)
    assert counts.loads == ["encoders", "vae"]
    assert counts.told[-1] == (counts.told[-1][1],) * 2
    assert [done for done, _ in counts.told] == list(range(1, counts.told[-1][1] + 1))
    samples = pinned.load(bucket, entry)
    by_name = {one.name: one for one in samples.instances}
    assert set(by_name) == {"cat.png", "rocket.png", "10_a class/coffee.png"}
    assert [one.name for one in samples.classes] == ["coffee.png"]
    assert {name: one.repeats for name, one in by_name.items()} == {
        "cat.png": 1, "rocket.png": 1, "10_a class/coffee.png": 10
    }  # fmt: skip

    # Shapes, cuts and flips: each is what the VAE makes of just those pixels.
    files = folder_of(models.sdxl)
    data = datasets.scan(datasets.instances(Source(source=str(pictures), instance_prompt="x")), lambda _: bucket)
    cat = by_name["cat.png"]
    image = next(one for one in data.images if one.name == "cat.png")
    frame = buckets.frame(image.size, 256, square=False, crop_key=image.sha256)
    assert frame.target == (320, 192)
    assert len(cat.cuts) == len(cat.flipped) == len(frame.cuts) > 1
    assert tuple(cat.cuts[0].mean.shape) == (4, 192 // 8, 320 // 8)
    assert cat.cuts[1].time_ids.tolist() == [80, 120, frame.cuts[1].top, frame.cuts[1].left, 192, 320]
    spare = frame.scaled.width - 320
    assert cat.flipped[1].time_ids.tolist() == [80, 120, frame.cuts[1].top, spare - frame.cuts[1].left, 192, 320]
    vae = latents.encoder(Part(folder_of(models.vae), ""), torch.device("cpu"), flips=False)
    straight = latents.cuts(data, image, frame)
    for kept, turn in ((cat.cuts, slice(None)), (cat.flipped, slice(None, None, -1))):
        pixels = tuple(np.ascontiguousarray(one[:, turn]) for one in straight.pixels)
        alone, _ = latents.kept(vae(latents.Cuts("cat.png", frame, pixels)))
        for one, other in zip(kept, alone, strict=True):
            assert torch.equal(one.mean, other.mean)
            assert torch.equal(one.std, other.std)

    # Captions: all orders, each with the embeddings of just those words.
    encoders = prompts.load(files, torch.device("cpu"))
    assert cat.captions == captions.orders(0, "sks dog, snow, wood, sky", 1)
    assert len(cat.prompts) == len(cat.captions) == 6
    for words, kept_prompt in zip(cat.captions, cat.prompts, strict=True):
        alone_prompt, pooled = prompts.embed(encoders, [words])
        assert torch.equal(kept_prompt.embeddings, alone_prompt[0])
        assert torch.equal(kept_prompt.pooled, pooled[0])
    assert by_name["10_a class/coffee.png"].captions == ("a class",)
    assert samples.classes[0].captions == ("a dog",)
    assert (
        by_name["rocket.png"].prompts[0].embeddings.shape[0]
        == 77 * prompts.windows(encoders, by_name["rocket.png"].captions[0])
        > 77
    )
    for words, found in (("", samples.empty), *zip(VALIDATION, samples.validation, strict=True)):
        assert found is not None
        assert torch.equal(found.embeddings, prompts.embed(encoders, [words])[0][0])
    assert samples.validation_words == tuple(VALIDATION)

    # Again: nothing is loaded, and the same is pinned.
    again, counts = condition(bucket, models, pictures, EVERYTHING)
    assert (again, counts.loads, counts.vae, counts.prompts) == (entry, [], 0, 0)
    # An attempt that was killed half-way leaves what the next need not compute.
    keys = sorted(one.key for one in bucket.walk(layout.CONDITIONING) if not one.key.endswith(".json"))
    bucket.delete(keys[::2])
    half, counts = condition(bucket, models, pictures, EVERYTHING)
    assert half == entry
    assert counts.vae + counts.prompts > 0
    # Nor is it believed what that attempt left: a byte that has changed since is computed again.
    for key in keys:
        body = bytearray(bucket.get(key).body)
        body[-1] ^= 1
        bucket.put(key, bytes(body))
    mended, counts = condition(bucket, models, pictures, EVERYTHING)
    assert mended == entry
    assert (counts.loads, counts.told[-1]) == (["encoders", "vae"], (len(keys) - 1, len(keys) - 1))
    pinned.load(bucket, entry)
    # Damage is no conditioning.
    bucket.put(keys[0], b"damaged")
    with pytest.raises(errors.NotVerified):
        pinned.load(bucket, entry)


def test_everything_that_samples_have(s3: Access, models: Models, pictures: Path, name: str) -> None:
    in_preloaded(_everything, s3, name, models, pictures)


def _text_encoders_trained(s3: Access, name: str, models: Models, pictures: Path) -> None:
    from lorafinetune_trainer.conditioning import pinned

    bucket = place(s3, name)
    training = {**EVERYTHING, "resolution": 64, "lora": {"textEncoder": True}}
    entry, counts = condition(bucket, models, pictures, training)
    assert counts.loads == ["vae"]
    samples = pinned.load(bucket, entry)
    assert all(not one.prompts and one.captions for one in (*samples.instances, *samples.classes))
    assert (samples.empty, samples.validation) == (None, ())


def test_no_prompts_are_kept_where_the_text_encoders_are_trained(
    s3: Access, models: Models, pictures: Path, name: str
) -> None:
    in_preloaded(_text_encoders_trained, s3, name, models, pictures)


def _fenced(s3: Access, name: str, models: Models, pictures: Path) -> None:
    asked: list[None] = []

    def before_put() -> None:
        asked.append(None)
        if len(asked) > 3:
            raise Fenced("another attempt holds the head")

    bucket = place(s3, name)
    with pytest.raises(Fenced):
        condition(bucket, models, pictures, {"resolution": 64}, before_put=before_put)
    assert len(list(bucket.walk())) == 3


def test_nothing_is_put_by_an_attempt_that_is_fenced(s3: Access, models: Models, pictures: Path, name: str) -> None:
    in_preloaded(_fenced, s3, name, models, pictures)
