"""All validation pictures on one sheet: a row for each prompt, which stands over it, a column for each step."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Final

COLUMNS: Final = 16
"""Steps that the sheet shows at most."""
EDGE: Final = 256
"""Pixels of a picture on the sheet, at most."""
GAP: Final = 4
LABEL: Final = 20
"""Pixels of a line of text."""
LEAST_WIDTH: Final = 480
"""Of the sheet, in pixels, so that prompts can be read over few and small pictures."""
FONT: Final = 12
"""Its size. Pillow's own font, which every machine has; it knows Latin letters, and puts boxes for all others."""


def columns(steps: Sequence[int], most: int = COLUMNS) -> list[int]:
    """Return at most *most* of *steps*, evenly chosen; the first and the last always."""
    ordered = sorted(set(steps))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def sheet(pictures: Mapping[tuple[int, int], bytes], prompts: Sequence[str]) -> bytes:
    """Return the sheet as PNG, of *pictures* by step and number of the prompt; one that is missing stays grey.

    ValueError where there is none.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not pictures:
        raise ValueError("there is no picture")
    steps = columns([step for step, _ in pictures])
    rows = 1 + max(number for _, number in pictures)
    with Image.open(io.BytesIO(next(iter(pictures.values())))) as first:
        edge = min(EDGE, first.width)
    width = max(LEAST_WIDTH, GAP + len(steps) * (edge + GAP))
    made = Image.new("RGB", (width, LABEL + rows * (LABEL + edge + GAP)), "white")
    draw = ImageDraw.Draw(made)
    font = ImageFont.load_default(FONT)
    for row, prompt in enumerate(prompts[:rows]):
        words = fitted(prompt, lambda text: font.getlength(text) <= width - 2 * GAP)
        draw.text((GAP, LABEL + row * (LABEL + edge + GAP) + 3), words, fill="black", font=font)
    for column, step in enumerate(steps):
        left = GAP + column * (edge + GAP)
        draw.text((left, 3), f"step {step}", fill="black", font=font)
        for row in range(rows):
            place = (left, 2 * LABEL + row * (LABEL + edge + GAP))
            body = pictures.get((step, row))
            if body is None:
                draw.rectangle((*place, place[0] + edge - 1, place[1] + edge - 1), fill="lightgrey")
                continue
            with Image.open(io.BytesIO(body)) as picture:
                made.paste(picture.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS), place)
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def fitted(prompt: str, fits: Callable[[str], bool]) -> str:
    """Return *prompt* on one line, without what no font can draw, and cut where it does not fit."""
    text = " ".join(prompt.split()).encode(errors="replace").decode()
    text = "".join(one if one.isprintable() else "?" for one in text)
    if fits(text):
        return text
    least, most = 0, len(text)
    while least < most:  # the longest beginning that fits
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(f"{text[:middle]}...") else (least, middle - 1)
    return f"{text[:least]}..."
