"""The sheet of validation pictures: prompts of any script over their rows, the same bytes each time."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lorafinetune_trainer.sampling import grid


def picture(colour: str, edge: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (edge, edge), colour).save(file, "PNG")
    return file.getvalue()


PICTURES = {(step, row): picture(colour) for step in (10, 20) for row, colour in enumerate(("red", "blue"))}


def opened(body: bytes) -> Image.Image:
    with Image.open(io.BytesIO(body)) as found:
        return found.convert("RGB")


def test_each_prompt_stands_over_its_row() -> None:
    made = grid.sheet(PICTURES, ["a dog", "a cat"])
    assert made == grid.sheet(PICTURES, ["a dog", "a cat"])
    found = opened(made)
    assert found.size == (grid.LEAST_WIDTH, 20 + 2 * (20 + 64 + 4))
    for row, colour in ((0, (255, 0, 0)), (1, (0, 0, 255))):
        top = 40 + row * 88
        assert {found.getpixel((left, top + y)) for left in (4, 67, 72, 135) for y in (0, 63)} == {colour}
        line = found.crop((0, top - 20, found.width, top))
        assert line.getbbox() is not None
        assert line.convert("L").getextrema()[0] < 80, "there is no prompt"
    assert grid.sheet(PICTURES, ["a dog", "a dog"]) != made


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n\t ",
        "two\nlines",
        "\x00\x1b[31m\u202e",
        "写真 😀 שלום",
        "\udcff",
        "e\u0301" * 50,
        "w" * 5000,
        "日" * 5000,
    ],
)
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    made = grid.sheet(PICTURES, [prompt, "a cat"])
    assert opened(made).size == opened(grid.sheet(PICTURES, ["a dog", "a cat"])).size
    assert made == grid.sheet(PICTURES, [prompt, "a cat"])


def test_what_does_not_fit_is_cut_where_it_just_does() -> None:
    assert grid.fitted("a dog on a hill", lambda text: len(text) <= 15) == "a dog on a hill"
    assert grid.fitted("a dog on a hill", lambda text: len(text) <= 10) == "a dog o..."
    assert grid.fitted("a dog", lambda text: False) == "..."


def test_pictures_without_prompts_and_missing_ones() -> None:
    found = opened(grid.sheet({(1, 0): picture("red"), (2, 1): picture("blue")}, []))
    assert found.getpixel((4 + 68, 40)) == found.getpixel((4, 40 + 88)) == (211, 211, 211)
    with pytest.raises(ValueError, match="no picture"):
        grid.sheet({}, ["a dog"])
