"""Class images that a run makes itself: once per image, by whoever comes first, and the same ever after."""

from __future__ import annotations

import io
import time
from typing import Any

from PIL import Image

from lorafinetune.contract import layout
from lorafinetune.contract.manifest import Manifest
from tests.integration.trainer.process import LIMIT, Run, Trainers

ASKED = {"classPrompt": "a photo of a dog", "classImages": 2}


def kept(run: Run) -> dict[str, bytes]:
    """The class images in the bucket: the objects of the conditioning that are PNG files."""
    bodies = {one.key: run.bucket.get(one.key).body for one in run.bucket.walk(layout.CONDITIONING)}
    return {key: body for key, body in bodies.items() if body.startswith(b"\x89PNG")}


def told(run: Run, attempt: int = -1) -> list[dict[str, Any]]:
    return [one for one in run.attempts[attempt].of_type("progress") if one.get("phase") == "Generating"]


def killed_with_an_image(run: Run) -> dict[str, bytes]:
    """Start an attempt, kill it once a class image is in the bucket, and return those that are."""
    attempt = run.start()
    deadline = time.monotonic() + LIMIT
    while not kept(run):
        assert attempt.process.is_alive(), attempt.tail()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    attempt.kill()
    attempt.end()
    return kept(run)


def test_class_images_are_made_once(trainers: Trainers, name: str) -> None:
    """Killed after the first image, and again in the training, when the images themselves are no longer needed."""
    run = trainers.run(name, dataset=ASKED, training={"steps": 3})
    begun = killed_with_an_image(run)
    second = run.start()
    second.wait_for_checkpoint(2)
    second.kill()
    second.end()
    images = kept(run)
    assert {key: images[key] for key in begun} == begun
    assert len(images) == len(set(images.values())) == 2
    for body in images.values():
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.size == (64, 64)
    *counts, last = told(run)
    assert [(one["done"], one["total"]) for one in counts if "done" in one][-1] == (2, 2)
    assert last["message"].startswith(f"{2 - len(begun)} class images made in ")
    assert last["message"].endswith(f", {len(begun)} were there")
    gone = min(images)
    run.bucket.delete([gone])
    run.finish()
    assert not told(run)
    assert kept(run).keys() == images.keys() - {gone}

    whole = trainers.run(f"{name}-whole", dataset={**ASKED, "keepClassImages": True}, training={"steps": 3})
    whole.finish()
    assert kept(whole) == images
    assert run.file() == whole.file()
    # Published only where that was asked for; a next run takes them for its own.
    published = [[one.key for one in each.bucket.walk("artifacts/") if "/class/" in one.key] for each in (run, whole)]
    assert published == [[], [f"artifacts/1/class/class-{number:05}.png" for number in range(2)]]
    assert sorted(whole.bucket.get(key).body for key in published[1]) == sorted(images.values())
    manifest = Manifest.model_validate_json(whole.file("manifest.json"))
    assert {"class/class-00000.png", "class/class-00001.png"} <= {file.name for file in manifest.files}
    place = whole.bucket.uri("artifacts/1/class/")
    again = trainers.run(
        f"{name}-again", dataset={"classSource": place, "classPrompt": ASKED["classPrompt"]}, training={"steps": 3}
    )
    again.finish()
    assert not told(again)
    assert any("2 class images" in str(one.get("message")) for one in again.attempts[-1].of_type("progress"))


def test_a_class_image_that_was_damaged_is_made_again(trainers: Trainers, name: str) -> None:
    """A byte of it changes between two attempts, before anything is pinned: neither believed nor the user's fault."""
    run = trainers.run(name, dataset=ASKED, training={"steps": 2})
    begun = killed_with_an_image(run)
    for key, body in begun.items():
        run.bucket.put(key, body[:100] + bytes([body[100] ^ 1]) + body[101:])
    run.finish()
    assert {key: kept(run)[key] for key in begun} == begun
