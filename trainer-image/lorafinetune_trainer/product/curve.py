"""The loss over the steps, drawn as an SVG picture for the model card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 32
MAX_POINTS: Final = 400
"""More points than pixels are of no use: neighbours become their mean."""
SMOOTHING: Final = 0.9
"""Share of the past in the bold line: single steps of a LoRA say little."""
_TICKS: Final = 4

Losses = Sequence[tuple[int, float]]
"""(step, mean loss of the step)."""


def draw(losses: Losses) -> bytes | None:
    """Return the picture, or None where fewer than two steps have a finite loss."""
    known = sorted({step: loss for step, loss in losses if math.isfinite(loss)}.items())
    if len(known) < 2:
        return None
    points = _thinned(known)
    smooth = _smoothed(points)
    first, last = points[0][0], points[-1][0]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    span = (high - low) or max(abs(high), 1.0)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - low) / span * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#555">',
        "<title>Loss over the steps</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number in range(_TICKS + 1):
        loss, step = low + span * number / _TICKS, round(first + (last - first) * number / _TICKS)
        x, y = place((step, loss))
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{loss:.3g}</text>')
        anchor = "end" if number == _TICKS else "middle"
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{step}</text>')
    for line, colour, width in ((points, "#b8cbe6", 1), (smooth, "#1f5fa8", 2)):
        path = " ".join(f"{x},{y}" for x, y in map(place, line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{path}"/>')
    return "\n".join([*parts, "</svg>\n"]).encode()


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found, mean, weight = [], 0.0, 0.0
    for step, loss in points:
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1.0 - SMOOTHING)
        found.append((step, mean / weight))
    return found
