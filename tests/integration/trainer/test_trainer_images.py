"""Data sets as people have them, through a whole attempt: what is refused, what is remarked, what may change later."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorafinetune.contract.runconfig import Dataset as Source
from lorafinetune_trainer.data import dataset as datasets
from lorafinetune_trainer.failure import Failure
from tests.integration.trainer.process import Trainers
from tests.integration.trainer.s3 import Access
from tests.unit.trainer.image_files import fill, picture

MOVING = picture(kind="GIF", size=(64, 64), save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])
BAD: dict[str, tuple[dict[str, bytes | str], dict[str, str], str, str]] = {
    "captions only": ({"a.txt": "a dog"}, {}, "EmptyDataset", "captions without images: a.txt"),
    "cut off": ({"a.jpg": picture(kind="JPEG", size=(400, 400))[:-200]}, {}, "TruncatedImage", "a.jpg is cut off"),
    "huge": ({"a.png": picture(size=(12_000, 12_000), mode="1")}, {}, "HugeImage", "a.png has 12000 x 12000"),
    "a strip": ({"a.png": picture(size=(32, 700_000), mode="1")}, {}, "LongImage", "a.png has 32 x 700000"),
    "tiny": ({"a.png": picture(size=(16, 16))}, {}, "TinyImage", "a.png has 16 x 16 pixels"),
    "moving": ({"a.gif": MOVING}, {}, "AnimatedImage", "a.gif has 2 frames"),
    "no UTF-8": ({"a.png": picture(), "a.txt": "café".encode("latin-1")}, {}, "InvalidCaption", "a.txt is not UTF-8"),
    "two at once": ({"a.png": b"no", "b.png": picture(size=(9, 9))}, {}, "UndecodableImage", "b.png has 9 x 9"),
    "no class prompt": (
        {"a.png": picture(), "class/b.png": picture()},
        {"classSource": "class"},
        "MissingClassPrompt",
        "dataset.classPrompt",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_trained_on_is_refused_by_name(what: str, trainers: Trainers, tmp_path: Path, name: str) -> None:
    files, dataset, reason, words = BAD[what]
    fill(tmp_path, files)
    places = {field: str(tmp_path / place) for field, place in dataset.items()}
    run = trainers.run(name, dataset={"source": str(tmp_path), **places})
    attempt = run.start()
    assert attempt.end() == 78, attempt.tail()
    assert attempt.last_words.reason == reason
    assert attempt.last_words.phase == "Scanning"
    assert words in attempt.last_words.message
    notes = [line["note"] for line in attempt.lines if "note" in line]
    assert len(notes) == (2 if what == "two at once" else 0)
    assert not any(event.get("phase") == "Downloading" for event in attempt.events)
    assert (attempt.folder / "termination").stat().st_size < 4096


def test_more_samples_than_the_host_holds_are_refused_before_anything_is_fetched(
    trainers: Trainers, tmp_path: Path, name: str
) -> None:
    """Each caption takes 18 windows in 8 orders: 90 MB."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = there // 80_000_000 + 1
    if count > datasets.MAX_IMAGES:
        pytest.skip("this machine holds any data set")
    (tmp_path / "0.png").write_bytes(picture())
    for number in range(count):
        if number:
            os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
        words = ", ".join(f"{part:05}" + " a dog on timber in the snow" for part in range(114))
        (tmp_path / f"{number}.txt").write_text(f"{number:05}, {words}")
    run = trainers.run(name, dataset={"source": str(tmp_path)}, training={"captions": {"shuffle": True}})
    attempt = run.start()
    assert attempt.end() == 71, attempt.tail()
    assert attempt.last_words.reason == "OutOfMemory"
    assert attempt.last_words.phase == "Scanning"
    assert "latents and embeddings of the images alone take about" in attempt.last_words.message


def photographs(photos: Path, folder: Path) -> Path:
    """All modes and shapes, repeats, orphans and twins: everything that is odd and can be trained on."""
    folder.mkdir()
    cat, rocket = (
        Image.open(photos / f"{one}.png").resize(size) for one, size in (("cat", (300, 180)), ("rocket", (200, 200)))
    )
    cat.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(cat.convert("L"), dtype=np.uint16) * 257).save(folder / "deep.png")
    cat.crop((0, 0, 300, 100)).save(folder / "long.webp")
    (folder / "3_sks dog").mkdir()
    for one in ("a", "b"):
        rocket.save(folder / "3_sks dog" / f"{one}.png")
    (folder / "3_sks dog" / "b.txt").write_text("sks dog, at night, in the snow")
    (folder / "lonely.txt").write_text("nothing")
    return folder


def test_what_is_odd_is_remarked_and_trained_on(
    trainers: Trainers, photos: Path, quick_vae: Path, tmp_path: Path, name: str
) -> None:
    folder = photographs(photos, tmp_path / "photographs")
    changes: dict[str, Any] = {
        "dataset": {"source": str(folder)},
        "baseModel": {"vae": str(quick_vae)},
        "training": {"resolution": 192, "randomCrop": True, "captions": {"shuffle": True, "dropout": 0.3}},
    }
    undisturbed = trainers.run(f"{name}-undisturbed", **changes)
    attempt = undisturbed.finish()
    expected = (
        "the same picture lies there more than once, and is shown as often: 3_sks dog/a.png = 3_sks dog/b.png",
        "captions without an image: lonely.txt",
        "1 of 5 images scaled up, because smaller than what it is trained at: long.webp by 1.3",
        "1 of 5 images cut by more than 25% of the area: long.webp by 33%",
    )
    (scanned,) = [event for event in attempt.events if event.get("phase") == "Scanning" and event["message"]]
    assert scanned["message"] == "; ".join(["5 images in 2 shapes, shown 9 times an epoch", *expected])
    assert not [line for line in attempt.lines if str(line.get("note")) in expected], "they are told once"

    # Renamed and moved between attempts: only contents, captions and repeats count.
    run = trainers.run(name, **changes)
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill(signal.SIGKILL)
    first.end()
    (folder / "cmyk.jpg").rename(folder / "zebra.jpg")
    (folder / "3_sks dog").rename(folder / "3_dogs")
    (folder / "3_dogs" / "a.txt").write_text("sks dog")
    (folder / "lonely.txt").unlink()
    run.finish()
    assert run.file() == undisturbed.file()


def test_an_image_in_a_bucket_that_changes_or_vanishes_while_it_is_read(s3: Access, name: str) -> None:
    bucket = s3.bucket(f"s3://loras/{name}/")
    for number in range(3):
        bucket.put(f"{number}.png", picture((number, 0, 0)))
    asked = datasets.instances(Source(source=f"s3://loras/{name}/", instance_prompt="a dog"))
    found = datasets.scan(asked, lambda location: s3.bucket(str(location)))
    first, second, third = found.images
    assert found.decode(first, lambda one: one.size) == (40, 34)
    bucket.put(second.name, picture("blue"))
    bucket.delete([third.name])
    for image, words in ((second, "changed"), (third, "vanished")):
        with pytest.raises(Failure, match=f"{image.name} {words}") as caught:
            found.decode(image, str)
        assert (caught.value.code, caught.value.reason) == (78, "DatasetChanged")


def test_another_content_is_refused_and_nothing_is_lost(
    trainers: Trainers, photos: Path, tmp_path: Path, name: str
) -> None:
    folder, classes = tmp_path / "photos", tmp_path / "classes"
    shutil.copytree(photos, folder)
    classes.mkdir()
    shutil.copy(photos / "rocket.png", classes)
    dataset = {"source": str(folder), "classSource": str(classes), "classPrompt": "a dog"}
    run = trainers.run(name, dataset=dataset)
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill(signal.SIGKILL)
    first.end()
    held = run.head

    def refused(words: str) -> None:
        attempt = run.start()
        assert attempt.end() == 78, attempt.tail()
        assert attempt.last_words.reason == "PlanMismatch"
        assert words in attempt.last_words.message
        assert run.head.checkpoints == held.checkpoints

    (classes / "rocket.txt").write_text("another dog")
    refused("the images or captions of dataset.classSource have changed")
    (classes / "rocket.txt").unlink()
    (folder / "cat.png").rename(folder / "cat.away")
    refused("the images or captions of dataset.source have changed")
    (folder / "cat.away").rename(folder / "cat.png")
    run.finish()
