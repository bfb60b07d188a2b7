"""Figures as a picture: an SVG that a browser shows, written by hand so that nothing has to be installed for it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from lorafinetune.simulate.figures import Figures

WIDTH: Final = 900
HEIGHT: Final = 420
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by people who see few colours, too."""
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 60, 40, 430, 310
BARS_LEFT, BARS_WIDTH = 560, 300


def chart(found: Sequence[Figures], *, deadline: float | None) -> str:
    """Return the SVG: which part of the runs was done after which time, and what all of them cost."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_times(found, deadline),
        *_costs(found),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _times(found: Sequence[Figures], deadline: float | None) -> list[str]:
    last = max((one.finish_times[-1] for one in found if one.finish_times), default=0.0)
    span = max(last, deadline or 0.0, 1.0) * 1.05
    parts = [_text(LEFT, TOP - 15, "runs that are done, by hours since apply", "start")]
    for tenth in range(0, 11, 2):
        y = TOP + PLOT_HEIGHT * (1 - tenth / 10)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + PLOT_WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{10 * tenth}%", "end"))
    for sixth in range(7):
        x = LEFT + PLOT_WIDTH * sixth / 6
        parts.append(_text(x, TOP + PLOT_HEIGHT + 18, f"{span * sixth / 6 / 3600:.1f}", "middle"))
    if deadline is not None:
        x = LEFT + PLOT_WIDTH * deadline / span
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + PLOT_HEIGHT}" stroke="#444" stroke-dasharray="4"/>'
        )
        parts.append(_text(x - 4, TOP + 12, "deadline", "end"))
    for index, one in enumerate(found):
        points, done = [(0.0, 0)], 0
        for done, seconds in enumerate(one.finish_times, start=1):
            points += [(seconds, done - 1), (seconds, done)]
        points.append((span, done))
        path = " ".join(
            f"{LEFT + PLOT_WIDTH * seconds / span:.1f},{TOP + PLOT_HEIGHT * (1 - count / one.runs):.1f}"
            for seconds, count in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="2"/>')
    return parts


def _costs(found: Sequence[Figures]) -> list[str]:
    dearest = max((max(one.cost, one.on_demand_cost or 0.0) for one in found), default=0.0) or 1.0
    parts = [_text(BARS_LEFT, TOP - 15, "cost of all runs (outline: on demand, undisturbed)", "start")]
    for index, one in enumerate(found):
        y = TOP + index * PLOT_HEIGHT / max(1, len(found))
        saved = f", {round(100 * one.saved)}% saved" if one.saved is not None else ""
        words = f"{one.policy}: {one.cost:.2f}{saved}, {one.finished} of {one.runs} done"
        parts.append(_text(BARS_LEFT, y + 12, words, "start"))
        paid = BARS_WIDTH * one.cost / dearest
        parts.append(f'<rect x="{BARS_LEFT}" y="{y + 18:.1f}" width="{paid:.1f}" height="18" fill="{_colour(index)}"/>')
        if one.on_demand_cost is not None:
            usual = BARS_WIDTH * one.on_demand_cost / dearest
            parts.append(
                f'<rect x="{BARS_LEFT}" y="{y + 18:.1f}" width="{usual:.1f}" height="18" fill="none" stroke="#444"/>'
            )
    return parts


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
