"""Class images that a run makes itself: once per image, by whoever comes first, and the same ever after."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from lorafinetune.contract import layout
from tests.integration.trainer.process import Run, Trainers

ASKED = {"classPrompt": "a photo of a dog", "classImages": 3}


def kept(run: Run) -> dict[str, bytes]:
    """The class images in the bucket: the objects of the conditioning that are PNG files."""
    bodies = {one.key: run.bucket.get(one.key).body for one in run.bucket.walk(layout.CONDITIONING)}
    return {key: body for key, body in bodies.items() if body.startswith(b"\x89PNG")}


def told(run: Run, attempt: int = -1) -> list[dict[str, Any]]:
    return [one for one in run.attempts[attempt].of_type("progress") if one.get("phase") == "Generating"]


def test_class_images_are_made_once(trainers: Trainers, name: str) -> None:
    whole = trainers.run(f"{name}-whole", dataset=ASKED)
    whole.finish()
    images = kept(whole)
    assert len(images) == len(set(images.values())) == 3
    for body in images.values():
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.size == (64, 64)
    assert [(one["done"], one["total"]) for one in told(whole) if "done" in one][-1] == (3, 3)
    assert "3 class images made in " in told(whole)[-1]["message"]

    run = trainers.run(name, dataset=ASKED)
    first = run.start()
    first.wait_for(lambda event: event.get("phase") == "Conditioning" and event["type"] == "progress")
    first.kill()
    first.end()
    # As if it had been interrupted after the second; and what lies there counts, whatever it is.
    some = sorted(kept(run))
    assert len(some) == 3
    run.bucket.delete(some[2:])
    before = run.head.conditioning
    run.finish()
    assert "made in" in told(run)[-1]["message"]
    if before is None:  # the conditioning was not pinned yet
        assert "1 class images made" in told(run)[-1]["message"]
        assert ", 2 were there" in told(run)[-1]["message"]
        assert kept(run) == images
    assert run.file() == whole.file()


def test_a_resume_needs_no_class_image(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, dataset=ASKED)
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill()
    first.end()
    run.bucket.delete(kept(run))
    run.finish()
    assert not told(run)
    assert not kept(run)
