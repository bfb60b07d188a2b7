"""What was measured of the trainer, as rows of a Markdown table and as JSON. Pure."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from tests.bench.table import NOTHING, line, short

HEAD = ("measure", "ours", "beside", "what stands beside", "ratio", "target", "met")
WIDTH = 118
"""Of the lines of a document's text."""


class Verdict(StrEnum):
    """What can be said of a target."""

    MET = "yes"
    MISSED = "no"
    NOT_SHOWN = "not shown"
    """The measured values lie on both sides of it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure, and what it is compared with."""

    measure: str
    ours: float | None
    """None where it could not be measured here."""
    unit: str = ""
    beside: float | None = None
    what: str = ""
    """What *beside* is."""
    target: float | None = None
    """The ratio is to be no more than this; without *what*, or *by_value*, the value itself."""
    note: str = ""
    by_value: bool = False
    spread: tuple[float, float] | None = None
    """Between which what is judged was found, where it was measured more than once."""

    @classmethod
    def of_pairs(cls, measure: str, pairs: Sequence[tuple[float, float]], unit: str, what: str, **more: Any) -> Self:
        """Return the figure of pairs (ours, beside) that were measured by turns: medians, and the ratios' spread."""
        ours, beside = ([pair[side] for pair in pairs] for side in (0, 1))
        ratios = [one / other for one, other in pairs if other]
        spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
        return cls(measure, statistics.median(ours), unit, statistics.median(beside), what, spread=spread, **more)

    @property
    def ratio(self) -> float | None:
        """Ours over what stands beside it."""
        return self.ours / self.beside if self.ours is not None and self.beside else None

    @property
    def met(self) -> Verdict | None:
        """Whether the target was met, by all that was found; None where there is none, or nothing to judge by."""
        found = self.ratio if self._by_ratio else self.ours
        if found is None or self.target is None:
            return None
        low, high = self.spread or (found, found)
        if high <= self.target:
            return Verdict.MET
        return Verdict.MISSED if low > self.target else Verdict.NOT_SHOWN

    @property
    def _by_ratio(self) -> bool:
        return bool(self.what) and not self.by_value

    def cells(self) -> tuple[str, ...]:
        """The row's cells, without their bars."""
        x = "x" if self._by_ratio else f" {self.unit}" if self.unit and self.by_value else ""
        target = f"<= {short(self.target)}{x}" if self.target is not None else NOTHING
        spread = f" ({short(self.spread[0])} to {short(self.spread[1])})" if self.spread is not None else ""
        ratio = f"{short(self.ratio)}x" if self.ratio is not None and not self.by_value else NOTHING
        return (
            self.measure,
            _said(self.ours, self.unit) + (spread if not self._by_ratio else ""),
            _said(self.beside, self.unit),
            self.what or NOTHING,
            ratio + (spread if self._by_ratio else ""),
            target,
            f"**{self.met}**" if self.met in (Verdict.MISSED, Verdict.NOT_SHOWN) else self.met or NOTHING,
        )


def render(figures: Sequence[Figure]) -> str:
    """Return the table, and below it a list of the notes, as they can stand in a document."""
    rows = [line(HEAD), "|---|---:|---:|---|---:|---:|---|", *(line(one.cells()) for one in figures)]
    notes = (f"- {one.measure}: {one.note}" for one in figures if one.note)
    return "\n".join([*rows, "", *(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes)])


def to_json(figures: Sequence[Figure], machine: str) -> dict[str, Any]:
    """Return all that the table says, for programs."""
    rows = [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in figures]
    lists = {
        name: [one.measure for one in figures if one.met is verdict]
        for name, verdict in (("missed", Verdict.MISSED), ("not shown", Verdict.NOT_SHOWN))
    }
    return {"machine": machine, "figures": rows, **lists}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return between which values the median of what *values* were drawn from lies, 19 times in 20 or more often.

    By order statistics: nothing is supposed of the distribution. Of fewer than six values nothing so sure can be said,
    and the smallest and the largest are returned.
    """
    ordered = sorted(values)
    count = len(ordered)
    outside, left_out = 0.0, 0
    for below in range(count // 2):
        outside += 2 * math.comb(count, below) / 2**count
        if outside > 0.05:
            break
        left_out = below
    return ordered[left_out], ordered[~left_out]


def median(values: Sequence[float]) -> float | None:
    """Return the middle value; None of nothing."""
    return statistics.median(values) if values else None


def _said(value: float | None, unit: str) -> str:
    return f"{short(value)} {unit}".rstrip() if value is not None else NOTHING
