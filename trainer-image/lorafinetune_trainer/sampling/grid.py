"""All validation pictures on one sheet: a row for each prompt, a column for each step."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

COLUMNS: Final = 16
"""Steps that the sheet shows at most."""
EDGE: Final = 256
"""Pixels of a picture on the sheet, at most."""
GAP: Final = 4
LABEL: Final = 20


def columns(steps: Sequence[int], most: int = COLUMNS) -> list[int]:
    """Return at most *most* of *steps*, evenly chosen; the first and the last always."""
    ordered = sorted(set(steps))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def sheet(pictures: Mapping[tuple[int, int], bytes]) -> bytes:
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
    made = Image.new("RGB", (GAP + len(steps) * (edge + GAP), LABEL + rows * (edge + GAP)), "white")
    draw = ImageDraw.Draw(made)
    font = ImageFont.load_default(12)
    for column, step in enumerate(steps):
        left = GAP + column * (edge + GAP)
        draw.text((left, 3), f"step {step}", fill="black", font=font)
        for row in range(rows):
            place = (left, LABEL + row * (edge + GAP))
            body = pictures.get((step, row))
            if body is None:
                draw.rectangle((*place, place[0] + edge - 1, place[1] + edge - 1), fill="lightgrey")
                continue
            with Image.open(io.BytesIO(body)) as picture:
                made.paste(picture.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS), place)
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()
