"""Validation pictures: there and right, made once, no part of the training, and never the end of it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from lorafinetune.contract import layout
from lorafinetune.contract.runconfig import Validation
from tests.integration.trainer.process import Run, Trainers

SHOWN = {"prompts": ["a photo of a dog", "a cup"], "everySteps": 2, "inferenceSteps": 2, "guidance": 3.0}


def pictures(run: Run) -> dict[str, bytes]:
    walked = [one.key for one in run.bucket.walk(layout.SAMPLES)]
    return {key.removeprefix(layout.SAMPLES): run.bucket.get(key).body for key in walked}


def rows(run: Run, attempt: int = -1) -> list[tuple[int, int]]:
    """Return steps and done pictures that an attempt told of."""
    told = run.attempts[attempt].of_type("progress")
    return [(one["step"], one["done"]) for one in told if one.get("phase") == "Validating" and "done" in one]


def names(*steps: int) -> list[str]:
    return [f"{step:08}-{number}.png" for step in steps for number in range(2)]


def edge(body: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(body)) as picture:
        return picture.size


def test_pictures_are_made_and_published_and_change_nothing(trainers: Trainers, name: str) -> None:
    # With everything that pictures must take from the weights that would be published.
    training: dict[str, Any] = {"steps": 5, "emaDecay": 0.9, "lora": {"rank": 4, "textEncoder": True}}
    plain = trainers.run(f"{name}-plain", training=training)
    plain.finish()
    run = trainers.run(name, training=training, validation=SHOWN, metrics={"tensorBoard": True})
    run.finish()
    assert not [one for one in run.attempts[0].lines if "could not" in str(one)]
    assert run.file() == plain.file()
    assert run.file("lora_kohya.safetensors") == plain.file("lora_kohya.safetensors")

    made = pictures(run)
    assert sorted(made) == names(2, 4, 5)
    assert len(set(made.values())) == 6, "pictures of other steps and prompts differ"
    assert {edge(body) for body in made.values()} == {(64, 64)}
    assert rows(run) == [(step, done) for step in (2, 4, 5) for done in (0, 1, 2)]
    assert all(run.file(f"samples/{one}") == body for one, body in made.items())
    assert edge(run.file("grid.png")) == (480, 20 + 2 * (20 + 68))


def test_what_is_missing_is_made_after_a_resume_and_no_more(trainers: Trainers, name: str) -> None:
    run = trainers.run(name, validation=SHOWN)
    first = run.start()
    first.wait_for(lambda event: event["step"] == 4 and event.get("done") == 1)
    first.kill()
    first.end()
    wanted = pictures(run)
    assert names(2)[0] in wanted
    gone = names(4)[1]
    run.bucket.delete([f"{layout.SAMPLES}{gone}"])  # it may have been made before the kill
    wanted.pop(gone, None)
    resumed = run.finish()
    begun = next(one for one in resumed.events if one["type"] == "started")
    assert begun["step"] in (2, 4)
    # Pictures that are there are not made again: of step 4 one was left to do, which ever step it went on from.
    assert rows(run) == [(4, 1), (4, 2), (6, 0), (6, 1), (6, 2)]
    found = pictures(run)
    assert sorted(found) == names(2, 4, 6)
    assert {one: found[one] for one in wanted} == wanted
    undisturbed = trainers.run(f"{name}-whole", validation=SHOWN)
    undisturbed.finish()
    assert pictures(undisturbed) == found
    assert undisturbed.file() == run.file()


def test_pictures_that_are_added_later_are_those_of_a_run_that_had_them(trainers: Trainers, name: str) -> None:
    run = trainers.run(name)
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill()
    first.end()
    run.finish(validation=Validation.model_validate(SHOWN))
    whole = trainers.run(f"{name}-whole", validation=SHOWN)
    whole.finish()
    last = {one: body for one, body in pictures(whole).items() if one in names(6)}
    assert len(last) == 2
    assert {one: body for one, body in pictures(run).items() if one in names(6)} == last
    assert run.file() == whole.file()


def test_pictures_that_cannot_be_made_end_nothing(
    trainers: Trainers, name: str, tiny_model: Path, tmp_path: Path
) -> None:
    plain = trainers.run(f"{name}-plain", training={"steps": 5})
    plain.finish()
    run = trainers.run(name, training={"steps": 5}, validation=SHOWN | {"everySteps": 1})
    first = run.start()
    first.wait_for_checkpoint(2)
    first.kill()
    first.end()
    run.bucket.delete([one.key for one in run.bucket.walk(layout.SAMPLES)])
    bare = tmp_path / "without-vae"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("vae"))
    second = run.finish(base_model=run.config.base_model.model_copy(update={"source": str(bare)}))
    told = [one["message"] for one in second.of_type("progress") if "could not" in one.get("message", "")]
    assert len(told) == 3
    assert all("vae" in one for one in told)
    assert "makes no more pictures" in told[-1]
    assert run.file() == plain.file()
    assert not pictures(run)
    assert second.of_type("progress")[-1]["phase"] == "Exporting"
